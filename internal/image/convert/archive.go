package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"skimmer/internal/blob"
)

// maxMembers bounds the members an archive may have; an image has a few per
// layer.
const maxMembers = 1 << 20

// tarFiles is an archive's members, readable at any offset.
type tarFiles struct {
	r       io.ReaderAt
	members map[string]member
	closer  io.Closer
}

// member is where a file's content lies in the archive, or the name of the
// member that has it.
type member struct {
	off, size int64
	link      string
}

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// openArchive indexes the tar at path. A compressed one is first unpacked to
// a temporary file in tempDir.
func openArchive(ctx context.Context, path, tempDir string) (*tarFiles, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	var plain file = dirFile{f, info.Size()}
	unpacked, err := decompress(ctx, f, tempDir)
	if unpacked != nil {
		f.Close()
		plain = unpacked
	}
	if err != nil {
		plain.Close()
		return nil, err
	}
	members, err := indexTar(ctx, io.NewSectionReader(plain, 0, plain.Size()))
	if err != nil {
		plain.Close()
		return nil, err
	}
	return &tarFiles{plain, members, plain}, nil
}

// Magic numbers of gzip (RFC 1952) and of a zstd frame (RFC 8878).
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// sniff returns the first bytes of r, fewer where there are not as many.
func sniff(r io.ReaderAt) ([]byte, error) {
	p := make([]byte, 4)
	n, err := r.ReadAt(p, 0)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

// decompress unpacks f into a spool if it is compressed, and returns nil if
// it is not.
func decompress(ctx context.Context, f *os.File, tempDir string) (*spool, error) {
	head, err := sniff(f)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		if r, err = gzip.NewReader(f); err != nil {
			return nil, blob.Errorf(blob.Corrupt, "decompress gzip: %w", err)
		}
	case bytes.HasPrefix(head, zstdMagic):
		dec, err := zstd.NewReader(f)
		if err != nil {
			return nil, blob.Errorf(blob.Corrupt, "decompress zstd: %w", err)
		}
		defer dec.Close()
		r = dec
	default:
		return nil, nil
	}
	out, err := newSpool(tempDir)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(out, ctxReader{ctx, r}); err != nil {
		return out, blob.Errorf(unlessKnown(err, blob.Corrupt), "decompress: %w", err)
	}
	return out, nil
}

// unlessKnown returns the kind of err, or k where nothing is known of it.
func unlessKnown(err error, k blob.Kind) blob.Kind {
	if got := blob.KindOf(err); got != blob.Internal {
		return got
	}
	return k
}

// ctxReader fails once ctx has ended.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// indexTar finds the regular files and links of a tar. Contents are skipped,
// not read, but a file that is cut short is noticed.
func indexTar(ctx context.Context, r *io.SectionReader) (map[string]member, error) {
	members := make(map[string]member)
	tr := tar.NewReader(r)
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF) && len(members) == 0:
			return nil, blob.Errorf(blob.Corrupt, "read tar: it is empty")
		case errors.Is(err, io.EOF):
			return members, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil, blob.Errorf(blob.Corrupt, "read tar: it is cut short after %d files: %w", len(members), err)
		case err != nil:
			return nil, blob.Errorf(unlessKnown(err, blob.Corrupt), "read tar: %w", err)
		}
		if len(members) == maxMembers {
			return nil, blob.Errorf(blob.Invalid, "read tar: more than %d files", maxMembers)
		}
		name := memberName(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader stands at the content: archive/tar takes whole
			// blocks and nothing ahead.
			off, err := r.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if h.Size > r.Size()-off {
				return nil, blob.Errorf(blob.Corrupt, "read tar: it is cut short inside %q", h.Name)
			}
			members[name] = member{off: off, size: h.Size}
		case tar.TypeSymlink:
			members[name] = member{link: memberName(path.Join(path.Dir(name), h.Linkname))}
		case tar.TypeLink:
			members[name] = member{link: memberName(h.Linkname)}
		}
	}
}

func memberName(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// maxLinks is how many links lead from a name to its content at most.
const maxLinks = 8

func (t *tarFiles) find(name string) (member, error) {
	name = memberName(name)
	for range maxLinks {
		m, ok := t.members[name]
		if !ok {
			return m, fmt.Errorf("%q is not in the archive: %w", name, fs.ErrNotExist)
		}
		if m.link == "" {
			return m, nil
		}
		name = m.link
	}
	return member{}, fmt.Errorf("%q is a link that leads nowhere: %w", name, fs.ErrNotExist)
}

func (t *tarFiles) open(name string) (file, error) {
	m, err := t.find(name)
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(t.r, m.off, m.size)}, nil
}

func (t *tarFiles) has(name string) bool {
	_, err := t.find(name)
	return err == nil
}

// Close frees the archive.
func (t *tarFiles) Close() error { return t.closer.Close() }
