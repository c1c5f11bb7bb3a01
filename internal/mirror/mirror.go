// Package mirror lets the clients that nodes have, containerd, docker and the
// stargz snapshotter, pull through the node: it answers the pull half of the
// OCI distribution specification for any registry, its upstream. Blobs come
// from the node's own path of a byte, manifests are kept by digest, and the
// rest is passed on.
//
// Which registry. The header X-Dragonfly-Registry names it, a URL or a host;
// else the query parameter ns, which containerd adds; else it is
// Config.Upstream.
//
// Access. Nothing is served, whether it is held here or not, to a client whose
// credentials the upstream has not accepted for that repository, and nothing
// that the upstream does not have in that repository. Both is asked with the
// client's own Authorization header, as it is, and remembered for
// Config.AuthorizationTTL; while the upstream is away, for
// Config.AuthorizationGrace. A manifest that the upstream served vouches for
// what it lists. Who is refused gets the upstream's own answer. The header goes
// to the upstream and nowhere else, and is never written down: not in logs,
// not on disk, and in the tables only as a salted hash.
//
// It never makes things worse. What the node cannot read is asked from the
// upstream with the client's own request, and the upstream's status, headers
// and body come back. A body that turns out wrong or short ends with a broken
// connection, never as if it were complete: the last byte of a whole blob is
// held back until its digest is right.
//
// What is not promised. Registries are believed about what they have: who runs
// one, and knows the digest of a private blob that this node holds, can have it
// here, and so can who pushes a manifest that names it to a registry that does
// not look for what manifests name. Keep the port to those who may know digests.
// And the client's header is all there is to read with: where a registry sends
// blobs itself, in place of redirecting to storage, a transfer that takes longer
// than the client's token lasts is broken off, for the client to go on with.
//
// Headers that clients of other mirrors send; none goes upstream.
//
//	X-Dragonfly-Registry    which registry
//	X-Dragonfly-Prefetch    true or false, in place of Config.Prefetch
//	X-Dragonfly-*           all others mean nothing here: a blob is the same
//	                        whoever asks, and pieces are of one size
package mirror

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
)

// Config says what a Mirror stands on. Source, Origin and Dir are required.
type Config struct {
	// Source is where the node reads blobs.
	Source blob.Source
	// Origin makes the requests to upstreams.
	Origin *origin.Origin
	// Dir is a folder of the mirror's own, for manifests. It is made.
	Dir string
	// Upstream is the registry of requests that name none, as a URL
	// ("https://index.docker.io") or a host. Empty: such requests are refused.
	Upstream string
	// AuthorizationTTL is how long an upstream's word on who may read what is
	// remembered, AuthorizationGrace how long if it cannot be asked again.
	// Defaults: 5 min and 1 h. Negative: not at all.
	AuthorizationTTL, AuthorizationGrace time.Duration
	// Prefetch brings the rest of each blob that is asked for in ranges.
	Prefetch bool
	// PrefetchRate bounds that, in bytes per second over all blobs; what is on
	// this node already does not count. 0 is no limit.
	PrefetchRate int64
	// Fetch, where set, brings a whole blob in whatever order is best. It is
	// used for prefetching without a PrefetchRate.
	Fetch func(ctx context.Context, ref blob.Ref) error
	// OnManifest, where set, is told of an image with lazy layers that a client was
	// served the manifest of. It reports whether it sees to its layers; else the
	// mirror itself reads of them ahead what the client will ask for. ctx brings the
	// client's credential. It is called from several goroutines.
	OnManifest func(ctx context.Context, repository string, manifest []byte) bool
	// Logger receives a line per request that failed; at level debug, per
	// request. Default: discard.
	Logger *slog.Logger
}

