package lab

import (
	"context"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Shape makes a registry as slow as one that is far away. The zero value
// leaves it as fast as the machine is.
type Shape struct {
	// Latency is added to every request before it is answered: a stand-in for
	// the round trip, paid once per request however many share a connection.
	Latency time.Duration
	// Rate limits each connection, in response body bytes per second; 0 is no
	// limit.
	Rate int64
}

// shaper delays requests. The zero value delays nothing.
type shaper struct {
	shape atomic.Pointer[Shape]
}

// pace is when a connection may send again. One connection serves one request
// at a time (HTTP/1.1), so it needs no lock.
type pace struct{ next time.Time }

type paceKey struct{}

// connContext gives a new connection its pace; it is an http.Server's
// ConnContext.
func (s *shaper) connContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, paceKey{}, &pace{})
}

// wrap returns a handler that serves next at the shape that is set when a
// request arrives.
func (s *shaper) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shape := s.shape.Load()
		if shape == nil || *shape == (Shape{}) {
			next.ServeHTTP(w, r)
			return
		}
		if sleep(r.Context(), shape.Latency) != nil {
			return // the client has gone
		}
		if p, ok := r.Context().Value(paceKey{}).(*pace); ok && shape.Rate > 0 {
			w = &pacedWriter{w, r.Context(), p, shape.Rate}
		}
		next.ServeHTTP(w, r)
	})
}

type pacedWriter struct {
	http.ResponseWriter
	ctx  context.Context
	pace *pace
	rate int64
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	// About 10 ms of the rate at a time, so that bytes trickle as from a slow
	// line instead of arriving in bursts.
	step := int(max(w.rate/100, 1024))
	done := 0
	for done < len(p) {
		part := p[done:min(done+step, len(p))]
		now := time.Now()
		if w.pace.next.Before(now) {
			w.pace.next = now
		}
		w.pace.next = w.pace.next.Add(time.Duration(len(part)) * time.Second / time.Duration(w.rate))
		if err := sleep(w.ctx, w.pace.next.Sub(now)); err != nil {
			return done, err
		}
		n, err := w.ResponseWriter.Write(part)
		done += n
		if err != nil {
			return done, err
		}
		// A part is on its way when its time has come, not when a buffer is full.
		if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
			return done, err
		}
	}
	return done, nil
}

func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CongestionControl names how TCP finds its rate on this machine, which new network
// namespaces inherit: cubic, bbr, reno. On links with queues it makes a difference
// to all that is measured over them. It returns "unknown" where the kernel does not
// say.
func CongestionControl() string {
	name, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(name))
}
