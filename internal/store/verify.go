package store

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"

	"skimmer/internal/blob"
)

// errDropped says that a piece was not what its CRC promised and is gone now.
var errDropped = errors.New("piece failed its CRC")

// readPieces fills p, of their length, with the n pieces from i on and
// compares their CRCs. It returns how many bytes are good, from the start of
// p. A piece that fails is dropped: errDropped, unless others came before it.
// Caller holds e, not e.mu.
func (e *entry) readPieces(i, n int, p []byte) (good int64, err error) {
	return e.comparePieces(i, n, p, (*file).readAt)
}

// comparePieces is readPieces with the way in which the file is read.
func (e *entry) comparePieces(i, n int, p []byte, read func(f *file, p []byte, off int64) (int, error)) (good int64, err error) {
	e.mu.Lock()
	crcs, drops := slices.Clone(e.crcs[i:i+n]), e.drops
	for k := range n {
		if !e.present.has(i + k) {
			n = k
			break
		}
	}
	err = e.openFiles()
	data := e.data
	e.mu.Unlock()
	if n == 0 {
		return 0, errDropped
	}
	if err != nil {
		return 0, err
	}
	start := e.geo.start(i)
	m, err := read(data, p[:e.geo.start(i+n)-start], start)
	if e.s.ctx.Err() != nil {
		return 0, e.s.errClosed()
	}
	for k, crc := range crcs[:n] {
		from, to := e.geo.start(i+k)-start, e.geo.start(i+k+1)-start
		why := err
		if to <= int64(m) {
			why = nil
			if checksum(p[from:to]) != crc {
				why = errDropped
			}
		}
		if !e.confirm(record{recPiece, uint32(i + k), crc}, drops, why) {
			break
		}
		good = to
	}
	if good == 0 {
		return 0, errDropped
	}
	return good, nil
}

// confirm notes that the piece of r, as it was when drops was read, was found
// right, or if why is an error drops it. It returns false where the bytes read
// are not those of the piece.
func (e *entry) confirm(r record, drops int, why error) bool {
	i := int(r.index)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.present.has(i) || e.crcs[i] != r.crc {
		return false // it is another one by now
	}
	if why != nil {
		if e.drops == drops { // else it may have been replaced under the read
			e.damaged(i, why)
		}
		return false
	}
	e.checked.set(i)
	return true
}

// damaged drops piece i, which cannot be read from disk. Caller holds e.mu.
func (e *entry) damaged(i int, why error) {
	if !e.present.has(i) {
		return
	}
	e.s.count.crcFailures.Add(1)
	e.s.log.Warn("a piece on disk is damaged: it will be fetched again", "digest", e.digest, "piece", i, "error", why)
	e.drop(i)
}

// kickHash starts hashing what is there of the blob beyond what was hashed,
// unless that is under way. Caller holds e.mu.
func (e *entry) kickHash() {
	if e.hashing || e.complete {
		return
	}
	if !blob.Verifiable(e.digest) {
		e.complete = e.missing() == 0 // there is nothing more to compare
		if e.complete {
			e.hashing = e.s.spawn(e, e.settle)
		}
		return
	}
	e.hashing = e.s.spawn(e, e.hash)
}

// settle is what remains of hashing where there is no digest to compare: to
// note that the blob is complete.
func (e *entry) settle() {
	e.mu.Lock()
	e.hashing = false
	e.broadcast()
	e.mu.Unlock()
	if err := e.persistComplete(); err != nil {
		e.s.log.Warn("cannot note that a blob is complete: it will be noted later", "digest", e.digest, "error", err)
	}
}

// hash compares the blob's digest as far as it is there, and makes one that was
// right durable. Readers have the verdict before that.
func (e *entry) hash() {
	if !e.hashAll() {
		return
	}
	if err := e.persistComplete(); err != nil {
		e.s.log.Warn("cannot note that a blob is complete: it will be checked again", "digest", e.digest, "error", err)
	}
}

// hashAll reads the blob from disk, from where hashing stopped to the first
// missing piece, and judges it at the end. What is judged is what the disk
// gives back, which the page cache still has when pieces arrive in order. It
// reports whether all is there and right. The slot is given back before anything
// is synced: readers of other blobs may wait for it with their last byte.
func (e *entry) hashAll() (right bool) {
	select {
	case e.s.hashes <- struct{}{}:
		defer func() { <-e.s.hashes }()
	case <-e.s.ctx.Done():
	}
	buf := getBuffer(e.geo.block())
	defer putBuffer(buf)
	for more := true; more; {
		more, right = e.hashNext(buf)
	}
	return right
}

