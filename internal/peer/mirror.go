package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/mirror"
	"skimmer/internal/mirror/forward"
	"skimmer/internal/origin/exchange"
	"skimmer/internal/origin/web"
)

// MirrorConfig says how the registry mirror and the forward proxy serve, which
// share a port.
type MirrorConfig struct {
	// Address is where they are served, for Status.
	Address string
	// Upstream is the registry of requests that name none.
	Upstream string
	// AuthorizationTTL, AuthorizationGrace, Prefetch and PrefetchRate are those
	// of mirror.Config.
	AuthorizationTTL, AuthorizationGrace time.Duration
	Prefetch                             bool
	PrefetchRate                         int64
	// Rules are those of the forward proxy.
	Rules []forward.Rule
	// Allow lists what the forward proxy may reach though it is on this machine
	// or link-local; see forward.GuardConfig.
	Allow []string
	// CACert and CAKey are the files of an authority; see forward.Config.CA.
	CACert, CAKey string
	// Username and Password are what users of the forward proxy have to show.
	Username, Password string
}

// gateway is the mirror and the forward proxy.
type gateway struct {
	// Constant after openMirror.
	mirror  *mirror.Mirror
	forward *forward.Proxy
	guard   *forward.Guard
}

// openMirror makes the handlers of the mirror's port.
func (p *Peer) openMirror() (err error) {
	cfg := p.cfg.Mirror
	if cfg == nil {
		return nil
	}
	g := &gateway{}
	if g.guard, err = forward.NewGuard(forward.GuardConfig{Allow: cfg.Allow}); err != nil {
		return err
	}
	m := mirror.Config{
		Source: p.source(), Origin: p.origin, Dir: filepath.Join(p.cfg.DataDir, "manifests"),
		Upstream: cfg.Upstream, AuthorizationTTL: cfg.AuthorizationTTL, AuthorizationGrace: cfg.AuthorizationGrace,
		Prefetch: cfg.Prefetch, PrefetchRate: cfg.PrefetchRate, Logger: p.log,
	}
	if p.cfg.Snapshotter.Socket != "" {
		m.OnManifest = p.anticipate
	}
	if p.member != nil {
		m.Fetch = p.member.swarm.Fetch
	}
	if g.mirror, err = mirror.New(m); err != nil {
		return err
	}
	p.gateway = g
	f := forward.Config{
		Guard: g.guard, Rules: cfg.Rules, Mirror: g.mirrored, Files: p.openFor(g.guard),
		Username: cfg.Username, Password: cfg.Password, Roots: p.origin.Web().Roots, Logger: p.log,
	}
	if cfg.CACert != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CACert, cfg.CAKey)
		if err != nil {
			return fmt.Errorf("load the proxy's authority: %w", err)
		}
		f.CA = &pair
	}
	g.forward, err = forward.New(f)
	return err
}

// anticipate sees to the layers of an image that a client of the mirror has the
// manifest of, if this node's snapshotter is going to be asked for them; it reports
// whether containerd has it.
func (p *Peer) anticipate(ctx context.Context, repository string, manifest []byte) bool {
	if p.containerd == nil || !p.containerd.registered(ctx) {
		return false
	}
	p.images.Anticipate(ctx, repository, manifest)
	return true
}

