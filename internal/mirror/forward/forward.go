// Package forward is the forward proxy of a node: what clients reach that have
// it as their HTTP proxy. It passes requests on as any proxy does, except those
// that rules name: these are answered from the swarm.
//
// Registries' blobs and manifests are handed to the mirror, other GET requests
// to Config.Files, and a file is served with ranges as RFC 9110 has them. Where
// Files fails before the first byte, the request is passed on after all, so
// what a client sees is then the server's own answer. Of a file's own header,
// type, ETag and Last-Modified reach the client.
//
// CONNECT is a tunnel. With a certificate authority of its own, the proxy opens
// those to hosts that rules name, with a certificate it makes for the host, and
// what is asked for inside is treated like any other request for https. HTTP/1.1
// is spoken inside, and to servers. A server that has no TLS is not answered
// for: the connection breaks, as it would in a tunnel.
//
// No address of this machine, no link-local one and none of a cloud's metadata
// service is reached through the proxy unless Guard was told to allow it.
//
// Headers that clients of Dragonfly send never reach a server. They mean:
//
//	X-Dragonfly-Use-P2P                "true": through the swarm, whatever rules say
//	X-Dragonfly-Filtered-Query-Params  parameters that do not tell files apart, in
//	                                   place of those of the rule
//	X-Dragonfly-Tag                    files with different tags are kept apart
//	X-Dragonfly-Application            ignored: whom a file is for does not change it
//	X-Dragonfly-Priority               ignored: somebody waits for each request
//	X-Dragonfly-Piece-Length           ignored: it follows from the file's size
//	X-Dragonfly-Prefetch               ignored: proxy.prefetch decides
//	X-Dragonfly-Registry               ignored here: the URL says it. See package mirror
//	X-Dragonfly-Output-Path            ignored, as is Force-Hard-Link: clients do not
//	                                   write files on a node
//	X-Dragonfly-…                      all others are ignored
package forward

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
)

// Config says how a Proxy works. The zero value of every field but Guard, which
// is required, means its default.
type Config struct {
	// Guard makes all connections.
	Guard *Guard
	// Rules say what is fetched through the swarm. The first that matches counts.
	Rules []Rule
	// Mirror answers requests for blobs and manifests of the registry at base.
	// Default: they are passed on.
	Mirror func(w http.ResponseWriter, req *http.Request, base *url.URL)
	// Files opens other files. Default: requests for them are passed on.
	Files Files
	// CA is an authority that clients trust, with its key. With it, tunnels to
	// hosts that rules name are opened.
	CA *tls.Certificate
	// Username and Password are what clients have to show, as basic
	// authentication for the proxy. Without a Username they have not to.
	Username, Password string
	// Roots returns the authorities that certificates of a host are checked
	// with, nil for those of the system. The host has its port, unless that is
	// 443. Default: nil for all.
	Roots func(host string) *x509.CertPool
	// MaxTunnels (1024) bounds the connections that CONNECT has made.
	MaxTunnels int
	// IdleTimeout (15 min) is after how long without a byte, in either
	// direction, a tunnel ends.
	IdleTimeout time.Duration
	// Logger receives what an operator may want to know. Default: discard.
	Logger *slog.Logger
}

// Stats counts what a Proxy did. All fields may be read at any time.
type Stats struct {
	// Requests is the number of requests, CONNECT and those inside opened
	// tunnels included.
	Requests atomic.Int64
	// Mirrored, Files and Passed say what became of them: answered by the mirror,
	// from Files, or passed on.
	Mirrored, Files, Passed atomic.Int64
	// FellBack is the number of requests passed on because Files failed; they
	// are in Passed, too.
	FellBack atomic.Int64
	// Refused is the number that the guard or a missing password ended.
	Refused atomic.Int64
	// Tunnels and Opened are the numbers of CONNECT that were passed on unseen,
	// and opened.
	Tunnels, Opened atomic.Int64
	// TunnelBytes is what went through tunnels, both ways together.
	TunnelBytes atomic.Int64
}

// Proxy is the forward proxy, an http.Handler for the requests that Handler
// gives it. All methods are safe for concurrent use.
type Proxy struct {
	// Constant after New.
	cfg       Config
	log       *slog.Logger
	rules     rules
	user      credential
	name      string // in Via
	transport *http.Transport
	authority *authority   // nil without Config.CA
	inside    *http.Server // of opened tunnels; nil without Config.CA
	handOver  *handOver    // inside's listener
	ctx       context.Context
	cancel    context.CancelFunc

	buffers bufferPool   // locks itself
	stats   Stats        // atomics
	tunnels atomic.Int64 // that there are

	mu     sync.Mutex // mu guards the rest
	closed bool
	wg     sync.WaitGroup // Add needs mu: none once closed
}

