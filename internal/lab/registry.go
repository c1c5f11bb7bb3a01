package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"skimmer/internal/lab/child"
)

const (
	// startLimit is how long the registry program may take until it listens.
	startLimit = 30 * time.Second
	// stopLimit is how long it may take to end when asked before it is killed.
	stopLimit = 5 * time.Second
)

// RegistryOptions says how [StartRegistry] runs its registry. The zero value
// is a registry in a temporary directory, as fast as the machine is.
type RegistryOptions struct {
	// Dir is where the registry keeps its data; it is created, and left behind
	// by Close. Empty means a temporary directory that Close removes. The
	// registry inside this process keeps only blobs there, not manifests.
	Dir string
	// Program is the registry binary. Empty looks for Debian's docker-registry
	// and the distribution project's registry in PATH and, where there is
	// neither, serves from inside this process.
	Program string
	// Logger receives what is done; nil discards it.
	Logger *slog.Logger
}

// Registry is a running registry on a loopback port with counters in front. It
// speaks plain HTTP and wants no credentials. All methods are safe for
// concurrent use.
type Registry struct {
	// Constant after StartRegistry.
	host    string
	program string
	dir     string
	ownDir  bool
	server  *http.Server
	process *child.Process // nil when the registry is in this process
	log     *slog.Logger
	wg      sync.WaitGroup

	counter counter
	shaper  shaper
	close   sync.Once
}

// StartRegistry starts a registry and returns when it answers. It runs until
// Close, or until ctx ends, which still wants a Close.
func StartRegistry(ctx context.Context, opts RegistryOptions) (*Registry, error) {
	r := &Registry{dir: opts.Dir, log: opts.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.dir == "" {
		dir, err := os.MkdirTemp("", "skimmer-registry-")
		if err != nil {
			return nil, fmt.Errorf("start registry: %w", err)
		}
		r.dir, r.ownDir = dir, true
	}
	if err := r.start(ctx, opts.Program); err != nil {
		return nil, errors.Join(fmt.Errorf("start registry: %w", err), r.Close())
	}
	r.log.Info("registry started", "addr", r.host, "program", r.program, "dir", r.dir)
	return r, nil
}

func (r *Registry) start(ctx context.Context, program string) error {
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	if program == "" {
		for _, name := range []string{"docker-registry", "registry"} {
			if path, err := exec.LookPath(name); err == nil {
				program = path
				break
			}
		}
	}
	var handler http.Handler
	if program == "" {
		r.program = "embedded"
		handler = ggcr.New(
			ggcr.WithBlobHandler(ggcr.NewDiskBlobHandler(r.dir)),
			ggcr.Logger(slog.NewLogLogger(r.log.Handler(), slog.LevelDebug)),
		)
	} else {
		r.program = program
		socket, err := r.run(ctx)
		if err != nil {
			return err
		}
		handler = proxyTo(socket, r.log)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.host = ln.Addr().String()
	r.server = &http.Server{
		Handler:           r.counter.wrap(r.shaper.wrap(handler), r.log),
		ReadHeaderTimeout: time.Minute,
		ConnContext:       r.shaper.connContext,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	r.wg.Go(func() {
		if err := r.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			r.log.Error("registry stopped serving", "err", err)
		}
	})
	return nil
}

// registryConfig is the configuration of the distribution project's registry,
// version 2 and 3. It listens on a Unix socket, so no port can be lost between
// choosing and using it.
const registryConfig = `version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: false}}
http:
  net: unix
  addr: %q
  relativeurls: true
`

// run starts the registry program and returns the socket it listens on.
func (r *Registry) run(ctx context.Context) (socket string, err error) {
	// A socket's path may have 107 bytes (unix(7)); r.dir may be longer.
	run, err := os.MkdirTemp("", "skimmer-registry-run-")
	if err != nil {
		return "", err
	}
	socket = filepath.Join(run, "sock")
	config := filepath.Join(run, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, r.dir, socket), 0o600); err != nil {
		return "", errors.Join(err, os.RemoveAll(run))
	}
	cmd := exec.CommandContext(ctx, r.program, "serve", config)
	// Nothing of the caller's environment may change the registry's
	// configuration (REGISTRY_...) or make it look for a tracing service.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "REGISTRY_") || strings.HasPrefix(s, "OTEL_")
	})
	cmd.Env = append(cmd.Env, "OTEL_TRACES_EXPORTER=none")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	watch := newLogWatch("listening on")
	r.wg.Go(func() { watch.read(out, r.log) })
	process, err := child.Start(cmd, child.Options{})
	if err != nil {
		return "", errors.Join(err, w.Close(), os.RemoveAll(run))
	}
	r.process = process
	r.wg.Go(func() {
		_ = process.Wait() // who wants to know how it ended asks again
		_ = w.Close()
		_ = os.RemoveAll(run)
	})
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	select {
	case <-watch.seen:
		return socket, nil
	case <-process.Exited():
		return "", fmt.Errorf("run %s: it ended before it listened: %v; its last output:\n%s", r.program, process.State(), watch.tail())
	case <-limit.C:
		return "", fmt.Errorf("run %s: it does not listen after %v; its last output:\n%s", r.program, startLimit, watch.tail())
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// proxyTo returns a handler that passes requests on to the server behind a
// Unix socket as they are.
func proxyTo(socket string, log *slog.Logger) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: "registry"})
			// The registry names itself by the host it was asked for.
			p.Out.Host = p.In.Host
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
			DisableCompression:  true,
			MaxIdleConnsPerHost: 64,
		},
		BufferPool: &bufferPool{},
		ErrorLog:   slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// bufferPool lends the buffers bodies are copied with.
