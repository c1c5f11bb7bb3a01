package holder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// The limits of a server.
const (
	// DefaultIdle is how long a holder stays that holds nothing.
	DefaultIdle = time.Minute
	// maxHeld is how many descriptors it takes.
	maxHeld = 64
	// talkLimit bounds one conversation.
	talkLimit = 5 * time.Second
	// maxSocket is the longest path of a socket, in bytes: the kernel takes
	// 107, of which some are for a temporary name.
	maxSocket = 100
)

// ServerConfig says what a Server is to do. Socket is required.
type ServerConfig struct {
	// Socket is the absolute path to listen on, of at most 100 bytes. The
	// folder must exist; a lock file with the suffix ".lock" is made beside it
	// and stays.
	Socket string
	// Idle is how long to stay while nothing is held. Default DefaultIdle.
	Idle time.Duration
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Server holds descriptors for whoever asks over its socket. It is one
// goroutine, that of Serve.
type Server struct {
	cfg  ServerConfig
	lock *os.File
	ln   *net.UnixListener
	held map[string]int // descriptors, by name
}

// Listen makes the socket, taking over that of a holder that is dead. It is
// Busy where one lives. Who has a Server calls Serve.
func Listen(cfg ServerConfig) (*Server, error) {
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, held: make(map[string]int)}
	if err := s.listen(); err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, blob.Errorf(blob.KindOf(err), "listen on %s: %w", cfg.Socket, err)
	}
	return s, nil
}

func checkSocket(path string) error {
	if !filepath.IsAbs(path) || len(path) > maxSocket {
		return blob.Errorf(blob.Invalid, "path of a socket must be absolute and have at most %d bytes", maxSocket)
	}
	return nil
}

func (s *Server) listen() error {
	path := s.cfg.Socket
	if err := checkSocket(path); err != nil {
		return err
	}
	var err error
	if s.lock, err = os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return blob.Errorf(blob.Busy, "another holder has it")
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", s.lock.Name(), err)
	}
	// The lock is ours, so whatever lies there is of the dead. Under its own
	// name the socket appears when it is ready.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if s.ln, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: tmp, Net: "unixpacket"}); err != nil {
		return err
	}
	s.ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return errors.Join(err, s.ln.Close())
	}
	return nil
}

// Serve answers until it is told to stop, holds nothing for too long, or ctx
// ends, and then closes all it holds and takes the socket away. Only a socket
// that cannot be listened on is an error.
func (s *Server) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.ln.Close() })()
	defer s.close()
	for stop := false; !stop; {
		var idle time.Time
		if len(s.held) == 0 {
			idle = time.Now().Add(s.cfg.Idle)
		}
		err := s.ln.SetDeadline(idle)
		if err == nil {
			var c *net.UnixConn
			if c, err = s.ln.AcceptUnix(); err == nil {
				stop = s.talk(c)
				c.Close()
				continue
			}
		}
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("serve %s: %w", s.cfg.Socket, err)
		}
	}
	return nil
}

// close ends the server. The lock goes last, and its file stays: whoever
// waits for the one must not find another.
func (s *Server) close() {
	os.Remove(s.cfg.Socket)
	s.ln.Close()
	for name := range s.held {
		s.drop(name)
	}
	s.lock.Close()
}

func (s *Server) drop(name string) {
	if fd, ok := s.held[name]; ok {
		unix.Close(fd)
		delete(s.held, name)
	}
}

// talk has one conversation and reports whether it was told to stop.
func (s *Server) talk(c *net.UnixConn) (stop bool) {
	if err := c.SetDeadline(time.Now().Add(talkLimit)); err != nil {
		return false
	}
	if err := checkPeer(c); err != nil {
		s.cfg.Logger.Warn("refused to talk", "error", err)
		return false
	}
	p, fd, err := receive(c)
	if err != nil {
		return false
	}
	r, answer := s.handle(p, &fd)
	if fd >= 0 {
		unix.Close(fd)
	}
	if answer.status != statusDone && answer.status != statusNone {
		s.cfg.Logger.Warn("refused a request", "error", answer.text)
	}
	out := -1
	if r.op == opGet && answer.status == statusDone {
		out = s.held[r.name]
	}
	if err := send(c, answer.bytes(), out); err != nil {
		s.cfg.Logger.Warn("cannot answer", "error", err)
	}
	return r.op == opStop
}

// handle does what a packet asks. It sets *fd to -1 where it kept it.
func (s *Server) handle(p []byte, fd *int) (request, reply) {
	r, err := parseRequest(p)
	if errors.Is(err, blob.Unavailable) {
		return r, reply{statusVersion, err.Error()}
	}
	if err != nil {
		return r, reply{statusRefused, err.Error()}
	}
	_, known := s.held[r.name]
	switch r.op {
	case opPut:
		if *fd < 0 {
			return r, reply{statusRefused, "put without a descriptor"}
		}
		if !known && len(s.held) >= maxHeld {
			return r, reply{statusRefused, fmt.Sprintf("%d descriptors are held already", maxHeld)}
		}
		s.drop(r.name)
		s.held[r.name] = *fd
		*fd = -1
	case opGet:
		if !known {
			return r, reply{statusNone, ""}
		}
	case opDrop:
		if !known {
			return r, reply{statusNone, ""}
		}
		s.drop(r.name)
	}
	return r, reply{statusDone, ""}
}

// checkPeer refuses processes of other users, at either end.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("ask who the peer is: %w", err)
	}
	return allowed(cred.Uid, os.Geteuid())
}

// allowed reports who may talk to a process of user self.
func allowed(uid uint32, self int) error {
	if uid == 0 || int64(uid) == int64(self) {
		return nil
	}
	return blob.Errorf(blob.Forbidden, "peer is of user %d", uid)
}

// send sends a packet, with a descriptor if fd is not negative.
func send(c *net.UnixConn, p []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err := c.WriteMsgUnix(p, rights, nil)
	return err
}

// receive receives a packet and the descriptor with it; -1 where there is
// none. What comes in excess is closed.
func receive(c *net.UnixConn) (p []byte, fd int, err error) {
	buf, oob := make([]byte, maxPacket+1), make([]byte, unix.CmsgSpace(4*4))
	n, on, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, -1, err
	}
	fd = -1
	for _, got := range rights(oob[:on]) {
		if fd < 0 {
			fd = got
			continue
		}
		unix.Close(got)
	}
	return buf[:n], fd, nil
}

// rights returns the descriptors in control messages.
func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}