// New returns a Proxy. The caller closes it.
//
// Errors: Invalid for rules that are no regular expressions and a CA that is
// none.
func New(cfg Config) (*Proxy, error) {
	if cfg.Guard == nil {
		return nil, blob.Errorf(blob.Invalid, "set up forward proxy: there is no guard")
	}
	if cfg.MaxTunnels <= 0 {
		cfg.MaxTunnels = 1024
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 15 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	compiled, err := compile(cfg.Rules)
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, log: cfg.Logger, rules: compiled, user: newCredential(cfg.Username, cfg.Password)}
	p.name = "skimmer-" + rand.Text()[:10]
	if cfg.CA != nil {
		if p.authority, err = newAuthority(cfg.CA); err != nil {
			return nil, err
		}
	}
	p.transport = p.newTransport()
	// context.Background: Close ends it.
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if p.authority != nil {
		p.serveInside()
	}
	return p, nil
}

// Stats returns the Proxy's counters.
func (p *Proxy) Stats() *Stats { return &p.stats }

// Close ends all requests and tunnels and waits for them. Close the server that
// calls the Proxy first: a client that does not read its answer holds up Close
// until its connection ends.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	if p.inside != nil {
		_ = p.inside.Close() // of its listener, which cannot fail
	}
	p.wg.Wait()
	p.transport.CloseIdleConnections()
	return nil
}

// begin returns a context for a request that ends with ctx or with the Proxy,
// and what to call when it is over; false if the Proxy is closed.
func (p *Proxy) begin(ctx context.Context) (context.Context, func(), bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ctx, nil, false
	}
	p.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		p.wg.Done()
	}, true
}

// Handler returns the handler of a port that is both mirror and proxy: CONNECT
// and requests for an absolute URL go to proxy, unless it is the port's own, all
// others to mirror.
func Handler(mirror http.Handler, proxy *Proxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.Method == http.MethodConnect:
			proxy.ServeHTTP(w, req)
		case req.URL.Host == "" && !req.URL.IsAbs():
			mirror.ServeHTTP(w, req)
		case req.URL.Scheme == "http" && isOwn(req):
			// RFC 9112, section 3.2.2: servers take the absolute form, too.
			mirror.ServeHTTP(w, originForm(req, req.URL))
		default:
			proxy.ServeHTTP(w, req)
		}
	})
}

// isOwn reports whether a request is for the address that it came to.
func isOwn(req *http.Request) bool {
	addr, ok := req.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	local, err := netip.ParseAddrPort(addr.String())
	if err != nil || req.URL.Port() == "" || req.URL.Port() != portOf(local) {
		return false
	}
	host := req.URL.Hostname()
	if strings.EqualFold(host, "localhost") {
		return local.Addr().Unmap().IsLoopback()
	}
	named, err := netip.ParseAddr(host)
	return err == nil && named.Unmap() == local.Addr().Unmap()
}

// originForm returns the request as a server gets it, for what target names of
// it, without what is for the proxy alone.
func originForm(req *http.Request, target *url.URL) *http.Request {
	out := req.Clone(req.Context())
	out.URL = &url.URL{Path: target.Path, RawPath: target.RawPath, RawQuery: target.RawQuery}
	out.RequestURI = out.URL.RequestURI()
	out.Host = target.Host
	return out
}

// ServeHTTP answers CONNECT and requests for an absolute URL.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	ctx, done, ok := p.begin(req.Context())
	if !ok {
		p.fail(w, req, blob.Errorf(blob.Canceled, "serve a request: the proxy is stopping"))
		return
	}
	defer done()
	p.stats.Requests.Add(1)
	req = req.WithContext(ctx)
	switch {
	case !p.user.shownBy(req):
		p.stats.Refused.Add(1)
		p.demand(w, req)
	case p.looped(req):
		p.fail(w, req, errLoop)
	case req.Method == http.MethodConnect:
		p.connect(w, req)
	default:
		p.absolute(w, req)
	}
}

// absolute answers a request for an absolute URL.
func (p *Proxy) absolute(w http.ResponseWriter, req *http.Request) {
	target, err := targetOf(req.URL)
	if err != nil {
		p.fail(w, req, err)
		return
	}
	if user := req.URL.User; user != nil && req.Header.Get("Authorization") == "" {
		password, _ := user.Password()
		req = req.Clone(req.Context())
		req.SetBasicAuth(user.Username(), password)
	}
	p.route(w, req, target)
}

// route answers a request for target, wherever the client put that.
func (p *Proxy) route(w http.ResponseWriter, req *http.Request, target *url.URL) {
	d := p.rules.decide(target, req.Header)
	p.log.Debug("proxy request", "method", req.Method, "url", place(d.target), "swarm", d.swarm)
	if d.swarm && p.fromSwarm(w, req, d) {
		return
	}
	p.pass(w, req, d.target)
}