// Stats counts what a Mirror did. All fields may be read at any time.
type Stats struct {
	// Requests is all requests, Failed those that ended with a status of 500 or
	// more or a broken connection.
	Requests, Failed atomic.Int64
	// Blobs is the answers read from Source, BlobBytes their bytes.
	Blobs, BlobBytes atomic.Int64
	// Manifests is the answers with a manifest that was held here.
	Manifests atomic.Int64
	// Passed is the requests passed to an upstream as they were, Fallbacks those
	// among them that Source could not answer.
	Passed, Fallbacks atomic.Int64
	// Resumed is the answers that Source broke off and the upstream completed.
	Resumed atomic.Int64
	// Asked is how often an upstream was asked whether a client may read
	// something, Graced how often it could not and an earlier answer counted.
	Asked, Graced atomic.Int64
	// Prefetched is the blobs prefetched to their end, Ahead the parts of blobs
	// that were brought because a manifest said that they would be asked for.
	Prefetched, Ahead atomic.Int64
}

// Mirror is an http.Handler. Its methods are safe for concurrent use.
type Mirror struct {
	// Constant after New.
	cfg      Config
	log      *slog.Logger
	fallback *url.URL // Config.Upstream; nil for none
	via      string   // how this process signs what it passes on
	access   *access
	tags     *tags
	known    *table[address, destination]
	kept     *shelf
	opens    *opens
	embedded *table[digest.Digest, []byte]
	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	queue    chan prefetch

	stats Stats // atomics

	work sync.WaitGroup // joined by Close

	foreseen *table[opening, *pull] // what has been read ahead, by its blobs

	mu     sync.Mutex // guards the rest
	begun  *table[string, struct{}]
	pulls  int // that are being read ahead
	closed bool
}

// New returns a Mirror, which the caller closes.
//
// Errors: Invalid for a bad Upstream; those of making Dir and reading it.
func New(cfg Config) (*Mirror, error) {
	m := &Mirror{cfg: cfg, log: cfg.Logger, via: "1.1 skimmer-" + rand.Text(), begun: newTable[string, struct{}](maxBegun)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Upstream != "" {
		u, err := parseUpstream(cfg.Upstream)
		if err != nil {
			return nil, err
		}
		m.fallback = u
	}
	orDefault := func(d, def time.Duration) time.Duration {
		if d == 0 {
			return def
		}
		return max(d, 0)
	}
	m.access = newAccess(orDefault(cfg.AuthorizationTTL, 5*time.Minute), orDefault(cfg.AuthorizationGrace, time.Hour))
	m.opens, m.embedded = newOpens(cfg.Source), newTable[digest.Digest, []byte](maxEmbeds)
	m.foreseen = newTable[opening, *pull](maxForeseen)
	m.tags, m.known = newTags(), newTable[address, destination](maxDestinations)
	var err error
	if m.kept, err = openShelf(cfg.Dir); err != nil {
		return nil, err
	}
	// context.Background: Close ends it.
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.queue = make(chan prefetch, maxQueue)
	m.work.Go(m.prefetches)
	return m, nil
}

// Close ends prefetches, and what is read ahead, and waits for them. Requests go on being answered.
// Closing again does nothing.
func (m *Mirror) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	m.work.Wait()
	m.opens.close()
	return nil
}

// Stats returns the Mirror's counters.
func (m *Mirror) Stats() *Stats { return &m.stats }

// ServeHTTP answers a request for the registry that it names.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	base, err := m.upstreamOf(req)
	m.serve(&request{m: m, w: &answer{ResponseWriter: w}, req: req}, base, err)
}

// ServeUpstream answers a request that a client made of the registry at base,
// whatever it names itself. Where the client speaks to that in another way than
// the origin does, over plain HTTP for instance, it is passed on as it is.
func (m *Mirror) ServeUpstream(w http.ResponseWriter, req *http.Request, base *url.URL) {
	m.serve(&request{m: m, w: &answer{ResponseWriter: w}, req: req, proxied: true}, base, nil)
}

