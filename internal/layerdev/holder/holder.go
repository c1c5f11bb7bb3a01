package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// Config says which holder is meant and how to start it. Socket is required,
// Command where one may have to be started.
type Config struct {
	// Socket is the absolute path of its socket, of at most 100 bytes; the
	// folder must exist.
	Socket string
	// Command starts a holder with that socket: a program that calls Run. It
	// is run with "/" as its folder, so its path is absolute.
	Command []string
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Holder stands for the process that keeps descriptors. It keeps no
// connection, so it goes on working when the process is replaced. Its methods
// are safe for concurrent use and take at most some seconds. Their errors are
// Unavailable where the process cannot be reached, Forbidden where it is one
// of another user, Invalid for names that are not of 1 to 64 letters, digits,
// '.', '-' and '_'.
type Holder struct {
	cfg Config
}

// startLimit is how long to wait for a process to start, tryAgain how long
// between looks for one that another process starts or that is just ending.
const (
	startLimit = 10 * time.Second
	tryAgain   = 10 * time.Millisecond
)

// Ensure returns the holder with that socket, after starting it where there
// is none. Of several processes that call it at once all get the same. The
// holder is nobody's child and lives on when this process ends in any way.
//
// Errors: those of a Holder, and Timeout.
func Ensure(ctx context.Context, cfg Config) (*Holder, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Holder{cfg}
	if err := checkSocket(cfg.Socket); err != nil {
		return nil, fmt.Errorf("find descriptor holder at %s: %w", cfg.Socket, err)
	}
	if err := h.ensure(ctx); err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "start descriptor holder at %s: %w", cfg.Socket, err)
	}
	return h, nil
}

func (h *Holder) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		_, _, err := h.talk(request{op: opPing}, -1)
		if err == nil || !absent(err) {
			return err
		}
		err = start(ctx, h.cfg)
		switch {
		case err == nil:
			h.cfg.Logger.Info("started the descriptor holder", "socket", h.cfg.Socket)
			continue
		case !errors.Is(err, blob.Busy):
			return err
		}
		select {
		case <-time.After(tryAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Put makes the holder keep a duplicate of f under a name, in place of what
// it has of that name, and starts it if it has gone. A holder that was killed
// forgets everything; who wants to be sure puts again now and then.
func (h *Holder) Put(name string, f *os.File) error {
	if err := h.put(name, f); err != nil {
		return blob.Errorf(blob.KindOf(err), "give descriptor %q to the holder at %s: %w", name, h.cfg.Socket, err)
	}
	return nil
}

func (h *Holder) put(name string, f *os.File) error {
	if err := checkName(name); err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	try := func() error {
		var err error
		cerr := raw.Control(func(fd uintptr) { _, _, err = h.talk(request{opPut, name}, int(fd)) })
		return errors.Join(cerr, err)
	}
	if err := try(); !absent(err) || len(h.cfg.Command) == 0 {
		return err
	}
	// context.Background: ensure ends it after startLimit.
	if err := h.ensure(context.Background()); err != nil {
		return err
	}
	return try()
}

// Get returns a duplicate of what is kept under a name, which the caller
// closes. It is an fs.ErrNotExist error if there is none.
func (h *Holder) Get(name string) (*os.File, error) {
	err := checkName(name)
	fd := -1
	if err == nil {
		_, fd, err = h.talk(request{opGet, name}, -1)
	}
	if absent(err) {
		err = fs.ErrNotExist // Who is not there holds nothing.
	}
	if err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "get descriptor %q of the holder at %s: %w", name, h.cfg.Socket, err)
	}
	if fd < 0 {
		return nil, blob.Errorf(blob.Internal, "get descriptor %q of the holder at %s: none came", name, h.cfg.Socket)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Drop makes the holder close what it keeps under a name, if it does.
func (h *Holder) Drop(name string) error {
	err := checkName(name)
	if err == nil {
		_, _, err = h.talk(request{opDrop, name}, -1)
	}
	if err == nil || absent(err) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return blob.Errorf(blob.KindOf(err), "drop descriptor %q of the holder at %s: %w", name, h.cfg.Socket, err)
}

// Stop ends the process, closing all it keeps. Where there is none it does
// nothing.
func (h *Holder) Stop() error {
	_, _, err := h.talk(request{op: opStop}, -1)
	if err == nil || absent(err) {
		return nil
	}
	return blob.Errorf(blob.KindOf(err), "stop the holder at %s: %w", h.cfg.Socket, err)
}

// errAbsent is the cause of errors about a holder that is not there.
var errAbsent = blob.Errorf(blob.Unavailable, "no holder listens")

func absent(err error) bool { return errors.Is(err, errAbsent) }

// talk has a conversation, and another where the holder hung up without an
// answer: it may have died of it, which the next one finds out, and may not have.
// It returns the descriptor that came, or -1.
func (h *Holder) talk(r request, fd int) (answer reply, got int, err error) {
	for range 3 {
		if answer, got, err = h.converse(r, fd); !errors.Is(err, io.EOF) {
			break
		}
		h.cfg.Logger.Warn("the descriptor holder hung up without an answer", "socket", h.cfg.Socket, "error", err)
	}
	return answer, got, err
}

// converse has one conversation.
func (h *Holder) converse(r request, fd int) (reply, int, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: h.cfg.Socket, Net: "unixpacket"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return reply{}, -1, errAbsent
	}
	if err != nil {
		return reply{}, -1, blob.Errorf(blob.Unavailable, "connect: %w", err)
	}
	defer c.Close()
	if err := checkPeer(c); err != nil {
		return reply{}, -1, err
	}
	if err := c.SetDeadline(time.Now().Add(talkLimit)); err != nil {
		return reply{}, -1, err
	}
	p, got, err := []byte(nil), -1, send(c, r.bytes(), fd)
	if err == nil {
		p, got, err = receive(c)
	}
	if err == nil && len(p) == 0 || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return reply{}, -1, errAbsent // It ended before it took notice.
	}
	if err != nil {
		return reply{}, -1, blob.Errorf(blob.KindOf(err), "talk: %w", err)
	}
	answer, err := parseReply(p)
	if err == nil {
		err = answer.err()
	}
	if err != nil && got >= 0 {
		unix.Close(got)
		got = -1
	}
	return answer, got, err
}

// err returns what a reply means.
func (r reply) err() error {
	switch r.status {
	case statusDone:
		return nil
	case statusNone:
		return fs.ErrNotExist
	case statusVersion:
		return blob.Errorf(blob.Unavailable, "holder answers: %s", r.text)
	}
	return blob.Errorf(blob.Invalid, "holder answers: %s", r.text)
}
