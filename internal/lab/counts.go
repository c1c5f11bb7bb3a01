package lab

import (
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// RequestKind is what a request to a registry is for.
type RequestKind string

// The kinds of request, by method and path of the distribution protocol
// (OCI distribution-spec, "Endpoints").
const (
	RequestManifest RequestKind = "manifest" // GET or HEAD of a manifest
	RequestBlob     RequestKind = "blob"     // GET or HEAD of a blob
	RequestToken    RequestKind = "token"    // GET of a token
	RequestPush     RequestKind = "push"     // everything that writes
	RequestOther    RequestKind = "other"    // the version check, tag lists, ...
)

// Counts is what a registry has been asked for and has sent.
type Counts struct {
	// Requests is the number of requests of each kind.
	Requests map[RequestKind]int64 `json:"requests"`
	// Bytes is the number of response body bytes sent for each kind. A reader
	// that hangs up early is counted what was written to it until then.
	Bytes map[RequestKind]int64 `json:"bytes"`
	// BlobBytes is the number of body bytes sent of each blob. A blob whose
	// every byte was sent twice counts double.
	BlobBytes map[digest.Digest]int64 `json:"blobBytes"`
	// BlobRequests is the number of GET and HEAD requests for each blob.
	BlobRequests map[digest.Digest]int64 `json:"blobRequests"`
}

// TotalRequests returns the number of requests of all kinds.
func (c Counts) TotalRequests() (n int64) {
	for _, v := range c.Requests {
		n += v
	}
	return n
}

// TotalBytes returns the number of body bytes sent of all kinds.
func (c Counts) TotalBytes() (n int64) {
	for _, v := range c.Bytes {
		n += v
	}
	return n
}

// counter counts requests in front of a registry. The zero value is ready.
type counter struct {
	mu     sync.Mutex
	counts Counts // mu guards
}

// snapshot returns the counts so far, and forgets them when reset is set.
func (c *counter) snapshot(reset bool) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Clones of nil maps are nil; readers of Counts need not care.
	s := Counts{
		Requests:     maps.Clone(c.counts.Requests),
		Bytes:        maps.Clone(c.counts.Bytes),
		BlobBytes:    maps.Clone(c.counts.BlobBytes),
		BlobRequests: maps.Clone(c.counts.BlobRequests),
	}
	if reset {
		c.counts = Counts{}
	}
	return s
}

func (c *counter) request(kind RequestKind, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Requests = add(c.counts.Requests, kind, 1)
	if d != "" {
		c.counts.BlobRequests = add(c.counts.BlobRequests, d, 1)
	}
}

func (c *counter) sent(kind RequestKind, d digest.Digest, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Bytes = add(c.counts.Bytes, kind, int64(n))
	if d != "" {
		c.counts.BlobBytes = add(c.counts.BlobBytes, d, int64(n))
	}
}

func add[K comparable](m map[K]int64, k K, n int64) map[K]int64 {
	if m == nil {
		m = map[K]int64{}
	}
	m[k] += n
	return m
}

// classify says what a request is for, and of which blob.
func classify(method, path string) (RequestKind, digest.Digest) {
	if method != http.MethodGet && method != http.MethodHead {
		return RequestPush, ""
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if n := len(parts); n >= 4 && parts[0] == "v2" {
		switch d := digest.Digest(parts[n-1]); {
		case parts[n-2] == "manifests":
			return RequestManifest, ""
		case parts[n-2] == "blobs" && d.Validate() == nil:
			return RequestBlob, d
		case parts[n-3] == "blobs" && parts[n-2] == "uploads":
			return RequestPush, ""
		}
	}
	switch parts[len(parts)-1] {
	case "token", "auth":
		return RequestToken, ""
	}
	return RequestOther, ""
}

// wrap returns a handler that counts what next is asked and sends, and logs each
// request at debug level.
func (c *counter) wrap(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, d := classify(r.Method, r.URL.Path)
		c.request(kind, d)
		cw, began := &countingWriter{ResponseWriter: w, c: c, kind: kind, d: d, status: http.StatusOK}, time.Now()
		next.ServeHTTP(cw, r)
		log.Debug("registry was asked", "method", r.Method, "path", r.URL.Path, "ranges", r.Header.Get("Range"),
			"status", cw.status, "bytes", cw.n, "began", began.Format("15:04:05.000"), "took", time.Since(began), "by", r.UserAgent())
	})
}

type countingWriter struct {
	http.ResponseWriter
	c      *counter
	kind   RequestKind
	d      digest.Digest
	status int
	n      int64 // bytes of the body
}

func (w *countingWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	w.c.sent(w.kind, w.d, n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
