package transfer

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"skimmer/internal/blob"
)

// download delivers one range, with one exchange after the other.
type download struct {
	// Constant.
	b   *remoteBlob
	ctx context.Context

	off, end int64
	part     blob.Range // that x brings
	x        *exchange  // nil before the first and after the last
	check    checker
	err      error
}

// next begins the exchange for the bytes from off on.
func (d *download) next() error {
	c := d.b.s.c
	d.part = blob.Range{Off: d.off, Len: min(d.end-d.off, c.cfg.MaxRange)}
	x, err := c.exchange(d.ctx, request{http.MethodGet, d.b.s.addr, d.b.ref.Digest, d.part})
	if err != nil {
		return err
	}
	if err := d.accept(x.resp); err != nil {
		return x.abort(err)
	}
	d.x = x
	return nil
}

// accept looks whether the header announces what was asked for.
func (d *download) accept(resp *http.Response) error {
	if resp.StatusCode != http.StatusPartialContent {
		return blob.Errorf(blob.Corrupt, "it answers %d and not with the range", resp.StatusCode)
	}
	r, size, ok := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case !ok || r != d.part:
		return blob.Errorf(blob.Corrupt, "it answers with %q, which was not asked for", cleanReason(resp.Header.Get("Content-Range")))
	case size != d.b.ref.Size:
		return blob.Errorf(blob.Corrupt, "it has the blob with %d bytes, want %d", size, d.b.ref.Size)
	case resp.ContentLength >= 0 && resp.ContentLength != r.Len:
		return blob.Errorf(blob.Corrupt, "it sends %d bytes, want %d", resp.ContentLength, r.Len)
	}
	d.check = checker{segments: segments{r: r}, off: r.Off, loose: d.ctx.Value(looseKey{}) != nil}
	sums := resp.Header.Get(headerCRC)
	if resp.ContentLength < 0 && sums == "" {
		return nil // they come as trailer
	}
	return d.check.expect(sums)
}

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	for {
		switch {
		case d.err != nil:
			return 0, d.err
		case d.off == d.end:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		if d.x == nil {
			if d.err = d.next(); d.err != nil {
				return 0, d.err
			}
		}
		n, err := d.step(p)
		d.off += int64(n)
		if err != nil {
			d.err = d.x.abort(err)
			d.x = nil
		} else if d.off == d.part.End() {
			d.x.close()
			d.x = nil
		}
		if n > 0 {
			return n, nil
		}
	}
}

// step reads once, and checks what came as far as that can be done.
func (d *download) step(p []byte) (int, error) {
	rate := d.b.s.c.cfg.Rate
	p = p[:min(int64(len(p)), d.part.End()-d.off, rate.quantum())]
	n, err := d.x.read(p)
	good, wrong := d.check.add(p[:n])
	if wrong != nil {
		return good, wrong
	}
	if d.off+int64(n) == d.part.End() {
		err = d.finish(err)
	} else if err == io.EOF {
		err = d.early()
	}
	if err != nil && d.check.due() {
		return 0, err // with the last byte kept, what came is not whole
	}
	if err == nil {
		err = rate.wait(d.ctx, int64(n))
	}
	return n, err
}

// finish, after the last byte, sees that nothing is behind it but what may
// be; err is what came with that byte.
func (d *download) finish(err error) error {
	for err == nil {
		var one [1]byte
		var n int
		if n, err = d.x.read(one[:]); n > 0 {
			return blob.Errorf(blob.Corrupt, "it sends more than was asked for")
		}
	}
	if err != io.EOF {
		return err
	}
	if !d.check.known && !d.check.loose {
		return d.check.conclude(d.x.resp.Trailer.Get(headerCRC))
	}
	return nil
}

// early is why an answer ended before all was there.
func (d *download) early() error {
	trailer := d.x.resp.Trailer
	if status, err := strconv.Atoi(trailer.Get(headerStatus)); err == nil {
		return blob.Errorf(kindOf(status), "it stopped: %s", cleanReason(trailer.Get(headerError)))
	}
	return blob.Errorf(blob.Corrupt, "it sends %d bytes, want %d", d.check.off-d.part.Off, d.part.Len)
}

// WriteTo implements io.WriterTo.
func (d *download) WriteTo(w io.Writer) (total int64, err error) {
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		n, err := d.Read(buf[:])
		if n > 0 {
			m, werr := w.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Close implements io.Closer. An answer that was not read to its end costs
// the connection.
func (d *download) Close() error {
	if d.x != nil {
		d.x.close()
		d.x = nil
	}
	if d.err == nil {
		d.err = errReaderClosed
	}
	return nil
}

var errReaderClosed = blob.Errorf(blob.Invalid, "read from peer: reader is closed")

// checker compares the sums of a body's segments while it arrives.
type checker struct {
	segments
	known bool     // sums are those of the segments; else they come later
	sums  []uint32 // of the segments not yet compared
	off   int64    // of the next byte
	sum   uint32   // of the current segment so far
	loose bool     // nothing is compared: see WithoutChecksums
}

// expect takes the sums from a header or trailer.
func (c *checker) expect(value string) (err error) {
	s, sums, ok := parseSums(value, c.r)
	if !ok {
		return blob.Errorf(blob.Corrupt, "it sends no usable checksums: %q", cleanReason(value))
	}
	c.segments, c.sums, c.known = s, sums, true
	return nil
}

// add takes bytes that arrived, and returns how many of them come before a
// segment that is wrong: all, without an error.
func (c *checker) add(p []byte) (good int, err error) {
	if c.loose {
		c.off += int64(len(p))
		return len(p), nil
	}
	for len(p) > 0 {
		end := c.end(c.off)
		q := p[:min(int64(len(p)), end-c.off)]
		c.sum = checksum(c.sum, q)
		c.off += int64(len(q))
		p = p[len(q):]
		if c.off == end && c.known {
			if c.sum != c.sums[0] {
				return good, c.mismatch(c.sums[0])
			}
			c.sum, c.sums = 0, c.sums[1:]
		}
		good += len(q)
	}
	return good, nil
}

// due reports whether all bytes came and their sum was not compared.
func (c *checker) due() bool { return c.off == c.r.End() && !c.known && !c.loose }

// conclude compares the sum that came behind the bytes.
func (c *checker) conclude(value string) error {
	sum := c.sum
	if err := c.expect(value); err != nil {
		return err
	}
	if c.align != 0 || sum != c.sums[0] {
		c.known = false
		return c.mismatch(c.sums[0])
	}
	return nil
}

func (c *checker) mismatch(want uint32) error {
	return blob.Errorf(blob.Corrupt, "checksum of the bytes up to %d is %08x, want %08x", c.off, c.sum, want)
}
