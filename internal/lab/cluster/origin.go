package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Block is how finely an [Origin] remembers what left, in bytes.
const Block = 4096

// Origin is a server that counts which bytes of which path left it how often.
// Its methods are safe for concurrent use.
type Origin struct {
	next http.Handler // constant

	mu    sync.Mutex
	paths map[string]*record // mu guards, by the path of the URL
}

// record is what left of one path.
type record struct {
	requests, bytes int64
	blocks          []int64 // bytes sent of each
}

// NewOrigin returns a handler that counts what next answers.
func NewOrigin(next http.Handler) *Origin {
	return &Origin{next: next, paths: make(map[string]*record)}
}

// Sent is what left an [Origin] of one path, or of all.
type Sent struct {
	// Requests are those that were answered with content.
	Requests int64 `json:"requests"`
	// Bytes are those of bodies, as they were given to the kernel: what a
	// client that went away did not read is among them, up to 512 KiB.
	Bytes int64 `json:"bytes"`
	// Again are those of Bytes that had left before, in blocks of [Block]
	// bytes: 0 as long as no more left of any block than it has.
	Again int64 `json:"again"`
}

// Sent returns what left of a path, or of all paths together that begin with a
// prefix which ends in *.
func (o *Origin) Sent(pattern string) Sent {
	prefix, many := strings.CutSuffix(pattern, "*")
	o.mu.Lock()
	defer o.mu.Unlock()
	var s Sent
	for name, r := range o.paths {
		if name != pattern && !(many && strings.HasPrefix(name, prefix)) {
			continue
		}
		s.Requests += r.requests
		s.Bytes += r.bytes
		for _, n := range r.blocks {
			s.Again += max(0, n-Block)
		}
	}
	return s
}

// Reset forgets what has left.
func (o *Origin) Reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.paths)
}

// ServeHTTP implements http.Handler.
func (o *Origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		o.next.ServeHTTP(w, r)
		return
	}
	o.next.ServeHTTP(&countingWriter{ResponseWriter: w, origin: o, path: r.URL.Path}, r)
}

// countingWriter counts the body of one answer.
type countingWriter struct {
	http.ResponseWriter
	origin  *Origin
	path    string
	started bool
	counts  bool  // the status says that this is content
	at      int64 // where in the content the next byte is
}

// Unwrap lets http.ResponseController reach the connection.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countingWriter) WriteHeader(status int) {
	if !w.started && status >= http.StatusOK {
		w.started = true
		switch status {
		case http.StatusOK:
			w.counts = true
		case http.StatusPartialContent:
			// An answer of several parts has none, and is counted from 0.
			first, _, _ := strings.Cut(strings.TrimPrefix(w.Header().Get("Content-Range"), "bytes "), "-")
			w.at, _ = strconv.ParseInt(first, 10, 64)
			w.counts = true
		}
		if w.counts {
			w.origin.count(w.path, w.at, 0)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.begin()
	n, err := w.ResponseWriter.Write(p)
	w.sent(int64(n))
	return n, err
}

// step is after how many bytes of a file what was sent is counted.
const step = 1 << 20

// ReadFrom lets a file go to the connection without being copied.
func (w *countingWriter) ReadFrom(src io.Reader) (total int64, err error) {
	w.begin()
	// What the kernel is to send must be a file with a limit, and no more
	// limits around that.
	rest, ok := src.(*io.LimitedReader)
	if !ok {
		rest = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	for rest.N > 0 {
		part := &io.LimitedReader{R: rest.R, N: min(rest.N, step)}
		n, err := io.Copy(w.ResponseWriter, part)
		w.sent(n)
		total, rest.N = total+n, rest.N-n
		if err != nil || part.N > 0 {
			return total, err
		}
	}
	return total, nil
}

func (w *countingWriter) begin() {
	if !w.started {
		w.WriteHeader(http.StatusOK)
	}
}

func (w *countingWriter) sent(n int64) {
	if w.counts && n > 0 {
		w.origin.count(w.path, w.at, n)
		w.at += n
	}
}

// count notes n bytes from offset at of a path; with 0 bytes, a request.
func (o *Origin) count(name string, at, n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.paths[name]
	if r == nil {
		r = new(record)
		o.paths[name] = r
	}
	if n == 0 {
		r.requests++
		return
	}
	r.bytes += n
	end := at + n
	if need := int((end + Block - 1) / Block); need > len(r.blocks) {
		r.blocks = append(r.blocks, make([]int64, need-len(r.blocks))...)
	}
	for at < end {
		next := min(end, (at/Block+1)*Block)
		r.blocks[at/Block] += next - at
		at = next
	}
}

// Serve serves the origin on a node's port until ctx ends. stop, which may be
// called again, ends it before and waits.
func (o *Origin) Serve(ctx context.Context, n *Node, port uint16, log *slog.Logger) (stop func() error, err error) {
	ln, err := n.Listen(ctx, net.JoinHostPort(n.addr.String(), strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("serve origin: %w", err)
	}
	server := &http.Server{
		Handler:           o,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			// What the kernel holds counts as sent, so it must not be much. It
			// doubles the value for its own needs (socket(7)).
			_ = c.(*net.TCPConn).SetWriteBuffer(256 << 10)
			return ctx
		},
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			log.Error("origin stopped serving", "err", err)
		}
	})
	release := context.AfterFunc(ctx, func() { _ = server.Close() })
	return func() error {
		release()
		err := server.Close()
		wg.Wait()
		return err
	}, nil
}

// Files returns a handler that serves the files of a directory, without those
// below its folders, with ranges and strong validators.
func Files(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(filepath.Join(dir, path.Base(r.URL.Path)))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, st.ModTime().UnixNano(), st.Size()))
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", st.ModTime(), f)
	})
}
