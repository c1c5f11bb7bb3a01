package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Lender is implemented by blobs of a server's Source whose bytes are in a
// file. What is not lent is sent all the same, at a higher price.
type Lender interface {
	// Lend returns, if all of r (not empty) is on disk and was checked since
	// the blob was opened, the file with the blob's byte i at offset i. The blob
	// is cut into pieces of pieceSize bytes; crcs, which the caller may change,
	// are the CRC32C of those that r touches, in order.
	//
	// The file stays open as long as the blob is, and belongs to it: its own
	// offset is not used. Safe for concurrent use.
	Lend(r blob.Range) (f *os.File, pieceSize int64, crcs []uint32, ok bool)
}

// Holder is implemented by blobs that can say which parts of them are held.
type Holder interface {
	// Held returns the parts that are on disk, in order and not touching.
	Held() []blob.Range
}

// ServerConfig says what a Server serves and how much of it. Source is
// required; the zero value of the rest is what most nodes want.
type ServerConfig struct {
	// Source is what is served: what is held or arriving. It is opened without
	// size or repository, and answers NotFound for what it does not have. Its
	// blobs may be a Lender and a Holder. They are kept open up to 2 seconds
	// after their last use.
	Source blob.Source
	// Slots is how many uploads may be under way at a time. Default: 64.
	Slots int
	// PerRemote is how many requests one remote host may have under way at a
	// time. Default: as Slots. Negative: no limit.
	PerRemote int
	// MaxConns is how many connections may be open at a time, ConnsPerRemote
	// how many of one remote host; more are closed at once. Defaults: 4096 and
	// 1024. Negative: no limit.
	MaxConns, ConnsPerRemote int
	// MaxRange is how many bytes one request may ask for. Default:
	// DefaultMaxRange. Clients have to know it.
	MaxRange int64
	// Rate limits the bytes sent. A request that would wait more than MaxWait
	// for it (default 1 s) is told that the peer is busy. Default: no limit.
	Rate    *Limiter
	MaxWait time.Duration
	// Others, where set, returns addresses of other peers that may have r of d,
	// best first, for answers that say busy; r is empty where no range was looked
	// at. It must be quick, and safe for concurrent use.
	Others func(d digest.Digest, r blob.Range) []string
	// TLS, where set, is required of every client.
	TLS *TLS
	// HeaderTimeout is how long a client may take to send a request's header,
	// SendTimeout how long to take any half megabyte, IdleTimeout how long a
	// connection may be kept without a request. Defaults: 5 s, 30 s, 2 min.
	HeaderTimeout, SendTimeout, IdleTimeout time.Duration
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

func (c *ServerConfig) settle() error {
	if c.Source == nil {
		return blob.Errorf(blob.Invalid, "make transfer server: no source given")
	}
	setDefault(&c.Slots, 64)
	setDefault(&c.PerRemote, c.Slots)
	setDefault(&c.MaxConns, 4096)
	setDefault(&c.ConnsPerRemote, 1024)
	setDefault(&c.MaxRange, DefaultMaxRange)
	setDefault(&c.MaxWait, time.Second)
	setDefault(&c.HeaderTimeout, 5*time.Second)
	setDefault(&c.SendTimeout, 30*time.Second)
	setDefault(&c.IdleTimeout, 2*time.Minute)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// setDefault makes *v def if it was left zero.
func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// ServerStats counts what a server did. Numbers only grow, except Uploads and
// Conns, which are as of now.
type ServerStats struct {
	// Requests are all that came, Busy those told that the peer is busy,
	// Refused those that no peer of ours makes (and connections beyond the
	// limits), Failed those that failed otherwise, unless the client went away.
	Requests, Busy, Refused, Failed int64
	// Bytes were sent as bodies; SentFile of them without passing through
	// memory, Relayed not from a file but as they came.
	Bytes, SentFile, Relayed int64
	// Uploads are under way, Conns open.
	Uploads, Conns int64
}

type serverCounters struct {
	requests, busy, refused, failed atomic.Int64
	bytes, sentFile, relayed        atomic.Int64
	uploads                         atomic.Int64
}

// Server sends ranges of blobs to peers. NewServer makes it, Serve serves
// until Close. Its methods are safe for concurrent use.
type Server struct {
	// Constant after NewServer.
	cfg   ServerConfig
	log   *slog.Logger
	http  *http.Server
	shelf shelf
	slots chan struct{} // holds one for each upload under way
	stop  context.CancelFunc

	requests, conns quota
	count           serverCounters
	closing         atomic.Bool

	// gate guards the shelf's end: handlers hold it for reading, and Close
	// takes it when they are to be over.
	gate sync.RWMutex
}

// NewServer returns a server that serves once Serve is called.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := cfg.settle(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger, slots: make(chan struct{}, cfg.Slots)}
	s.shelf.src = cfg.Source
	s.requests.limit, s.conns.limit = cfg.PerRemote, cfg.ConnsPerRemote
	// context.Background: Close ends it, after the uploads or in their place.
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    4 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnState:         s.connState,
		ErrorLog:          log.New(logWriter{s.log}, "", 0),
		Protocols:         new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true)
	if cfg.TLS != nil {
		s.http.TLSConfig = cfg.TLS.server()
	}
	return s, nil
}

// logWriter passes what net/http has to say (failed handshakes, mostly) to
// a logger.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("peer connection", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

// Serve accepts connections from l, which it closes, until Close; then it
// returns nil. The connections of l must be those of the net package as they
// are: anything around them turns sendfile off.
func (s *Server) Serve(l net.Listener) error {
	var err error
	if s.cfg.TLS != nil {
		err = s.http.ServeTLS(l, "", "")
	} else {
		err = s.http.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve peers on %v: %w", l.Addr(), err)
}

// Close stops accepting requests, lets uploads end until ctx does, cuts those
// that are left, and waits for everything. It returns ctx's error if some were
// cut.
func (s *Server) Close(ctx context.Context) error {
	s.closing.Store(true)
	err := s.http.Shutdown(ctx)
	s.stop()
	if err != nil {
		err = blob.Errorf(blob.KindOf(err), "finish uploads to peers: %w", err)
		// What it says is about connections that are lost anyway.
		_ = s.http.Close()
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	s.shelf.close()
	return err
}

// Forget closes blob d where it is kept open for the next request, so that it
// can be removed. It does not touch uploads that are under way.
func (s *Server) Forget(d digest.Digest) { s.shelf.forget(d) }

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	c := &s.count
	return ServerStats{
		Requests: c.requests.Load(), Busy: c.busy.Load(), Refused: c.refused.Load(), Failed: c.failed.Load(),
		Bytes: c.bytes.Load(), SentFile: c.sentFile.Load(), Relayed: c.relayed.Load(),
		Uploads: c.uploads.Load(), Conns: int64(s.conns.total()),
	}
}

// connState counts connections, and closes those beyond the limits.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	remote := remoteOf(c.RemoteAddr().String())
	switch state {
	case http.StateNew:
		if tc, ok := c.(*tls.Conn); ok {
			c = tc.NetConn() // without a goodbye that could block
		}
		within := s.conns.take(remote)
		if all := s.conns.total(); !within || s.cfg.MaxConns > 0 && all > s.cfg.MaxConns {
			s.count.refused.Add(1)
			_ = c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		s.conns.give(remote)
	}
}
