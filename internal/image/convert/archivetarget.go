package convert

import (
	"archive/tar"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// archiveTarget writes an OCI archive: a layout in a temporary directory
// beside it, and a tar of that at the end.
type archiveTarget struct {
	*layoutTarget
	path string
}

func createArchive(n Name) (target, error) {
	dir, err := os.MkdirTemp(filepath.Dir(n.Path), ".skimmer-archive-*")
	if err != nil {
		return nil, blob.Errorf(unlessKnown(err, blob.Invalid), "create archive %v: %w", n, err)
	}
	return &archiveTarget{&layoutTarget{n, dir}, n.Path}, nil
}

func (t *archiveTarget) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	if err := t.layoutTarget.commit(ctx, d, raw); err != nil {
		return err
	}
	err := replaceFile(t.path, func(w io.Writer) error { return writeTar(ctx, w, t.dir) })
	if err != nil {
		return blob.Errorf(blob.KindOf(err), "write %v: %w", t.name, err)
	}
	return nil
}

func (t *archiveTarget) close() error { return os.RemoveAll(t.dir) }

// writeTar writes the files below dir, in order of their names and with
// nothing in the headers that differs from one run to the next.
func writeTar(ctx context.Context, w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: filepath.ToSlash(name) + "/", Mode: 0o755})
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size()}); err != nil {
			return err
		}
		_, err = io.Copy(tw, ctxReader{ctx, f})
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}