// hashNext hashes as many pieces as buf holds, and reports whether there is more to do. When
// there is not, hashing is over, and it reports whether the blob is complete and right.
func (e *entry) hashNext(buf []byte) (more, right bool) {
	e.mu.Lock()
	if e.stale || e.hasher == nil {
		e.hasher, e.hashed, e.stale = e.digest.Algorithm().Hash(), 0, false
	}
	i := e.hashed
	if i == e.geo.pieces {
		e.mu.Unlock()
		return e.judge()
	}
	if !e.present.has(i) || e.s.ctx.Err() != nil {
		e.hashing = false
		e.broadcast()
		e.mu.Unlock()
		return false, false
	}
	n := 1
	for i+n < e.geo.pieces && e.present.has(i+n) && e.geo.start(i+n+1)-e.geo.start(i) <= int64(len(buf)) {
		n++
	}
	e.mu.Unlock()

	good, err := e.comparePieces(i, n, buf, (*file).readThrough)
	if err == nil {
		_, err = e.hasher.Write(buf[:good])
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil && !e.stale:
		e.hashed = e.geo.pieceEnd(e.geo.start(i) + good)
	case err != nil && err != errDropped:
		e.s.log.Warn("cannot check a blob's digest", "digest", e.digest, "error", err)
		e.hashing = false
		e.broadcast()
		return false, false
	}
	return true, false
}

// judge compares the digest of a blob all of which was hashed. It reports
// whether hashing has to start over, because a piece was dropped meanwhile, and
// else whether the digest is right.
func (e *entry) judge() (again, good bool) {
	good = hex.EncodeToString(e.hasher.Sum(nil)) == e.digest.Encoded()
	e.mu.Lock()
	if e.stale {
		e.mu.Unlock()
		return true, false
	}
	e.hashing, e.hasher, e.hashed = false, nil, 0
	e.complete = good
	if !good {
		e.s.count.digestFailures.Add(1)
		e.s.log.Error("a blob is not what its digest promised: all of it is dropped",
			"digest", e.digest, "repository", e.info.Repository)
		if err := e.reset(); err != nil {
			e.s.log.Warn("cannot drop it on disk", "digest", e.digest, "error", err)
		}
	}
	e.broadcast()
	e.mu.Unlock()
	return false, good
}

// persistComplete makes a complete blob durable and then says that it is one.
func (e *entry) persistComplete() error {
	if err := e.checkpoint(); err != nil {
		return err
	}
	e.mu.Lock()
	if !e.complete {
		e.mu.Unlock()
		return nil
	}
	err := e.append(record{kind: recComplete})
	journal := e.journal
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return journal.sync()
}

// errWrong says that the blob's content was dropped by judge.
func (e *entry) errWrong() error {
	return blob.Errorf(blob.Corrupt, "check digest of blob %s: its source sent something else", e.digest)
}

// verdict waits until the blob's digest was compared. It returns nil if it
// was right or cannot be compared because a part is not held, and a Corrupt
// error if the content was dropped since resets was read. Caller holds e, not
// e.mu.
func (e *entry) verdict(ctx context.Context, resets int) error {
	kicked := false
	for {
		e.mu.Lock()
		if e.resets != resets {
			e.mu.Unlock()
			return e.errWrong()
		}
		if e.s.ctx.Err() != nil {
			e.mu.Unlock()
			return e.s.errClosed()
		}
		missing := e.missing() > 0
		if !missing && !e.hashing && !kicked {
			kicked = true // once: what fails again is not worth waiting for
			e.kickHash()
		}
		if e.complete || missing && len(e.flights) == 0 || !missing && !e.hashing {
			e.mu.Unlock()
			return nil
		}
		changed := e.wait()
		e.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Verifier is implemented by blobs of a Store.
type Verifier interface {
	// Verify waits until the digest of the blob, all of which is held, was
	// compared with its content. It returns nil if that was right, or cannot be
	// compared because not all is held or the name says nothing of the content,
	// and a Corrupt error if what was held is dropped. Safe for concurrent use.
	Verify(ctx context.Context) error
	// WillVerify says that Verify is going to be called: the digest is computed
	// while the rest arrives.
	WillVerify()
}

// WillVerify implements Verifier.
func (o *opened) WillVerify() {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	o.e.eager = true
	if !o.e.complete && o.e.hashed < o.e.geo.pieces && o.e.present.has(o.e.hashed) {
		o.e.kickHash()
	}
}

// Verify implements Verifier.
func (o *opened) Verify(ctx context.Context) error {
	o.e.mu.Lock()
	resets := o.e.resets
	o.e.mu.Unlock()
	if err := o.e.verdict(ctx, resets); err != nil {
		return blob.Errorf(blob.KindOf(err), "verify %v: %w", o.ref, err)
	}
	return nil
}
