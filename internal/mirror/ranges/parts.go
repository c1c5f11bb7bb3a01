package ranges

import (
	"context"
	"crypto/rand"
	"io"

	"skimmer/internal/blob"
)

// together is how many bytes of several ranges are asked for at the same time.
// As many may have to be kept in memory, if the last ones come first.
const together = 4 << 20

// newBoundary returns a line that no blob has, as nobody can know it before.
func newBoundary() string { return rand.Text() }

// appendPart appends what stands before the part r.
func (a *answer) appendPart(p []byte, r blob.Range, first bool) []byte {
	if !first {
		p = append(p, "\r\n"...)
	}
	p = append(p, "--"...)
	p = append(p, a.boundary...)
	p = append(p, "\r\nContent-Type: "...)
	p = append(p, a.mediaType()...)
	p = append(p, "\r\nContent-Range: "...)
	p = appendRange(p, r, a.size)
	return append(p, "\r\n\r\n"...)
}

// appendEnd appends what stands behind the last part.
func (a *answer) appendEnd(p []byte) []byte {
	p = append(p, "\r\n--"...)
	p = append(p, a.boundary...)
	return append(p, "--\r\n"...)
}

// parts sends the ranges of set, in that order.
func (a *answer) parts(ctx context.Context, set []blob.Range) error {
	first := true
	for len(set) > 0 {
		n, bytes := 1, set[0].Len
		for n < len(set) && bytes+set[n].Len <= together && set[n].Off >= set[n-1].End() {
			bytes += set[n].Len
			n++
		}
		b := batch{a: a, set: set[:n], first: first}
		if err := b.send(ctx); err != nil {
			return err
		}
		set, first = set[n:], false
	}
	return a.put(a.appendEnd(nil))
}

// batch is parts in order of offset, whose bytes are read together and may
// arrive in any order.
type batch struct {
	a     *answer
	set   []blob.Range
	first bool // set[0] is the first part of the answer
	cur   int  // the part that is being sent
	got   []int64
	early [][]byte // bytes of the parts behind cur
}

func (b *batch) send(ctx context.Context) error {
	b.start()
	if len(b.set) == 1 {
		return b.a.stream(ctx, b.set[0])
	}
	b.got, b.early = make([]int64, len(b.set)), make([][]byte, len(b.set))
	err := blob.ReadRanges(ctx, b.a.c.Blob, b.set, b.land)
	if err == nil && b.cur < len(b.set) {
		return blob.Errorf(blob.Corrupt, "send bytes %v: their source ended early: %w", b.set[b.cur], io.ErrUnexpectedEOF)
	}
	return err
}

// start prepares for the part cur.
func (b *batch) start() {
	r := b.set[b.cur]
	b.a.left = r.Len
	b.a.before = b.a.appendPart(b.a.before[:0], r, b.first && b.cur == 0)
}

// land takes bytes of part i: those of cur are sent, others have to wait.
func (b *batch) land(i int, off int64, p []byte) error {
	r := b.set[i]
	if off != r.Off+b.got[i] || int64(len(p)) > r.Len-b.got[i] {
		return blob.Errorf(blob.Corrupt, "send bytes %v: their source sent %d at %d, want %d", r, len(p), off, r.Off+b.got[i])
	}
	b.got[i] += int64(len(p))
	if i != b.cur {
		if b.early[i] == nil {
			b.early[i] = make([]byte, 0, r.Len)
		}
		b.early[i] = append(b.early[i], p...)
		return nil
	}
	if _, err := b.a.Write(p); err != nil {
		return err
	}
	for b.a.left == 0 {
		if b.cur++; b.cur == len(b.set) {
			return nil
		}
		b.start()
		if _, err := b.a.Write(b.early[b.cur]); err != nil {
			return err
		}
		b.early[b.cur] = nil
	}
	return nil
}
