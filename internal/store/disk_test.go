package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

var (
	errNoSpace = syscall.ENOSPC
	errPower   = errors.New("power is off")
)

// disk stands between a store and the file system. It remembers every
// operation that changed something, fails those it was told to, and loses
// power after a number of them.
type disk struct {
	// Constant after the store was opened.
	total, free int64 // what the store is told; 0 means the truth
	limit       int   // operations until the power fails; 0 means never

	// mu guards what follows.
	mu    sync.Mutex
	log   []Op
	names []OpName // to fail
	err   error
	match func(Op) bool
}

func (d *disk) fs() FS {
	fs := FS{Before: d.before}
	if d.total > 0 {
		fs.Space = func(string) (int64, int64, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.total, d.free, nil
		}
	}
	return fs
}

// fail makes operations with the given names fail with err; nil ends that.
func (d *disk) fail(err error, names ...OpName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.names = err, names
}

func (d *disk) setFree(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = n
}

func (d *disk) before(op Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.limit > 0 && len(d.log) >= d.limit {
		return errPower
	}
	if d.err != nil && slices.Contains(d.names, op.Name) && (d.match == nil || d.match(op)) {
		return d.err
	}
	switch op.Name {
	case OpRead, OpOpen, OpTouch:
	default:
		op.Data = slices.Clone(op.Data)
		d.log = append(d.log, op)
	}
	return nil
}

// platter is what a power cut leaves: files by path as they were synced, and
// what was not synced as the test decides.
type platter struct {
	from, to string
	// lost decides, for operation number i, which was not synced in time, what
	// becomes of it.
	lost func(i int) fate
}

type fate int

const (
	survives fate = iota
	vanishes
	tears // half of it is written
)

// rebuild replays ops, which a store did below p.from, below p.to. Writes
// that a later sync of the same file covers are kept, as are names that a
// later sync of their folder covers; for the others p.lost is asked. A file
// whose size was set keeps its size.
func (p platter) rebuild(t *testing.T, ops []Op) {
	t.Helper()
	check := func(err error) {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("rebuild: %v", err)
		}
	}
	check(os.MkdirAll(filepath.Join(p.to, "blobs"), 0o700))
	for i, op := range ops {
		f := survives
		if !synced(ops, i) {
			f = p.lost(i)
		}
		if f == vanishes {
			continue
		}
		path := p.move(op.Path)
		switch op.Name {
		case OpMkdir:
			check(os.MkdirAll(path, 0o700))
		case OpCreate:
			check(os.MkdirAll(filepath.Dir(path), 0o700))
			check(os.WriteFile(path, nil, 0o600))
		case OpTruncate:
			check(os.Truncate(path, op.Off))
		case OpRename:
			check(os.Rename(path, p.move(op.To)))
		case OpRemove:
			check(os.RemoveAll(path))
		case OpWrite:
			if f == tears {
				op.Data = op.Data[:len(op.Data)/2]
			}
			h, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				check(err)
				continue
			}
			_, err = h.WriteAt(op.Data, op.Off)
			check(errors.Join(err, h.Close()))
		}
	}
}

func (p platter) move(path string) string {
	rel, err := filepath.Rel(p.from, path)
	if err != nil {
		return fmt.Sprintf("%s is not below %s", path, p.from)
	}
	return filepath.Join(p.to, rel)
}

// synced reports whether operation i was made durable by a later one.
func synced(ops []Op, i int) bool {
	op := ops[i]
	for _, later := range ops[i+1:] {
		switch op.Name {
		case OpWrite, OpTruncate:
			// The file may have been renamed since.
			if later.Name == OpSync && (later.Path == op.Path || renamed(ops[i+1:], op.Path) == later.Path) {
				return true
			}
		case OpRename, OpCreate, OpMkdir, OpRemove:
			if later.Name == OpSyncDir && later.Path == filepath.Dir(op.Path) {
				return true
			}
		}
	}
	return false
}

func renamed(ops []Op, path string) string {
	for _, op := range ops {
		if op.Name == OpRename && op.Path == path {
			return op.To
		}
	}
	return ""
}
