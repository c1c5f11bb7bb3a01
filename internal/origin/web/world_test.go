package web

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// server is a web server with files and bad habits.
type server struct {
	*httptest.Server

	mu       sync.Mutex // guards the rest
	files    map[string]file
	requests []*http.Request
	before   func(w http.ResponseWriter, req *http.Request, n int) (done bool) // n counts from 1
}

// file is what is at a path.
type file struct {
	content  []byte
	etag     string
	modified time.Time
	noRanges bool // whatever is asked for, all of it comes
	noLength bool
	cut      int // bodies end after so many bytes
}

func newServer(t *testing.T) *server {
	s := &server{files: make(map[string]file)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) put(path string, f file) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = f
	return s.URL + path
}

func (s *server) asked() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*http.Request(nil), s.requests...)
}

func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, req)
	n, before := len(s.requests), s.before
	s.mu.Unlock()
	if before != nil && before(w, req, n) {
		return
	}
	s.mu.Lock()
	f, ok := s.files[req.URL.Path]
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	if f.etag != "" {
		w.Header().Set("ETag", f.etag)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if f.cut > 0 {
		w = &cutter{w, f.cut}
	}
	if !f.noRanges && !f.noLength {
		http.ServeContent(w, req, "", f.modified, bytes.NewReader(f.content))
		return
	}
	if !f.modified.IsZero() {
		w.Header().Set("Last-Modified", f.modified.UTC().Format(http.TimeFormat))
	}
	if !f.noLength {
		w.Header().Set("Content-Length", strconv.Itoa(len(f.content)))
	} else {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush() // now it must be chunked
	}
	_, _ = w.Write(f.content)
}

// cutter breaks a body off.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// newSource returns a Source that does not wait between attempts.
func newSource(t *testing.T) *Source {
	t.Helper()
	c, err := exchange.New(exchange.Config{Backoff: time.Nanosecond, MaxBackoff: time.Nanosecond}, new(exchange.Stats))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return New(Config{Client: c, TempDir: t.TempDir()})
}

// readAll reads a whole blob.
func readAll(ctx context.Context, src blob.Source, ref blob.Ref) ([]byte, error) {
	b, err := src.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return readRange(ctx, b, blob.Range{Len: b.Size()})
}

func readRange(ctx context.Context, b blob.Blob, r blob.Range) ([]byte, error) {
	rc, err := b.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func mustResolve(t *testing.T, s *Source, url string, o Options) (blob.Ref, Meta) {
	t.Helper()
	ref, meta, err := s.Resolve(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return ref, meta
}

// wantErr checks the kind of an error and that its text has a part.
func wantErr(t *testing.T, err error, kind blob.Kind, text string) {
	t.Helper()
	if err == nil || blob.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("got %v (kind %v), want kind %v and %q", err, blob.KindOf(err), kind, text)
	}
}
