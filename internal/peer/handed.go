package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// line is a connection to a peer that keeps the descriptors that come over it.
// It is used by one goroutine, but for Close.
type line struct {
	*net.UnixConn
	files []*os.File
}

// dial connects to the peer.
func (c *Client) dial(ctx context.Context) (*line, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, c.unreachable(err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("ask the peer on %s: %T is no unix socket", c.socket, conn), conn.Close())
	}
	return &line{UnixConn: u}, nil
}

// unreachable says what it means that err came of asking the peer.
func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s: start one with: skimmer up", ErrNotRunning, c.socket)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w for this user on %s: permission denied", ErrNotRunning, c.socket)
	}
	return fmt.Errorf("ask the peer on %s: %w", c.socket, err)
}

// Read implements io.Reader.
func (l *line) Read(p []byte) (int, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	n, got, _, _, err := l.ReadMsgUnix(p, rights)
	if got > 0 {
		l.take(rights[:got])
	}
	n = max(n, 0) // it is -1 where it failed
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// take keeps the descriptors in what came beside bytes.
func (l *line) take(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return // what should have come is missed later
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			l.files = append(l.files, os.NewFile(uintptr(fd), "file of the peer"))
		}
	}
}

// close closes the descriptors too. That the connection was closed, when its
// context ended, is no error.
func (l *line) close() error {
	for _, f := range l.files {
		_ = f.Close() // it was only read
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// answer is the body of an answer, with the connection it comes over.
type answer struct {
	io.ReadCloser
	l    *line
	stop func() bool // of what closes the connection when the request's context ends
}

// Close implements io.Closer.
func (a *answer) Close() error {
	a.stop()
	err := a.l.close() // first, or what is left would be read
	_ = a.ReadCloser.Close()
	return err
}

// ask sends a request on a connection of its own, which ends with ctx, and returns
// the head of the answer.
func (c *Client) ask(ctx context.Context, req *http.Request) (*http.Response, *handed, error) {
	l, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // who reads is told
	h := &handed{c: c, ctx: ctx, l: l, r: bufio.NewReaderSize(l, maxMessage), stop: stop}
	var resp *http.Response
	if err = req.Write(l); err == nil {
		resp, err = http.ReadResponse(h.r, req)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, nil, errors.Join(c.unreachable(err), h.Close())
	}
	resp.Body = &answer{resp.Body, l, stop}
	return resp, h, nil
}

// handed is what is left of a connection over which a descriptor came, or over
// which is said how far a file is that is only to be kept. It is used by one
// goroutine.
type handed struct {
	// Constant.
	c    *Client
	ctx  context.Context
	l    *line
	r    *bufio.Reader
	stop func() bool

	f      *File
	off    int64 // of the next byte that is read
	have   int64 // up to where it is in the descriptor
	inline int64 // bytes that come next over the connection
	slow   bool  // the kernel cannot copy
	err    error
}

// Close implements io.Closer.
func (h *handed) Close() error {
	h.stop()
	return h.l.close()
}

// await waits until there is a byte to be read.
func (h *handed) await() error {
	for h.err == nil && h.off >= h.have && h.inline == 0 {
		h.next()
	}
	if h.off < h.have || h.inline > 0 {
		return nil
	}
	return h.err
}

// next reads a message, and those that have come by then too.
func (h *handed) next() {
	for more := true; more && h.err == nil && h.inline == 0; more = h.r.Buffered() > 0 {
		m, err := readMessage(h.r)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // there has to be an end
		}
		switch {
		case err != nil && h.ctx.Err() != nil:
			h.err = blob.Errorf(blob.Canceled, "read the answer of the peer on %s: %w", h.c.socket, h.ctx.Err())
		case err != nil:
			h.err = blob.Errorf(blob.Unavailable, "read the answer of the peer on %s: %w", h.c.socket, err)
		case m.kind == "end":
			h.err = h.over(m.end)
		case m.n > h.f.Range.End() || m.kind == "have" && m.n < h.have || m.kind == "data" && m.n > h.f.Range.End()-max(h.off, h.have):
			h.err = blob.Errorf(blob.Internal, "read the answer of the peer on %s: %s %d is outside of the range", h.c.socket, m.kind, m.n)
		case m.kind == "have":
			h.have = m.n
		default:
			h.inline = m.n
		}
	}
}

// over takes the end, and returns what it means for who reads.
func (h *handed) over(e ending) error {
	t := &h.f.Traffic
	t.Local.Store(e.Local)
	t.Peers.Store(e.Peers)
	t.Origin.Store(e.Origin)
	h.f.Verified, h.f.Kept = e.Verified, e.Kept
	if err := e.err(); err != nil {
		return err
	}
	if end := h.f.Range.End(); max(h.off, h.have) != end {
		return blob.Errorf(blob.Unavailable, "read the answer of the peer on %s: it ends %d bytes early", h.c.socket, end-max(h.off, h.have))
	}
	return io.EOF
}

// Read implements io.Reader.
func (h *handed) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := h.await(); err != nil {
		return 0, err
	}
	if len(h.l.files) == 0 {
		return 0, blob.Errorf(blob.Invalid, "read what is only kept")
	}
	if h.off < h.have {
		n, err = h.l.files[0].ReadAt(p[:min(int64(len(p)), h.have-h.off)], h.off)
	} else {
		n, err = h.r.Read(p[:min(int64(len(p)), h.inline)])
		h.inline -= int64(n)
	}
	h.off += int64(n)
	if n > 0 {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, blob.Errorf(blob.Unavailable, "read what the peer on %s hands out: %w", h.c.socket, err)
}

// copyBuffer is how many bytes are copied at once where the kernel cannot.
const copyBuffer = 1 << 20

// copyTo copies some of what there is to dst, at an offset.
func (h *handed) copyTo(dst *os.File, at int64) (int64, error) {
	if err := h.await(); err != nil {
		return 0, err
	}
	if h.off < h.have && !h.slow {
		n, err := h.clone(dst, at)
		if n > 0 || err != nil {
			return n, err
		}
		h.slow = true
	}
	buf := make([]byte, copyBuffer)
	n, err := h.Read(buf)
	if n > 0 {
		_, err = dst.WriteAt(buf[:n], at)
	}
	return int64(n), err
}

// maxClone is how many bytes the kernel is asked to copy at once.
const maxClone = 64 << 20

// clone has the kernel copy, which shares the disk's blocks where the file system
// can do that. It returns 0 and no error where it cannot do either.
func (h *handed) clone(dst *os.File, at int64) (int64, error) {
	if len(h.l.files) == 0 {
		return 0, nil
	}
	from, to := h.off, at
	n, err := unix.CopyFileRange(int(h.l.files[0].Fd()), &from, int(dst.Fd()), &to, int(min(h.have-h.off, maxClone)), 0)
	switch {
	case err == nil:
		h.off += int64(n)
		return int64(n), nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG):
		return 0, &os.PathError{Op: "write", Path: dst.Name(), Err: err}
	}
	return 0, nil // of another file system, or one that cannot
}

