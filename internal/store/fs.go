package store

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// OpName names a file operation, for faults that are meant for one of them.
type OpName string

// The operations the store performs, each named after its system call.
const (
	OpMkdir    OpName = "mkdir"
	OpCreate   OpName = "create"
	OpOpen     OpName = "open"
	OpRead     OpName = "read"
	OpWrite    OpName = "write"
	OpTruncate OpName = "truncate"
	OpSync     OpName = "sync"
	OpSyncDir  OpName = "syncdir"
	OpRename   OpName = "rename"
	OpRemove   OpName = "remove"
	OpTouch    OpName = "touch"
)

// Op is a file operation that is about to happen.
type Op struct {
	Name OpName
	Path string
	// To is the new path of a rename.
	To string
	// Off is where a read or write starts, or the size a truncate sets, in
	// bytes.
	Off int64
	// Data is what a write writes; valid, and not to be changed, during the
	// call.
	Data []byte
}

// FS is the store's way to the file system. The zero value is the operating
// system's; the fields let a test stand between the two. Set it before Open.
type FS struct {
	// Before, where set, is called ahead of every operation. An error it
	// returns becomes the operation's, which then does not happen. It must be
	// safe for concurrent use.
	Before func(Op) error
	// Space, where set, answers instead of statfs(2): the bytes of the file
	// system that dir is on, in all and free for this process.
	Space func(dir string) (total, free int64, err error)
}

func (f *FS) before(op Op) error {
	if f.Before == nil {
		return nil
	}
	if err := f.Before(op); err != nil {
		return &fs.PathError{Op: string(op.Name), Path: op.Path, Err: err}
	}
	return nil
}

func (f *FS) space(dir string) (total, free int64, err error) {
	if f.Space != nil {
		return f.Space(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// mkdirAll makes dir and what is missing above it, one operation each.
func (f *FS) mkdirAll(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := f.mkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := f.before(Op{Name: OpMkdir, Path: dir}); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	return nil
}

// create opens path for reading and writing, empty.
func (f *FS) create(path string) (*file, error) {
	if err := f.before(Op{Name: OpCreate, Path: path}); err != nil {
		return nil, err
	}
	return f.wrap(os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600))
}

// open opens path, which exists, for reading and writing.
func (f *FS) open(path string) (*file, error) {
	if err := f.before(Op{Name: OpOpen, Path: path}); err != nil {
		return nil, err
	}
	return f.wrap(os.OpenFile(path, os.O_RDWR, 0))
}

func (f *FS) wrap(osf *os.File, err error) (*file, error) {
	if err != nil {
		return nil, err
	}
	return &file{fs: f, os: osf}, nil
}

// readFile returns the content of path, which may have up to limit bytes.
func (f *FS) readFile(path string, limit int64) ([]byte, error) {
	if err := f.before(Op{Name: OpRead, Path: path}); err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, &fs.PathError{Op: "read", Path: path, Err: unix.EFBIG}
	}
	return os.ReadFile(path)
}

func (f *FS) rename(from, to string) error {
	if err := f.before(Op{Name: OpRename, Path: from, To: to}); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// remove deletes a file or an empty directory; one that is not there is
// deleted already.
func (f *FS) remove(path string) error {
	if err := f.before(Op{Name: OpRemove, Path: path}); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// touch sets the times of path.
func (f *FS) touch(path string, t time.Time) error {
	if err := f.before(Op{Name: OpTouch, Path: path}); err != nil {
		return err
	}
	return os.Chtimes(path, t, t)
}

// syncFile makes the content of the file path durable.
func (f *FS) syncFile(path string) error {
	h, err := f.open(path)
	if err != nil {
		return err
	}
	defer h.close()
	return h.sync()
}

// syncDir makes the names in dir durable.
func (f *FS) syncDir(dir string) error {
	if err := f.before(Op{Name: OpSyncDir, Path: dir}); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// file is an open file whose operations go through an FS. It is safe for
// concurrent use.
type file struct {
	fs     *FS
	os     *os.File
	cached atomic.Bool // all that is read and written goes by the page cache
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(Op{Name: OpRead, Path: f.os.Name(), Off: off}); err != nil {
		return 0, err
	}
	return f.os.ReadAt(p, off)
}

func (f *file) writeAt(p []byte, off int64) error {
	if err := f.fs.before(Op{Name: OpWrite, Path: f.os.Name(), Off: off, Data: p}); err != nil {
		return err
	}
	_, err := f.os.WriteAt(p, off)
	return err
}

// writeThrough is writeAt for bytes that are not read again soon. Where the kernel
// can (Linux 6.14, RWF_DONTCACHE in pwritev2(2)) they are in memory only until they
// are on disk, and push nothing out of the page cache.
func (f *file) writeThrough(p []byte, off int64) error {
	if f.cached.Load() {
		return f.writeAt(p, off)
	}
	if err := f.fs.before(Op{Name: OpWrite, Path: f.os.Name(), Off: off, Data: p}); err != nil {
		return err
	}
	n, err := f.dontCache(unix.Pwritev2, "write", p, off)
	if err != nil || n == len(p) {
		return err
	}
	_, err = f.os.WriteAt(p[n:], off+int64(n)) // it says why the rest was not taken
	return err
}

// readThrough is readAt for bytes that are not read again soon: what is not in the
// page cache does not stay there either.
func (f *file) readThrough(p []byte, off int64) (int, error) {
	if f.cached.Load() {
		return f.readAt(p, off)
	}
	if err := f.fs.before(Op{Name: OpRead, Path: f.os.Name(), Off: off}); err != nil {
		return 0, err
	}
	n, err := f.dontCache(unix.Preadv2, "read", p, off)
	if err != nil || n == len(p) {
		return n, err
	}
	m, err := f.os.ReadAt(p[n:], off+int64(n))
	return n + m, err
}

// dontCache has the kernel read or write what it does at once of p. It does nothing,
// and f is as usual from then on, if the kernel or the file system knows of nothing
// of the kind.
func (f *file) dontCache(do func(fd int, p [][]byte, off int64, flags int) (int, error), name string, p []byte, off int64) (n int, err error) {
	conn, err := f.os.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := conn.Control(func(fd uintptr) {
		for {
			if n, err = do(int(fd), [][]byte{p}, off, unix.RWF_DONTCACHE); err != unix.EINTR {
				break
			}
		}
	})
	switch err = cmp.Or(ctlErr, err); {
	case err == unix.EOPNOTSUPP || err == unix.EINVAL || err == unix.ENOSYS:
		f.cached.Store(true)
		return 0, nil
	case err != nil:
		return 0, &fs.PathError{Op: name, Path: f.os.Name(), Err: err}
	}
	return n, nil
}

func (f *file) truncate(size int64) error {
	if err := f.fs.before(Op{Name: OpTruncate, Path: f.os.Name(), Off: size}); err != nil {
		return err
	}
	return f.os.Truncate(size)
}

func (f *file) sync() error {
	if err := f.fs.before(Op{Name: OpSync, Path: f.os.Name()}); err != nil {
		return err
	}
	return f.os.Sync()
}

// close gives the descriptor back; what matters was synced before, so there
// is no error to tell.
func (f *file) close() { _ = f.os.Close() }

// allocated returns how many bytes of disk the file path takes.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}
