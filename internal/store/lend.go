package store

import (
	"os"
	"slices"

	"skimmer/internal/blob"
)

// Lend implements transfer.Lender. A piece that was not checked since the blob
// was opened from disk is not lent; reading it checks it.
func (o *opened) Lend(r blob.Range) (f *os.File, pieceSize int64, crcs []uint32, ok bool) {
	e := o.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.Check(e.geo.size) != nil || r.Len == 0 {
		return nil, 0, nil, false
	}
	first, end := e.geo.piece(r.Off), e.geo.pieceEnd(r.End())
	for i := first; i < end; i++ {
		if !e.present.has(i) || !e.checked.has(i) {
			return nil, 0, nil, false
		}
	}
	if e.openFiles() != nil {
		return nil, 0, nil, false
	}
	e.s.count.hitBytes.Add(r.Len)
	return e.data.os, e.geo.pieceSize, slices.Clone(e.crcs[first:end]), true
}

// Held implements transfer.Holder.
func (o *opened) Held() []blob.Range {
	e := o.e
	e.mu.Lock()
	defer e.mu.Unlock()
	var held []blob.Range
	for i := range e.geo.pieces {
		if !e.present.has(i) {
			continue
		}
		if n := len(held); n > 0 && held[n-1].End() == e.geo.start(i) {
			held[n-1].Len += e.geo.length(i)
		} else {
			held = append(held, blob.Range{Off: e.geo.start(i), Len: e.geo.length(i)})
		}
	}
	return held
}