// request is one request on its way through the mirror.
type request struct {
	m             *Mirror
	w             *answer
	req           *http.Request
	to            upstream
	target        target
	authorization string
	who           hash
	proxied       bool // the client means the registry, and knows of no mirror
}

// serve answers a request for the registry at base, or refuses it with err.
func (m *Mirror) serve(r *request, base *url.URL, err error) {
	begun := time.Now()
	m.stats.Requests.Add(1)
	if r.loops() {
		err = coded(http.StatusLoopDetected, "UNSUPPORTED", "the registry that the request names is this mirror itself")
	}
	if err == nil {
		err = r.route(base)
	}
	broken := err != nil && r.w.status != 0
	if err != nil && !broken {
		writeError(r.w, r.req, err)
	}
	m.report(r, err, time.Since(begun))
	if broken {
		// The server breaks the connection: nothing may take this for the end.
		panic(http.ErrAbortHandler)
	}
}

// report logs how a request ended.
func (m *Mirror) report(r *request, err error, took time.Duration) {
	level, text := slog.LevelDebug, "mirror request"
	switch {
	case err != nil && (blob.KindOf(err) == blob.Canceled || r.req.Context().Err() != nil):
		text = "mirror request canceled"
	case r.w.status >= 500 || err != nil && r.w.status < 400:
		m.stats.Failed.Add(1)
		level, text = slog.LevelWarn, "mirror request failed"
	}
	if !m.log.Enabled(m.ctx, level) {
		return
	}
	if err == nil {
		err = r.w.cause
	}
	asked := r.req.Header.Get("Range")
	m.log.Log(m.ctx, level, text, "method", r.req.Method, "upstream", r.to.host, "path", r.target.String(),
		"range", asked[:min(len(asked), maxLogged)], "status", r.w.status, "bytes", r.w.bytes, "duration", took, "error", err)
}

// maxLogged is how much of a header is logged, in bytes.
const maxLogged = 200

// route checks what a request wants and has it answered. An error is to be
// written as the answer, or, where the answer has begun, breaks it off.
func (r *request) route(base *url.URL) error {
	if r.req.Method != http.MethodGet && r.req.Method != http.MethodHead {
		r.w.Header().Set("Allow", "GET, HEAD")
		return coded(http.StatusMethodNotAllowed, "UNSUPPORTED", "this is a pull-only mirror; push to %s directly", strings.TrimPrefix(base.Redacted(), "//"))
	}
	r.authorization = r.req.Header.Get("Authorization")
	if err := r.resolve(base); r.proxied && err != nil && r.target.path != "" && !r.m.speaks(base) {
		return r.passTo(base, err)
	} else if err != nil {
		return err
	}
	r.who = r.m.access.hash(r.authorization)
	switch r.target.what {
	case aBlob:
		return r.serveBlob()
	case aManifest:
		return r.serveManifest()
	default:
		return r.pass("")
	}
}

// address is what a request is sent to.
type address struct{ scheme, host, path, raw string }

// destination is what that means.
type destination struct {
	target target
	to     upstream
}

// maxDestinations is how many addresses are remembered: readers of parts send
// hundreds of requests to the same.
const maxDestinations = 4 << 10

// resolve finds out what the request is sent to.
func (r *request) resolve(base *url.URL) (err error) {
	u := r.req.URL
	a := address{base.Scheme, base.Host, u.Path, u.RawPath}
	if d, ok := r.m.known.get(a); ok {
		r.target, r.to = d.target, d.to
		return nil
	}
	if r.target, err = parseTarget(u); err != nil {
		return err
	}
	if r.to, err = r.m.checkUpstream(base, r.target.name); err != nil {
		return err
	}
	r.m.known.put(a, destination{r.target, r.to})
	return nil
}

// loops reports whether the request has been here before.
func (r *request) loops() bool {
	for _, v := range r.req.Header.Values("Via") {
		if containsToken(v, r.m.via) {
			return true
		}
	}
	return false
}
