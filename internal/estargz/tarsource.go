package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"skimmer/internal/blob"
)

const (
	tarBlock = 512
	// tarTrailer is the length of the end of a tar.
	tarTrailer = 2 * tarBlock
)

// padding is how many bytes follow n bytes of content in a tar.
func padding(n int64) int64 { return -n & (tarBlock - 1) }

// tarSource is a plain tar at hand for random access.
type tarSource struct {
	r    *layerReader
	size int64
	temp *os.File // where the tar had to be unpacked, else nil
}

// layerReader remembers why reading failed, so that a layer that cannot be
// read is not reported as one that is wrong.
type layerReader struct {
	io.ReaderAt
	err error
}

func (r *layerReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// openTar returns the tar that is in the size bytes of layer. The caller
// closes it.
func openTar(ctx context.Context, layer io.ReaderAt, size int64, tempDir string) (*tarSource, error) {
	r := &layerReader{ReaderAt: layer}
	magic := make([]byte, min(size, 4))
	if _, err := r.ReadAt(magic, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read source layer: %w", err)
	}
	var plain io.Reader
	var err error
	compressed := io.NewSectionReader(r, 0, size)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 8}):
		plain, err = gzip.NewReader(compressed)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || isSkippable(magic):
		var zr *zstd.Decoder
		if zr, err = zstd.NewReader(compressed, zstd.WithDecoderMaxWindow(maxZstdWindow)); err == nil {
			defer zr.Close()
			plain = zr
		}
	default:
		return &tarSource{r: r, size: size}, nil
	}
	if err != nil {
		return nil, r.decompressError(err)
	}
	s, err := unpackTar(ctx, plain, tempDir)
	if err != nil {
		return nil, r.decompressError(err)
	}
	return s, nil
}

// isSkippable reports a zstd skippable frame (RFC 8878, section 3.1.2).
func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && string(magic[1:]) == "\x2a\x4d\x18"
}

// tempError marks a failure of the temporary file.
type tempError struct{ error }

func (e tempError) Unwrap() error { return e.error }

// tempWriter marks the errors of a file.
type tempWriter struct{ f *os.File }

func (w tempWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		err = tempError{err}
	}
	return n, err
}

// decompressError gives an error of unpacking the source its kind.
func (r *layerReader) decompressError(err error) error {
	var te tempError
	switch {
	case r.err != nil:
		return fmt.Errorf("read source layer: %w", r.err)
	case errors.As(err, &te):
		return fmt.Errorf("unpack source layer: %w", te.error)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return blob.Errorf(blob.Corrupt, "decompress source layer: %w", err)
}

// unpackTar copies r to a temporary file that is gone when it is closed.
func unpackTar(ctx context.Context, r io.Reader, dir string) (*tarSource, error) {
	f, err := os.CreateTemp(dir, "skimmer-layer-*")
	if err != nil {
		return nil, tempError{err}
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, tempError{err}
	}
	n, err := io.CopyBuffer(tempWriter{f}, ctxReader{ctx, r}, make([]byte, 1<<20))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &tarSource{r: &layerReader{ReaderAt: f}, size: n, temp: f}, nil
}

// Close frees the temporary file.
func (s *tarSource) Close() error {
	if s.temp == nil {
		return nil
	}
	return s.temp.Close()
}

// readError gives an error of reading the tar its kind.
func (s *tarSource) readError(err error) error {
	switch {
	case s.r.err != nil:
		return fmt.Errorf("read source layer: %w", s.r.err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return blob.Errorf(blob.Invalid, "read tar: %w", err)
}

// member is an entry of a tar.
type member struct {
	header *tar.Header
	name   string // cleaned
	size   int64  // of the content
	// head is where the headers of the entry start and data where they end.
	head, data int64
	sparse     bool
	reserved   bool // made by us, with content of its own
}

// members reads the headers of the tar. What an earlier build added is left
// out, and of entries with the same name the last one is kept.
func (s *tarSource) members(ctx context.Context) ([]*member, error) {
	var all []*member
	last := make(map[string]*member)
	sr := io.NewSectionReader(s.r, 0, s.size)
	tr := tar.NewReader(sr)
	for end := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m := &member{head: end}
		var err error
		if m.header, err = tr.Next(); err == io.EOF {
			break
		} else if err != nil {
			return nil, s.readError(err)
		}
		m.data, err = sr.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, s.readError(err)
		}
		if end, err = m.measure(ctx, tr, sr); err != nil {
			return nil, s.readError(err)
		}
		if m.header.Typeflag == tar.TypeXGlobalHeader {
			continue // a comment, to everybody who unpacks layers
		}
		if m.name, err = cleanName([]byte(m.header.Name)); err != nil {
			return nil, blob.Errorf(blob.Invalid, "read tar: %w", err)
		}
		switch m.name {
		case tocName, prefetchLandmark, noPrefetchLandmark:
			continue
		}
		all = append(all, m)
		last[m.name] = m
	}
	kept := all[:0]
	for _, m := range all {
		if last[m.name] == m {
			kept = append(kept, m)
		}
	}
	return kept, nil
}

// measure finds out how long the content of m is and returns where the next
// entry starts. tr and sr stand behind the headers of m.
func (m *member) measure(ctx context.Context, tr *tar.Reader, sr *io.SectionReader) (end int64, err error) {
	h := m.header
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return m.data, nil // have none, whatever the size field says
	}
	m.size = h.Size
	m.sparse = h.Typeflag == tar.TypeGNUSparse
	for k := range h.PAXRecords {
		m.sparse = m.sparse || strings.HasPrefix(k, paxSparse)
	}
	if !m.sparse {
		end = m.data + m.size
	} else if _, err = io.Copy(io.Discard, ctxReader{ctx, tr}); err == nil {
		end, err = sr.Seek(0, io.SeekCurrent)
	}
	return end + padding(end), err
}

