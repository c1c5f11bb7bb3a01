package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// splitSize is how much of headers alone goes into one compressed unit.
const splitSize = 4 << 20

// packer cuts a tar into units that are compressed by themselves and keeps
// the table of contents. Where a unit ends depends on the tar and the options
// alone, so that any number of compressors makes the same layer.
type packer struct {
	// constant after run has started
	opts  BuildOptions
	src   *tarSource
	ctx   context.Context // the build's own
	zstd  *zstd.Encoder
	gzips sync.Pool // of *gzip.Writer

	// free holds unused units, work and order those that wait for a compressor
	// and for their turn to be written.
	free, work, order chan *unit

	// owned by the goroutine of pack, until it has returned
	unit      *unit
	toc       []*tocEntry
	user, grp map[int]string // last name seen for an ID
	diffID    hash.Hash
	plain     int64 // uncompressed bytes so far

	// owned by the goroutine that writes
	progress progress
}

// unit is a part of the tar that becomes a gzip member or a zstd frame.
type unit struct {
	plain  []byte
	chunks []unitChunk
	buf    bytes.Buffer
	packed chan error // says that buf is ready, once
}

// unitChunk is a chunk in a unit and its entry in the table of contents.
type unitChunk struct {
	entry    *tocEntry
	off, end int
	whole    bool // it is all of its file
}

func newPacker(opts BuildOptions, src *tarSource) (*packer, error) {
	p := &packer{opts: opts, src: src, user: map[int]string{}, grp: map[int]string{}, diffID: sha256.New()}
	if !opts.Zstd {
		return p, nil
	}
	var err error
	p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(maxWorkers),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(opts.Level)))
	return p, err
}

// pack sends all members off, in units.
func (p *packer) pack(members []*member) (err error) {
	if p.unit, err = p.newUnit(); err != nil {
		return err
	}
	for _, m := range members {
		if err := p.member(m); err != nil {
			return fmt.Errorf("entry %q: %w", m.header.Name, err)
		}
	}
	if p.opts.Zstd { // eStargz ends its tar behind the table of contents
		p.unit.plain = append(p.unit.plain, make([]byte, tarTrailer)...)
	}
	return p.send()
}

