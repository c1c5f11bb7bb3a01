package transfer

import (
	"context"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"skimmer/internal/blob"
)

// smallUpload is up to how many bytes are read and written instead of sent
// with sendfile: below it that costs no more, and leaves descriptors alone.
const smallUpload = 128 << 10

// upload is the answer to one range.
type upload struct {
	s     *Server
	ctx   context.Context
	w     http.ResponseWriter
	rc    *http.ResponseController
	v     *volume
	r     blob.Range
	begun bool // the header was written, or will be with the first byte
}

// send sends the range. An error after it has begun cannot be told to the
// client any more.
func (u *upload) send() error {
	lender, ok := u.v.Blob.(Lender)
	if !ok {
		return u.relay()
	}
	f, pieceSize, crcs, ok := lender.Lend(u.r)
	if !ok {
		return u.relay()
	}
	if u.r.Len <= smallUpload {
		return u.small(f)
	}
	seg := segments{u.r, pieceSize}
	if seg.count() > maxSums || int64(len(crcs)) != seg.count() {
		return u.relay()
	}
	if err := u.cutSums(f, seg, crcs); err != nil {
		return err
	}
	u.begin(formatSums(pieceSize, crcs))
	if u.s.cfg.TLS != nil {
		return u.copy(f)
	}
	return u.sendFile(f)
}

// begin sets the header; sums is empty for an answer that is relayed.
func (u *upload) begin(sums string) {
	h := u.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Range", formatContentRange(u.r, u.v.Size()))
	if sums == "" {
		h["Trailer"] = []string{headerCRC, headerStatus, headerError}
	} else {
		h.Set(headerCRC, sums)
		h.Set("Content-Length", strconv.FormatInt(u.r.Len, 10))
	}
	u.begun = true
	u.w.WriteHeader(http.StatusPartialContent)
}

// pace waits until n bytes may be sent, and then gives the client some time
// to take them.
func (u *upload) pace(n int64) error {
	if err := u.s.cfg.Rate.wait(u.ctx, n); err != nil {
		return err
	}
	return u.extend()
}

// extend gives the client its time to take what is written next.
func (u *upload) extend() error {
	return u.rc.SetWriteDeadline(time.Now().Add(u.s.cfg.SendTimeout))
}

// write sends p. The connection is as good as closed when it fails.
func (u *upload) write(p []byte) error {
	for len(p) > 0 {
		q := p[:min(int64(len(p)), u.s.cfg.Rate.quantum())]
		if err := u.pace(int64(len(q))); err != nil {
			return err
		}
		n, err := u.w.Write(q)
		u.s.count.bytes.Add(int64(n))
		if err != nil {
			return u.gone(err)
		}
		p = p[n:]
	}
	return nil
}

// gone says what a failed write means.
func (u *upload) gone(err error) error {
	kind := blob.KindOf(err)
	if kind == blob.Internal {
		kind = blob.Canceled // the client went away
	}
	return blob.Errorf(kind, "send bytes %v: %w", u.r, err)
}

// small sends the range out of memory.
func (u *upload) small(f *os.File) error {
	buf := getBuffer()
	defer putBuffer(buf)
	p := buf[:u.r.Len]
	if err := readAt(f, p, u.r.Off); err != nil {
		return err
	}
	u.begin(formatSums(0, []uint32{checksum(0, p)}))
	return u.write(p)
}

// readAt fills p from the blob's file, in which everything is that is lent.
func readAt(f *os.File, p []byte, off int64) error {
	if _, err := f.ReadAt(p, off); err != nil {
		return blob.Errorf(blob.Unavailable, "read %d bytes at %d of what is held: %w", len(p), off, err)
	}
	return nil
}

// cutSums replaces the sums of the first and the last piece, where the range
// has only a part of them, with those of the part.
func (u *upload) cutSums(f *os.File, seg segments, crcs []uint32) error {
	last := (u.r.End() - 1) / seg.align * seg.align
	cutFirst := u.r.Off%seg.align != 0
	cutLast := u.r.End()%seg.align != 0 && u.r.End() != u.v.Size() && (last > u.r.Off || !cutFirst)
	for _, c := range []struct {
		cut bool
		i   int
		off int64
	}{{cutFirst, 0, u.r.Off}, {cutLast, len(crcs) - 1, max(last, u.r.Off)}} {
		if !c.cut {
			continue
		}
		var err error
		if crcs[c.i], err = sumFile(f, c.off, seg.end(c.off)); err != nil {
			return err
		}
	}
	return nil
}