// ctxReader ends when ctx does: what a sparse file expands to may be long.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// paxSparse starts the PAX records of sparse files.
const paxSparse = "GNU.sparse."

// appendHeader appends the headers of m, as they are in the source except
// for sparse files, which become ordinary ones.
func (s *tarSource) appendHeader(p []byte, m *member) ([]byte, error) {
	if !m.sparse && !m.reserved {
		start := len(p)
		p = append(p, make([]byte, m.data-m.head)...)
		if _, err := s.r.ReadAt(p[start:], m.head); err != nil {
			return nil, s.readError(err)
		}
		return p, nil
	}
	h := *m.header
	if m.sparse {
		h.Typeflag, h.Format = tar.TypeReg, tar.FormatPAX
		h.PAXRecords = maps.Clone(h.PAXRecords)
		maps.DeleteFunc(h.PAXRecords, func(k, _ string) bool { return strings.HasPrefix(k, paxSparse) })
	}
	b, err := encodeHeader(&h)
	return append(p, b...), err
}

// content returns a reader of the content of m.
func (s *tarSource) content(m *member) (io.Reader, error) {
	switch {
	case m.reserved:
		return strings.NewReader(landmarkContent), nil
	case m.sparse:
		tr := tar.NewReader(io.NewSectionReader(s.r, m.head, s.size-m.head))
		if _, err := tr.Next(); err != nil {
			return nil, s.readError(err)
		}
		return tr, nil
	}
	return io.NewSectionReader(s.r, m.data, m.size), nil
}

// landmarkContent is what the format puts into landmark files.
const landmarkContent = "\x0f"

// reservedHeader is the header of a file that belongs to the format.
func reservedHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
}

func encodeHeader(h *tar.Header) ([]byte, error) {
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
		return nil, blob.Errorf(blob.Invalid, "encode header of %q: %w", h.Name, err)
	}
	return buf.Bytes(), nil
}

// arrange puts the members that are to be prefetched first, with the
// directories and hard link targets they need, then a landmark, then the rest
// in the order of the tar. It returns the paths that are not there.
func arrange(members []*member, prefetch []string) (out []*member, missing []string, err error) {
	byName := make(map[string]*member, len(members))
	for _, m := range members {
		byName[m.name] = m
	}
	a := &arrangement{byName: byName, done: make(map[*member]bool)}
	for _, path := range prefetch {
		name, err := cleanName([]byte(path))
		if err != nil {
			return nil, nil, blob.Errorf(blob.Invalid, "prefetch list: %w", err)
		}
		if byName[name] == nil {
			missing = append(missing, path)
			continue
		}
		a.pick(name)
	}
	landmark := noPrefetchLandmark
	if len(a.out) > 0 {
		landmark = prefetchLandmark
	}
	a.out = append(a.out, &member{
		header: reservedHeader(landmark, int64(len(landmarkContent))),
		name:   landmark, size: int64(len(landmarkContent)), reserved: true,
	})
	for _, m := range members {
		if !a.done[m] {
			a.out = append(a.out, m)
		}
	}
	return a.out, missing, nil
}

type arrangement struct {
	byName map[string]*member
	done   map[*member]bool
	out    []*member
}

// pick appends the entry with the given name, after what it needs.
func (a *arrangement) pick(name string) {
	if name != "" {
		dir, _, _ := cutLast(name)
		a.pick(dir)
	}
	m := a.byName[name]
	if m == nil || a.done[m] {
		return
	}
	a.done[m] = true // before its target, which may be a link to it
	if m.header.Typeflag == tar.TypeLink {
		if target, err := cleanName([]byte(m.header.Linkname)); err == nil {
			a.pick(target)
		}
	}
	a.out = append(a.out, m)
}

// cutLast splits a path at its last slash.
func cutLast(name string) (dir, base string, ok bool) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:], true
	}
	return "", name, false
}
