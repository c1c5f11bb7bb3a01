package layerdev

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/layerdev/fuse"
)

// Files are what a Device serves. Implementations are safe for concurrent
// use, and answer without waiting for data.
//
// Names and nodes must mean the same in every process that ever serves the
// mount: the kernel keeps them across a change of process.
type Files interface {
	// Lookup returns the node, NodeID(name) as a rule, and the size in bytes
	// of the file of that name. Neither may ever change.
	Lookup(name string) (node uint64, size int64, ok bool)

	// ByNode returns the file with that node, NotFound where there is none. It
	// is asked for every read, so it should be a look-up.
	ByNode(node uint64) (File, error)

	// Names returns the names of all files, for listing the directory.
	Names() []string
}

// File is one file of immutable content. *Layer implements it.
type File interface {
	// Size returns the file's length in bytes.
	Size() int64

	// Ready waits until ReadAt of the n bytes at off can answer without
	// waiting, so that no buffer is held for what has not come yet.
	Ready(ctx context.Context, off, n int64) error

	// ReadAt reads as io.ReaderAt does.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// NodeID returns the node for a file named name: the same in every process,
// never one that is reserved. Whoever serves files refuses two names with one
// node, which is as likely as two equal 63-bit hashes.
func NodeID(name string) uint64 {
	h := fnv.New128a()
	h.Write([]byte(name))
	var sum [16]byte
	// The top bit stays clear: some tools take inode numbers for signed.
	node := uint64(0)
	for _, b := range h.Sum(sum[:0])[8:] {
		node = node<<8 | uint64(b)
	}
	node &^= 1 << 63
	if node <= probeNode {
		node += probeNode + 1
	}
	return node
}

// The probe is a file only its name leads to, see Device.probePoll.
const (
	probeName = ".probe"
	probeNode = fuse.Root + 1
)

// DeviceConfig says what a Device serves and where. Dir and Files are required.
type DeviceConfig struct {
	// Dir is the folder to mount on, which must exist.
	Dir string
	// Files are what is served.
	Files Files
	// Connection, where set, is the descriptor of a mount made by an earlier
	// process, as Device.Connection returned it. The device serves that mount
	// instead of making one, beginning with what the other had not answered.
	// Mount takes ownership of it.
	Connection *os.File
	// ReadaheadKiB is how far the kernel reads ahead in a file, in KiB.
	// Default 1024, which is also the longest single request.
	ReadaheadKiB int
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

const (
	maxPages = 256 // of 4 KiB, in one request; the kernel's own limit
	maxRead  = maxPages * 4096
	// Each reader that waits may have one request or two in the background,
	// and while as many wait as there may be, nobody else is read ahead for.
	maxBackground = 16384
	congestion    = 12288
)

// Device is a mounted file system of read-only files, whose content may still
// be on its way. Its methods are safe for concurrent use.
//
// It keeps no state about what the kernel knows or has open: every request
// carries all that answering it takes. Another process that has the
// connection can therefore go on where this one stopped, even if it stopped
// in the middle.
type Device struct {
	// Constant after Mount.
	dir   string
	files Files
	log   *slog.Logger
	conn  *os.File
	raw   syscall.RawConn
	ctx   context.Context // ends when serving must
	stop  context.CancelFunc
	work  sync.WaitGroup

	// Atomics.
	idle     atomic.Int64 // goroutines waiting for a request
	released atomic.Bool  // answers are no longer ours to give

	// mu guards reads, the READs being answered, by Unique.
	mu    sync.Mutex
	reads map[uint64]*reading
}

// Path returns the path of the file of that name.
func (d *Device) Path(name string) string { return filepath.Join(d.dir, name) }

// start begins to serve.
func (d *Device) start() {
	d.idle.Store(1)
	d.work.Go(d.serve)
}

// serve answers requests, one after the other. As long as it waits, so that
// nobody listens, another does: a read whose data has not come yet holds
// nobody else up.
func (d *Device) serve() {
	buf := make([]byte, fuse.MinBuffer)
	for {
		n, err := d.conn.Read(buf)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
				continue // The request was taken back before it was read.
			}
			d.idle.Add(-1)
			d.ended(err)
			return
		}
		if d.idle.Add(-1) == 0 {
			d.idle.Add(1)
			d.work.Go(d.serve)
		}
		req, err := fuse.Parse(buf[:n])
		if err != nil {
			d.log.Error("kernel sent what is not a request", "error", err)
		} else {
			d.handle(req)
		}
		if d.idle.Add(1) > int64(runtime.GOMAXPROCS(0)) {
			d.idle.Add(-1)
			return
		}
	}
}

// ended notes why there are no more requests.
func (d *Device) ended(err error) {
	if d.ctx.Err() != nil {
		return // it was closed or released under its readers
	}
	d.stop()
	if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) &&
		!errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
		d.log.Error("layer device stopped: cannot read requests", "dir", d.dir, "error", err)
	}
}