// Handed is whether the bytes are in a file of the peer's, so that CopyTo need not
// read them.
func (f *File) Handed() bool {
	_, ok := f.ReadCloser.(*handed)
	return ok
}

// CopyTo waits until there is more of the file and copies some of it to dst, at an
// offset, in the kernel where that can be. It returns how many bytes, and errors as
// Read does. It may take turns with Read, and is for files that are Handed.
func (f *File) CopyTo(dst *os.File, at int64) (int64, error) {
	h, ok := f.ReadCloser.(*handed)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return h.copyTo(dst, at)
}

// Keeping is a file that is brought into the peer's store. It is used by one
// goroutine, which closes it.
type Keeping struct {
	// File says what it is; it is not to be read.
	File
	h *handed
}

// Next waits until more of the range is in the store and returns up to which byte of
// the file it is; io.EOF when that was said of all of it. Errors: those of reading the
// file, and Full if the store cannot keep it.
func (k *Keeping) Next() (int64, error) {
	err := k.h.await()
	if k.h.inline > 0 {
		err = fmt.Errorf("keep a file: the peer on %s sends it", k.h.c.socket)
	}
	if err == nil {
		k.h.off = k.h.have
	}
	return k.h.off, err
}

// KeepFile has a part of a file brought into the store of the running peer. Errors:
// those of OpenFile, and Invalid for a file that nobody would find there again.
func (c *Client) KeepFile(ctx context.Context, name FileName, part Part) (*Keeping, error) {
	req, err := c.fileRequest(ctx, name, part, true)
	if err != nil {
		return nil, err
	}
	resp, h, err := c.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	k := &Keeping{h: h}
	if err := c.file(&k.File, resp, h); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.Join(fmt.Errorf("keep a file: the peer on %s is of a version that cannot do that", c.socket), k.Close())
	}
	return k, nil
}
