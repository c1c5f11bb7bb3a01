package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal records what services do, in order. It is safe for concurrent use.
type journal struct {
	mu      sync.Mutex
	entries []string // mu guards
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, s)
}

func (j *journal) check(t *testing.T, want ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.entries, want) {
		t.Errorf("services did %q, want %q", j.entries, want)
	}
}

// service returns one that takes startup to become ready and shutdown to
// stop, and notes both.
func (j *journal) service(name string, startup, shutdown time.Duration) Service {
	return Service{Name: name, Run: func(ctx context.Context, ready func()) error {
		select {
		case <-time.After(startup):
			j.add("+" + name)
			ready()
		case <-ctx.Done():
		}
		<-ctx.Done()
		<-time.After(shutdown)
		j.add("-" + name)
		return ctx.Err()
	}}
}

var discard = slog.New(slog.DiscardHandler)

func group(services ...Service) *Group {
	g := New(discard)
	g.Add(services...)
	return g
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		began := time.Now()
		err := group(
			j.service("a", 3*time.Second, time.Second),
			j.service("b", 0, 2*time.Second),
			j.service("c", time.Second, 0),
		).Run(ctx)
		if err != nil {
			t.Error(err)
		}
		j.check(t, "+a", "+b", "+c", "-c", "-b", "-a")
		if took := time.Since(began); took != time.Minute+3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestServiceEndsProcess(t *testing.T) {
	broken := errors.New("disk on fire")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{{"failed", broken, "run bad: disk on fire"}, {"done", nil, ""}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				err := group(
					j.service("a", 0, time.Second),
					Service{Name: "bad", Run: func(_ context.Context, ready func()) error {
						ready()
						<-time.After(time.Hour)
						j.add("bad ends")
						return c.err
					}},
					j.service("c", 0, time.Second),
				).Run(t.Context())
				if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want || !errors.Is(err, c.err)) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				j.check(t, "+a", "+c", "bad ends", "-c", "-a")
			})
		})
	}
}

func TestStartIsCutShort(t *testing.T) {
	for _, c := range []struct {
		name   string
		second func(ctx context.Context, ready func()) error
		want   string
	}{
		{"service fails", func(context.Context, func()) error { return io.ErrUnexpectedEOF }, "run second: unexpected EOF"},
		{"service ends", func(context.Context, func()) error { return nil }, ""},
		{"told to stop", func(ctx context.Context, _ func()) error { <-ctx.Done(); return ctx.Err() }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Minute, cancel)
				err := group(j.service("a", time.Second, time.Second), Service{Name: "second", Run: c.second}, j.service("c", 0, 0)).Run(ctx)
				if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				j.check(t, "+a", "-a")
			})
		})
	}
}

// An earlier service that fails while a later one starts ends the start.
func TestEarlierServiceFailsDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		err := group(
			Service{Name: "first", Run: func(_ context.Context, ready func()) error {
				ready()
				<-time.After(time.Second)
				return io.ErrClosedPipe
			}},
			j.service("slow", time.Hour, 0),
		).Run(t.Context())
		if !errors.Is(err, io.ErrClosedPipe) || !strings.HasPrefix(err.Error(), "run first: ") {
			t.Errorf("got %v", err)
		}
		j.check(t, "-slow")
	})
}

func TestStopHasLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		stuck := func(limit time.Duration) Service {
			return Service{Name: "stuck", StopLimit: limit, Run: func(_ context.Context, ready func()) error {
				ready()
				<-release
				return nil
			}}
		}
		err := group(
			j.service("a", 0, 0),
			stuck(0),
			stuck(3*time.Second),
			Service{Name: "bad", Run: func(ctx context.Context, ready func()) error {
				ready()
				<-ctx.Done()
				return io.ErrShortWrite
			}},
		).Run(ctx)
		want := "run bad: short write\nstop stuck: still busy after 3s, left behind\nstop stuck: still busy after 10s, left behind"
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		j.check(t, "+a", "-a")
		if took := time.Since(began); took != 14*time.Second {
			t.Errorf("took %v", took)
		}
		close(release)
	})
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		g := group(j.service("store", time.Minute, time.Second))
		ask := func(path string) string {
			w := httptest.NewRecorder()
			g.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return http.StatusText(w.Code) + ": " + strings.TrimSpace(w.Body.String())
		}
		check := func(want string) {
			t.Helper()
			if got := ask("/readyz"); got != want {
				t.Errorf("/readyz says %q, want %q", got, want)
			}
			for _, path := range []string{"/healthz", "/healthy"} {
				if got := ask(path); got != "OK: ok" {
					t.Errorf("%s says %q", path, got)
				}
			}
		}
		check("Service Unavailable: starting")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.Run(ctx) })
		synctest.Wait()
		check("Service Unavailable: starting: waiting for store")
		<-time.After(2 * time.Minute)
		check("OK: ready")
		cancel()
		synctest.Wait()
		check("Service Unavailable: stopping")
		wg.Wait()
	})
}

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@skimmer-test-" + filepath.Base(t.TempDir()) + t.Name()} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := group(Service{Name: "a", Run: func(ctx context.Context, ready func()) error {
				ready()
				<-ctx.Done()
				return nil
			}}).Run(ctx); err != nil {
				t.Error(err)
			}
		})
		for _, want := range []string{"READY=1", "STOPPING=1"} {
			p := make([]byte, 100)
			n, err := conn.Read(p)
			if err != nil || string(p[:n]) != want {
				t.Errorf("read %q, %v, want %q", p[:n], err, want)
			}
			cancel()
		}
		wg.Wait()
	}
}

func TestNotifyFailsWithoutHarm(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	var log bytes.Buffer
	g := New(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Run(ctx); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "could not tell the service manager") {
		t.Errorf("nothing logged:\n%s", log.String())
	}
}
