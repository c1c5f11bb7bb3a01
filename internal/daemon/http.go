package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// The limits of HTTP servers that HTTP makes. There is none on a whole
// request: profiles and blobs take as long as they take.
const (
	headerLimit = 10 * time.Second
	idleLimit   = 2 * time.Minute
	drainLimit  = 5 * time.Second
)

// HTTP returns a service that serves h on the TCP address addr. When it is
// stopped, requests get 5 seconds to finish; their contexts end then.
func HTTP(name, addr string, h http.Handler, log *slog.Logger) Service {
	return Service{Name: name, Run: func(ctx context.Context, ready func()) error {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		return server{handler: h, log: log, drain: drainLimit}.serve(ctx, l, ready)
	}}
}

// server is what HTTP runs, with its limit.
type server struct {
	handler http.Handler
	log     *slog.Logger
	drain   time.Duration // how long requests get to finish
}

// serve serves on l, which it closes, until ctx ends and requests are done.
func (s server) serve(ctx context.Context, l net.Listener, ready func()) error {
	// Requests outlive ctx until they are drained.
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       idleLimit,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		limit, cancelLimit := context.WithTimeout(requests, s.drain)
		defer cancelLimit()
		if srv.Shutdown(limit) != nil {
			cancel()
			srv.Close()
		}
	})
	ready()
	err := srv.Serve(l)
	if !stop() {
		<-drained
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// Handler answers orchestrators: /healthz (and /healthy) says that the
// process runs, /readyz that all of its services are ready, with 503 and what
// is being waited for if they are not.
func (g *Group) Handler() http.Handler {
	alive := func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", alive)
	mux.HandleFunc("GET /healthy", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if state := g.state.Load(); state != nil {
			answer(w, http.StatusServiceUnavailable, *state)
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