// newUnit waits for an unused unit.
func (p *packer) newUnit() (*unit, error) {
	select {
	case u := <-p.free:
		u.plain, u.chunks = u.plain[:0], u.chunks[:0]
		u.packed = make(chan error, 1)
		return u, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// send sends the current unit off, unless it is empty. The channels have room
// for all units there are.
func (p *packer) send() error {
	if len(p.unit.plain) == 0 {
		return nil
	}
	p.diffID.Write(p.unit.plain)
	p.plain += int64(len(p.unit.plain))
	p.order <- p.unit
	p.work <- p.unit
	var err error
	p.unit, err = p.newUnit()
	return err
}

// member packs one entry.
func (p *packer) member(m *member) error {
	e, err := p.entry(m)
	if err != nil {
		return err
	}
	if p.unit.plain, err = p.src.appendHeader(p.unit.plain, m); err != nil {
		return err
	}
	if m.size == 0 {
		p.toc = append(p.toc, e)
		if len(p.unit.plain) > splitSize {
			return p.send()
		}
		return nil
	}
	r, err := p.src.content(m)
	if err != nil {
		return err
	}
	if err := p.content(m, e, r); err != nil {
		return err
	}
	p.unit.plain = append(p.unit.plain, make([]byte, padding(m.size))...)
	return nil
}

// content packs the content of a file in chunks, the first of which goes
// into e.
func (p *packer) content(m *member, e *tocEntry, r io.Reader) error {
	chunkSize := int64(p.opts.ChunkSize)
	first, whole := e, m.size <= chunkSize
	sum := sha256.New()
	for off := int64(0); off < m.size; {
		n := min(chunkSize, m.size-off)
		if n == chunkSize {
			e.ChunkSize = n
		}
		e.ChunkOffset = off
		if err := p.startChunk(m.reserved); err != nil {
			return err
		}
		u := p.unit
		start := len(u.plain)
		e.InnerOffset = int64(start)
		u.plain = append(u.plain, make([]byte, n)...)
		if _, err := io.ReadFull(r, u.plain[start:]); err != nil {
			return p.src.readError(err)
		}
		if !whole {
			sum.Write(u.plain[start:])
		}
		u.chunks = append(u.chunks, unitChunk{entry: e, off: start, end: len(u.plain), whole: whole})
		p.toc = append(p.toc, e)
		e = &tocEntry{Name: first.Name, Type: typeChunk}
		off += n
	}
	if !whole {
		first.Digest = digest.NewDigest(digest.SHA256, sum).String()
	}
	return nil
}

// startChunk starts a new unit unless the next chunk may share the current
// one. A unit is shared only from its first byte on being a chunk.
func (p *packer) startChunk(force bool) error {
	if force || len(p.unit.chunks) == 0 || len(p.unit.plain) >= p.opts.MinChunkSize {
		return p.send()
	}
	return nil
}

// entry returns the entry of the table of contents for m.
func (p *packer) entry(m *member) (*tocEntry, error) {
	h := m.header
	e := &tocEntry{
		Name:      h.Name,
		Mode:      h.Mode,
		UID:       h.Uid,
		GID:       h.Gid,
		UserName:  changed(p.user, h.Uid, h.Uname),
		GroupName: changed(p.grp, h.Gid, h.Gname),
		ModTime:   formatTime(h.ModTime),
		RawName:   notUTF8(h.Name),
	}
	for k, v := range h.PAXRecords {
		if k, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			e.setXattr(k, v)
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Type = "reg"
		e.Size = m.size
		if m.size == 0 {
			e.Digest = digest.Canonical.FromString("").String()
		}
	case tar.TypeDir:
		e.Type = "dir"
	case tar.TypeSymlink, tar.TypeLink:
		e.Type = "symlink"
		if h.Typeflag == tar.TypeLink {
			e.Type = "hardlink"
		}
		e.LinkName, e.RawLinkName = h.Linkname, notUTF8(h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		e.Type = "char"
		if h.Typeflag == tar.TypeBlock {
			e.Type = "block"
		}
		e.DevMajor, e.DevMinor = h.Devmajor, h.Devminor
	case tar.TypeFifo:
		e.Type = "fifo"
	default:
		return nil, blob.Errorf(blob.Invalid, "tar type %q has no place in a layer", h.Typeflag)
	}
	return e, nil
}

func (e *tocEntry) setXattr(name, value string) {
	m := &e.Xattrs
	if !utf8.ValidString(name) {
		m, name = &e.RawXattrs, base64.StdEncoding.EncodeToString([]byte(name))
	}
	if *m == nil {
		*m = make(map[string][]byte)
	}
	(*m)[name] = []byte(value)
}

// changed returns name if it is not what last has for id, as the format does
// to say each name once.
func changed(last map[int]string, id int, name string) string {
	if name == "" || last[id] == name {
		return ""
	}
	last[id] = name
	return name
}

// notUTF8 returns s if JSON cannot hold it, else nil.
func notUTF8(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// formatTime writes a time as the format does; the epoch, and what RFC 3339
// has no way to write, is empty. The fraction is left out where it is zero,
// and other readers may ignore it.
func formatTime(t time.Time) string {
	t = t.UTC()
	if t.Equal(time.Unix(0, 0)) || t.IsZero() || t.Year() < 0 || t.Year() > 9999 {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// compress fills u.buf and the digests of the chunks of u.
func (p *packer) compress(u *unit) error {
	for _, c := range u.chunks {
		c.entry.ChunkDigest = digest.FromBytes(u.plain[c.off:c.end]).String()
		if c.whole {
			c.entry.Digest = c.entry.ChunkDigest
		}
	}
	u.buf.Reset()
	if p.opts.Zstd {
		u.buf.Write(p.zstd.EncodeAll(u.plain, u.buf.AvailableBuffer()))
		return nil
	}
	zw, _ := p.gzips.Get().(*gzip.Writer)
	if zw == nil {
		var err error
		if zw, err = gzip.NewWriterLevel(nil, p.opts.Level); err != nil {
			return err
		}
	}
	defer p.gzips.Put(zw)
	zw.Reset(&u.buf)
	if _, err := zw.Write(u.plain); err != nil {
		return err
	}
	return zw.Close()
}

// writeTo writes a compressed unit, whose place is known only now.
func (u *unit) writeTo(out *output) error {
	for _, c := range u.chunks {
		c.entry.Offset = out.n
	}
	_, err := out.Write(u.buf.Bytes())
	return err
}