// mirrored answers requests of the forward proxy for blobs and manifests.
func (g *gateway) mirrored(w http.ResponseWriter, req *http.Request, base *url.URL) {
	// A name that cannot be resolved is the mirror's to answer for: it may have
	// what is asked for.
	if err := g.guard.Check(req.Context(), hostPort(base)); errors.Is(err, blob.Forbidden) {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	g.mirror.ServeUpstream(w, req, base)
}

// hostPort returns the host and port that a URL is of.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// openFor returns what opens plain files for the forward proxy.
func (p *Peer) openFor(guard *forward.Guard) forward.Files {
	return func(ctx context.Context, req forward.FileRequest) (context.Context, forward.File, error) {
		u, err := url.Parse(req.URL)
		if err != nil {
			return ctx, forward.File{}, blob.Errorf(blob.Invalid, "read URL: %w", err)
		}
		if err := guard.Check(ctx, hostPort(u)); err != nil {
			return ctx, forward.File{}, err
		}
		if err := web.CheckHeader(req.Header); err != nil {
			return ctx, forward.File{}, err
		}
		name := FileName{URL: req.URL, Tag: req.Tag, Header: req.Header, Ignore: req.FilteredQueryParams}
		ctx, ref, meta, src, err := p.find(ctx, name)
		if err != nil {
			return ctx, forward.File{}, err
		}
		b, err := src.Open(ctx, ref)
		if err != nil {
			return ctx, forward.File{}, err
		}
		return ctx, forward.File{Blob: b, ETag: meta.ETag, ContentType: contentType(meta.ContentType), LastModified: meta.LastModified}, nil
	}
}

// MirrorHandler returns what answers on the mirror's port; nil where there is none.
func (p *Peer) MirrorHandler() http.Handler {
	if p.gateway == nil {
		return nil
	}
	return forward.Handler(p.gateway.mirror, p.gateway.forward)
}

// MirrorStats returns the counters of mirror and forward proxy; all are 0 where
// there is none.
func (p *Peer) MirrorStats() (*mirror.Stats, *forward.Stats) {
	if p.gateway == nil {
		return new(mirror.Stats), new(forward.Stats)
	}
	return p.gateway.mirror.Stats(), p.gateway.forward.Stats()
}

// MirrorStatus is what the mirror and the forward proxy did since the peer
// started.
type MirrorStatus struct {
	// Address is the host:port they are served at.
	Address string `json:"address"`
	// Requests is those to the mirror, Failed how many of them ended with a
	// status of 500 or more or broken off.
	Requests int64 `json:"requests"`
	Failed   int64 `json:"failed"`
	// Bytes counts the bytes of blobs that came by this node, Fallbacks the
	// requests that this node could not answer and the registry did.
	Bytes     int64 `json:"bytes"`
	Fallbacks int64 `json:"fallbacks"`
	// Proxied is requests to the forward proxy, Refused how many of them were not
	// allowed.
	Proxied int64 `json:"proxied"`
	Refused int64 `json:"refused"`
}

func (p *Peer) mirrorStatus() *MirrorStatus {
	if p.gateway == nil {
		return nil
	}
	m, f := p.MirrorStats()
	return &MirrorStatus{
		Address: p.cfg.Mirror.Address, Requests: m.Requests.Load(), Failed: m.Failed.Load(), Bytes: m.BlobBytes.Load(),
		Fallbacks: m.Fallbacks.Load(), Proxied: f.Requests.Load(), Refused: f.Refused.Load(),
	}
}

func (g *gateway) close() error {
	var errs []error
	if g.forward != nil {
		errs = append(errs, g.forward.Close())
	}
	return errors.Join(append(errs, g.mirror.Close())...)
}

// dialable lists what may be reached wherever it is: what the configuration
// names.
func (c *Config) dialable() []string {
	allow := slices.Clone(c.Origin.Insecure)
	for host := range c.Origin.CAFiles {
		allow = append(allow, host)
	}
	if c.Mirror != nil {
		allow = append(allow, c.Mirror.Allow...)
	}
	return allow
}

// guardDials makes the node connect to no address that only its own network
// should reach, whoever names it: registries, which clients of the mirror name,
// and web servers, which anybody does. Of the latter, this machine's are reached
// only by those who say so, not by a name that turns out to be its.
func (c *Config) guardDials() error {
	strict, err := forward.NewGuard(forward.GuardConfig{Allow: c.dialable(), Timeout: c.Origin.ConnectTimeout})
	if err != nil {
		return err
	}
	local, err := forward.NewGuard(forward.GuardConfig{Allow: c.dialable(), Loopback: true, Timeout: c.Origin.ConnectTimeout})
	if err != nil {
		return err
	}
	if c.Origin.Dial == nil {
		c.Origin.Dial = local.DialContext
	}
	c.Origin.DialWeb = func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err == nil && exchange.IsLoopback(host) {
			return local.DialContext(ctx, network, addr)
		}
		return strict.DialContext(ctx, network, addr)
	}
	return nil
}