// sumFile returns the CRC32C of the bytes [off, end) of f.
func sumFile(f *os.File, off, end int64) (sum uint32, err error) {
	buf := getBuffer()
	defer putBuffer(buf)
	for off < end {
		p := buf[:min(end-off, bufferSize)]
		if err := readAt(f, p, off); err != nil {
			return 0, err
		}
		sum = checksum(sum, p)
		off += int64(len(p))
	}
	return sum, nil
}

// sendFile sends the range without reading it.
func (u *upload) sendFile(lent *os.File) error {
	to, ok := u.w.(io.ReaderFrom)
	if !ok {
		return u.copy(lent)
	}
	f, err := u.v.file(lent)
	if err != nil {
		return u.copy(lent) // out of descriptors, or no /proc
	}
	defer u.v.putFile(f, lent)
	if _, err := f.Seek(u.r.Off, io.SeekStart); err != nil {
		return err
	}
	from := &io.LimitedReader{R: f}
	for left := u.r.Len; left > 0; {
		n := min(left, u.s.cfg.Rate.quantum())
		if err := u.pace(n); err != nil {
			return err
		}
		from.N = n
		m, err := to.ReadFrom(from)
		u.s.count.bytes.Add(m)
		u.s.count.sentFile.Add(m)
		if err != nil {
			return u.gone(err)
		}
		if m < n {
			return blob.Errorf(blob.Unavailable, "send bytes %v: the file ends early: %w", u.r, io.ErrUnexpectedEOF)
		}
		left -= m
	}
	return nil
}

// copy is sendFile through memory.
func (u *upload) copy(f *os.File) error {
	buf := getBuffer()
	defer putBuffer(buf)
	for off := u.r.Off; off < u.r.End(); {
		p := buf[:min(u.r.End()-off, bufferSize)]
		if err := readAt(f, p, off); err != nil {
			return err
		}
		if err := u.write(p); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// relay sends the range as the source delivers it.
func (u *upload) relay() error {
	rc, err := u.v.ReadRange(u.ctx, u.r)
	if err != nil {
		return u.orCut(err)
	}
	defer rc.Close()
	sum, err := u.relayFrom(rc)
	err = u.orCut(err)
	_ = u.extend() // for the trailer; where this fails, so does writing it
	h := u.w.Header()
	switch {
	case err == nil:
		h.Set(headerCRC, formatSums(0, []uint32{sum}))
	case u.begun:
		h.Set(headerStatus, strconv.Itoa(statusOf[blob.KindOf(err)]))
		h.Set(headerError, reasonOf(err))
	}
	return err
}

// orCut returns err, or what the client is told where the source failed
// because Close cut the upload: that others should be asked.
func (u *upload) orCut(err error) error {
	if err != nil && u.s.closing.Load() && u.ctx.Err() != nil {
		return blob.Errorf(blob.Unavailable, "send bytes %v: the peer shuts down", u.r)
	}
	return err
}

// relayFrom passes on what rc delivers, and returns its CRC32C. The first
// bytes are waited for before anything is answered, so that what is not there
// is a 404.
func (u *upload) relayFrom(rc io.Reader) (sum uint32, err error) {
	buf := getBuffer()
	defer putBuffer(buf)
	for left := u.r.Len; left > 0; {
		n, err := rc.Read(buf[:min(left, bufferSize)])
		if n > 0 {
			if !u.begun {
				u.begin("")
			}
			sum = checksum(sum, buf[:n])
			if err := u.passOn(buf[:n]); err != nil {
				return 0, err
			}
			left -= int64(n)
		}
		switch {
		case left == 0 || err == nil:
		case err == io.EOF:
			return 0, blob.Errorf(blob.Corrupt, "send bytes %v: their source ended early: %w", u.r, io.ErrUnexpectedEOF)
		default:
			return 0, err
		}
	}
	return sum, nil
}

// passOn writes bytes that were relayed, and sees that they leave at once:
// those behind them may take long.
func (u *upload) passOn(p []byte) error {
	if err := u.write(p); err != nil {
		return err
	}
	u.s.count.relayed.Add(int64(len(p)))
	if err := u.rc.Flush(); err != nil {
		return u.gone(err)
	}
	return nil
}