// handle answers one request.
func (d *Device) handle(req fuse.Request) {
	var body [256]byte
	p := body[:fuse.ReplySize]
	var err error
	switch req.Op {
	case fuse.Forget, fuse.BatchForget:
		return // Nodes are not counted, and these want no answer.
	case fuse.Read:
		d.read(req)
		return
	case fuse.ReadDir:
		p, err = d.readDir(req)
	case fuse.Interrupt:
		if err = d.interrupt(req); err == nil {
			return
		}
	case fuse.Init:
		p, err = hello(p, req)
	case fuse.Lookup:
		p, err = d.lookup(p, req)
	case fuse.GetAttr:
		p, err = d.getAttr(p, req)
	case fuse.Open:
		if req.Node != probeNode {
			_, err = d.files.ByNode(req.Node)
		}
		p = fuse.AppendOpen(p, fuse.KeepCache|fuse.NoFlush)
	case fuse.OpenDir:
		p = fuse.AppendOpen(p, 0)
	case fuse.StatFS:
		p = d.statFS(p)
	case fuse.Flush, fuse.Release, fuse.ReleaseDir, fuse.Destroy:
	default:
		err = unix.ENOSYS
		if req.Op.Changes() {
			err = unix.EROFS
		}
	}
	if err != nil {
		p = p[:fuse.ReplySize]
	}
	d.reply(p, req.Unique, err)
}

// reply sends p, whose header is not filled in yet.
func (d *Device) reply(p []byte, unique uint64, cause error) {
	var errno syscall.Errno
	if cause != nil {
		errno = errnoOf(cause)
	}
	fuse.PutReply(p, unique, int32(errno))
	if d.released.Load() {
		return
	}
	// Not conn.Write, which lets only one answer at a time through.
	var err error
	cerr := d.raw.Control(func(fd uintptr) { _, err = unix.Write(int(fd), p) })
	// ENOENT: the asker is gone, or the request was sent again.
	if err = errors.Join(cerr, err); err != nil && !errors.Is(err, unix.ENOENT) && d.ctx.Err() == nil {
		d.log.Error("cannot answer the kernel", "dir", d.dir, "error", err)
	}
}

func hello(p []byte, req fuse.Request) ([]byte, error) {
	h, err := req.Hello()
	if err != nil {
		return p, err
	}
	if h.Major != fuse.Major || h.Minor < fuse.MinMinor {
		return p, fmt.Errorf("FUSE protocol %d.%d is too old: %w", h.Major, h.Minor, unix.EPROTO)
	}
	// AsyncDirect is for EROFS with direct I/O: its readahead then goes on in
	// the background, and who waits for a page can be killed.
	const want = fuse.AsyncRead | fuse.AsyncDirect | fuse.BigWrites | fuse.ParallelDirOps | fuse.AbortError |
		fuse.MaxPages | fuse.ExplicitInval | fuse.InitExt | fuse.HasResend
	h = fuse.Hello{
		Major: fuse.Major, Minor: min(fuse.Minor, h.Minor), Flags: h.Flags & want,
		MaxReadahead: maxRead, MaxBackground: maxBackground, Congestion: congestion, MaxPages: maxPages,
	}
	return fuse.AppendHello(p, h), nil
}

// fileAttr describes a file. Only root may read it: it is the content of
// images, whoever they belong to.
func fileAttr(node uint64, size int64) fuse.Attr {
	return fuse.Attr{Node: node, Size: size, Mode: unix.S_IFREG | 0o400, Links: 1, Valid: fuse.Forever}
}

func (d *Device) lookup(p []byte, req fuse.Request) ([]byte, error) {
	name, err := req.Name()
	if err != nil {
		return p, err
	}
	if name == probeName {
		return fuse.AppendEntry(p, fileAttr(probeNode, 0)), nil
	}
	node, size, ok := d.files.Lookup(name)
	if !ok || req.Node != fuse.Root {
		return p, unix.ENOENT
	}
	return fuse.AppendEntry(p, fileAttr(node, size)), nil
}

func (d *Device) getAttr(p []byte, req fuse.Request) ([]byte, error) {
	if req.Node == fuse.Root {
		// Never cached, so that a look at the directory tells whether anybody
		// serves it.
		return fuse.AppendAttr(p, fuse.Attr{Node: fuse.Root, Mode: unix.S_IFDIR | 0o500, Links: 2}), nil
	}
	if req.Node == probeNode {
		return fuse.AppendAttr(p, fileAttr(probeNode, 0)), nil
	}
	f, err := d.files.ByNode(req.Node)
	if err != nil {
		return p, err
	}
	return fuse.AppendAttr(p, fileAttr(req.Node, f.Size())), nil
}

func (d *Device) statFS(p []byte) []byte {
	var blocks, files uint64
	for _, name := range d.files.Names() {
		if _, size, ok := d.files.Lookup(name); ok {
			files++
			blocks += uint64(size) / 4096
		}
	}
	return fuse.AppendStatFS(p, blocks, files)
}