type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 128<<10)
}

func (b *bufferPool) Put(p []byte) { b.pool.Put(&p) }

// Host returns the registry's address as image references name it, host:port.
func (r *Registry) Host() string { return r.host }

// Program returns the path of the registry program, or "embedded".
func (r *Registry) Program() string { return r.program }

// Counts returns what the registry was asked for and sent since it was
// started or Reset.
func (r *Registry) Counts() Counts { return r.counter.snapshot(false) }

// Reset sets the counters to nothing and returns what they were, in one step:
// no request is lost between two experiments.
func (r *Registry) Reset() Counts { return r.counter.snapshot(true) }

// SetShape makes the registry slow, from the next request on.
func (r *Registry) SetShape(s Shape) { r.shaper.shape.Store(&s) }

// Close ends the registry, waits until its process is gone, and removes its
// data if the directory was a temporary one. Requests being served are cut
// off. Calling it again does nothing.
func (r *Registry) Close() error {
	var err error
	r.close.Do(func() {
		if r.server != nil {
			err = r.server.Close()
		}
		if r.process != nil {
			if _, serr := r.process.End(stopLimit); serr != nil {
				err = errors.Join(err, fmt.Errorf("stop registry: %w", serr))
			}
		}
		r.wg.Wait()
		if r.ownDir {
			err = errors.Join(err, os.RemoveAll(r.dir))
		}
	})
	return err
}

// logWatch waits for a phrase in a program's output and remembers the end of
// the output for error messages.
type logWatch struct {
	// Constant after newLogWatch.
	phrase string
	seen   chan struct{} // closed when the phrase was seen

	mu   sync.Mutex
	last []string // mu guards
}

func newLogWatch(phrase string) *logWatch {
	return &logWatch{phrase: phrase, seen: make(chan struct{})}
}

// read reads the output to its end.
func (w *logWatch) read(out io.Reader, log *slog.Logger) {
	seen := false
	br := bufio.NewReader(out)
	for {
		line, err := br.ReadString('\n')
		if line = strings.TrimSpace(line); line != "" {
			log.Debug("registry says", "line", line)
			w.mu.Lock()
			w.last = append(w.last, line)
			w.last = w.last[max(0, len(w.last)-10):]
			w.mu.Unlock()
		}
		if !seen && strings.Contains(line, w.phrase) {
			seen = true
			close(w.seen)
		}
		if err != nil {
			return
		}
	}
}

func (w *logWatch) tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.last, "\n")
}
