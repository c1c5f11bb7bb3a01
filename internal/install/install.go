// Package install writes the configuration a node needs into other programs'
// files, so that nobody has to know their formats: containerd's config.toml,
// and a systemd unit.
//
// Nothing is written before the caller has seen it: what is to be done is a
// [Change], which can be shown as a diff or applied. A file that is edited
// keeps every byte that is not about us, comments and order included; what is
// replaced is remembered in a backup beside it, from which uninstall puts it
// back.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"skimmer/internal/blob"
)

// BackupSuffix is what the name of a file's backup ends in. The backup is
// made before the first change and removed by uninstall.
const BackupSuffix = ".skimmer-backup"

// maxFile limits the size of files that are edited, in bytes.
const maxFile = 1 << 20

// Change is what is to become of one file.
type Change struct {
	// Path is the file.
	Path string
	// Before and After are its contents; nil means that there is no file.
	Before, After []byte
	// Notes are what the user should know, a line each.
	Notes []string

	backup       bool // keep Before as the backup where there is none
	removeBackup bool
	removeDir    bool // where the file goes and leaves it empty
}

// Empty reports whether there is nothing to do.
func (c *Change) Empty() bool {
	return bytes.Equal(c.Before, c.After) && (c.Before == nil) == (c.After == nil) && !c.removeBackup
}

// Diff returns the change as a unified diff; empty where the text stays.
func (c *Change) Diff() string {
	from, to := c.Path, c.Path
	if c.Before == nil {
		from = "/dev/null"
	}
	if c.After == nil {
		to = "/dev/null"
	}
	return unified(from, to, string(c.Before), string(c.After))
}

// Apply does it. The file is replaced as a whole, so that no reader sees half
// of it, and keeps its mode and owner; a symbolic link stays one. Nothing is
// done if the file is not Before any more (Busy).
func (c *Change) Apply() error {
	if c.Empty() {
		return nil
	}
	path := c.Path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	now, err := readFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, c.Before) || (now == nil) != (c.Before == nil) {
		return blob.Errorf(blob.Busy, "write %s: somebody else changed it in the meantime", c.Path)
	}
	backup := c.Path + BackupSuffix
	if c.backup && c.Before != nil {
		if err := writeOnce(backup, path, c.Before); err != nil {
			return fmt.Errorf("keep a backup of %s: %w", c.Path, err)
		}
	}
	if c.After == nil {
		err = os.Remove(path)
	} else {
		err = replace(path, c.After)
	}
	if err == nil && c.After == nil && c.removeDir {
		_ = os.Remove(filepath.Dir(path)) // what others have there stays
	}
	if err == nil && c.removeBackup {
		if err = os.Remove(backup); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", c.Path, err)
	}
	return nil
}

// readFile returns a file's content, never nil, or nil if there is none.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, blob.Errorf(blob.Invalid, "read %s: it is larger than %d bytes", path, maxFile)
	}
	return append(make([]byte, 0, len(text)+1), text...), nil
}

// writeOnce writes a file like the one at path, unless there is one.
func writeOnce(name, path string, text []byte) error {
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	return replaceLike(name, path, text)
}

// replace puts text in the place of the file at path.
func replace(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replaceLike(path, path, text)
}

// replaceLike makes name a file with the mode and owner of the one at model,
// where there is one.
func replaceLike(name, model string, text []byte) error {
	mode, uid, gid := fs.FileMode(0o644), -1, -1
	if info, err := os.Stat(model); err == nil {
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode))
	if uid >= 0 {
		err = errors.Join(err, f.Chown(uid, gid))
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