func (d *Device) readDir(req fuse.Request) ([]byte, error) {
	p := make([]byte, fuse.ReplySize, 4096)
	off, size, err := req.Span()
	if err != nil {
		return p, err
	}
	names := d.files.Names()
	for i := min(off, int64(len(names))); i < int64(len(names)); i++ {
		node, _, known := d.files.Lookup(names[i])
		if !known {
			continue
		}
		var ok bool
		p, ok = fuse.AppendDirent(p, fuse.ReplySize+size, fuse.Dirent{Node: node, Next: uint64(i + 1), Type: unix.DT_REG, Name: names[i]})
		if !ok {
			break
		}
	}
	return p, nil
}

// Reply buffers in two sizes: most readers use windows of 128 KiB, and a
// sequential one the longest request there is.
var smallReplies, largeReplies = sync.Pool{New: newReply(128 << 10)}, sync.Pool{New: newReply(maxRead)}

func newReply(size int) func() any {
	return func() any {
		p := make([]byte, fuse.ReplySize+size)
		return &p
	}
}

func (d *Device) read(req fuse.Request) {
	ctx, cancel := context.WithCancel(d.ctx)
	d.mu.Lock()
	d.reads[req.Unique] = &reading{cancel: cancel, ctx: ctx, pid: req.Pid}
	d.mu.Unlock()
	err := d.answerRead(ctx, req)
	d.mu.Lock()
	delete(d.reads, req.Unique)
	d.mu.Unlock()
	cancel()
	if err != nil {
		d.reply(make([]byte, fuse.ReplySize), req.Unique, err)
	}
}

// answerRead answers a READ, or returns the error to answer it with.
func (d *Device) answerRead(ctx context.Context, req fuse.Request) error {
	off, size, err := req.Span()
	if err != nil {
		return err
	}
	f, err := d.files.ByNode(req.Node)
	if err != nil {
		return err
	}
	size = int(min(int64(size), max(0, f.Size()-off)))
	if size > maxRead {
		return unix.EINVAL
	}
	if err := f.Ready(ctx, off, int64(size)); err != nil {
		return err
	}
	pool := &smallReplies
	if size > 128<<10 {
		pool = &largeReplies
	}
	bp := pool.Get().(*[]byte)
	defer pool.Put(bp)
	p := (*bp)[:fuse.ReplySize+size]
	n, err := f.ReadAt(ctx, p[fuse.ReplySize:], off)
	if n < size {
		// The kernel would take less than it asked for as the end of the file.
		return fmt.Errorf("read %d bytes at %d, got %d: %w", size, off, n, errors.Join(err, unix.EIO))
	}
	d.reply(p, req.Unique, nil)
	return nil
}

// errnos says what a failed read looks like to the program that reads.
var errnos = map[blob.Kind]syscall.Errno{
	blob.Internal:     unix.EIO,
	blob.Invalid:      unix.EINVAL,
	blob.NotFound:     unix.ENOENT,
	blob.Unauthorized: unix.EACCES,
	blob.Forbidden:    unix.EACCES,
	blob.Corrupt:      unix.EIO,
	blob.Unavailable:  unix.EIO,
	blob.Busy:         unix.EIO, // EAGAIN would promise poll(2) readiness.
	blob.Timeout:      unix.EIO,
	blob.Full:         unix.ENOSPC,
	blob.Canceled:     unix.EINTR,
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 {
		var kind *blob.Error
		if !errors.As(err, &kind) {
			return errno
		}
	}
	if errno, ok := errnos[blob.KindOf(err)]; ok {
		return errno
	}
	return unix.EIO
}

// Connection returns a new descriptor of the device's connection to the
// kernel. As long as anybody holds one, the death of this process makes
// readers wait instead of fail, and whoever passes it to Mount continues the
// service. The caller closes it.
func (d *Device) Connection() (*os.File, error) {
	fd := -1
	var err error
	cerr := d.raw.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("duplicate layer device connection: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// Release stops serving and leaves the mount to whoever holds another
// descriptor of the connection. Reads being answered stay unanswered: the
// next server gets them again. It returns when nothing of the device runs.
func (d *Device) Release() error {
	d.released.Store(true)
	d.stop()
	// Past deadlines end the reads that wait for requests.
	err := d.conn.SetReadDeadline(time.Unix(1, 0))
	if err != nil {
		return fmt.Errorf("release layer device at %s: %w", d.dir, err)
	}
	d.work.Wait()
	return d.conn.Close()
}

// Done returns a channel that is closed when the device serves no longer: its
// methods ended it, or the mount was taken away or its connection aborted by
// somebody else.
func (d *Device) Done() <-chan struct{} { return d.ctx.Done() }

// Close unmounts the file system and returns when it is gone. It fails with
// Busy, and the device goes on serving, while a file is open or mounted; see
// Abort.
func (d *Device) Close() error { return d.unmount(0) }

// Abort takes the file system away whoever uses it: every read that is waited
// for, and every later one of data the kernel does not have, fails. It
// returns when nothing of the device runs.
func (d *Device) Abort() error { return d.unmount(unix.MNT_FORCE | unix.MNT_DETACH) }
