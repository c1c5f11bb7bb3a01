// Package exchange makes HTTP requests to servers of others: registries, the
// storage servers behind them, and any other server that has a file. It puts
// limits of time on each attempt, says with a kind what a failed one means,
// and decides whether and when it is made again. What is asked for, and with
// whose credentials, is for the packages above.
package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Config says how servers are reached. The zero value of every field means
// its default; origin.Config describes those that both have.
type Config struct {
	// Insecure and CAFiles say how hosts are spoken to; see Client.Scheme.
	Insecure []string
	CAFiles  map[string][]string
	// ConnectTimeout (5 s), HeaderTimeout (20 s) and IdleTimeout (20 s) bound an
	// attempt.
	ConnectTimeout, HeaderTimeout, IdleTimeout time.Duration
	// Retries (4; negative: none), Backoff (200 ms), MaxBackoff (10 s) and
	// MaxRetryAfter (1 min) say when a failed one is made again.
	Retries                            int
	Backoff, MaxBackoff, MaxRetryAfter time.Duration
	// MaxConns bounds connections per host. Default: 64.
	MaxConns int
	// Logger receives what an operator may want to know. Default: discard.
	Logger *slog.Logger
	// Dial makes connections. Default: a net.Dialer with ConnectTimeout.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// NoWayBack refuses redirects from other machines to this one: for servers
	// that anybody may have named.
	NoWayBack bool
	// Transport makes the requests to hosts without CAFiles. Default: a pool of
	// connections made with Dial.
	Transport http.RoundTripper
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.ConnectTimeout, 5*time.Second)
	def(&c.HeaderTimeout, 20*time.Second)
	def(&c.IdleTimeout, 20*time.Second)
	def(&c.Backoff, 200*time.Millisecond)
	def(&c.MaxBackoff, 10*time.Second)
	def(&c.MaxRetryAfter, time.Minute)
	switch {
	case c.Retries == 0:
		c.Retries = 4
	case c.Retries < 0:
		c.Retries = 0
	}
	if c.MaxConns <= 0 {
		c.MaxConns = 64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: c.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	return c
}

// Stats counts what a Client did. All fields may be read at any time.
type Stats struct {
	// Requests is the number of HTTP requests made, to any host.
	Requests atomic.Int64
	// Bytes is the number of body bytes received in all answers, those that had
	// to be skipped included.
	Bytes atomic.Int64
	// Retries is the number of attempts made again after a failed one.
	Retries atomic.Int64
	// Redirects is the number of redirects followed; requests that went straight
	// to a remembered target are not counted.
	Redirects atomic.Int64
}

// Client makes requests. Its methods are safe for concurrent use. It owns no
// goroutines.
type Client struct {
	// Constant after New.
	cfg        Config
	transports map[string]http.RoundTripper // of hosts with CAFiles
	roots      map[string]*x509.CertPool    // of the same

	stats *Stats // atomics
}

// New returns a Client that counts in stats. It makes no connection.
//
// Errors: a CA file that cannot be read or holds no certificate.
func New(cfg Config, stats *Stats) (*Client, error) {
	c := &Client{cfg: cfg.withDefaults(), stats: stats, transports: make(map[string]http.RoundTripper), roots: make(map[string]*x509.CertPool)}
	if c.cfg.Transport == nil {
		c.cfg.Transport = c.newTransport(nil)
	}
	for host, files := range cfg.CAFiles {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("load the system's certificate authorities: %w", err)
		}
		for _, file := range files {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read certificate authority of %s: %w", host, err)
			}
			if !roots.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("read certificate authority of %s: %s holds no PEM certificate", host, file)
			}
		}
		c.transports[host], c.roots[host] = c.newTransport(roots), roots
	}
	return c, nil
}

// Roots returns the authorities that certificates of a host are checked with;
// nil for those of the system alone.
func (c *Client) Roots(host string) *x509.CertPool {
	pool, _ := lookup(host, c.roots)
	return pool
}

// newTransport returns a connection pool. One serves all clients, because
// nothing of a credential sticks to a connection.
func (c *Client) newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            c.cfg.Dial,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    c.cfg.ConnectTimeout,
		ResponseHeaderTimeout:  c.cfg.HeaderTimeout,
		MaxConnsPerHost:        c.cfg.MaxConns,
		MaxIdleConnsPerHost:    c.cfg.MaxConns,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		ForceAttemptHTTP2:      true,
		// A blob's bytes are those of the digest; nothing may unpack them on the way.
		DisableCompression: true,
	}
}

// Close closes idle connections. The Client stays usable.
func (c *Client) Close() {
	for _, rt := range c.transports {
		closeIdle(rt)
	}
	closeIdle(c.cfg.Transport)
}

func closeIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Scheme returns how a host, which may have a port, is spoken to.
func (c *Client) Scheme(host string) string {
	if _, ok := lookup(host, c.cfg.CAFiles); ok {
		return "https"
	}
	if slices.Contains(c.cfg.Insecure, host) || slices.Contains(c.cfg.Insecure, hostname(host)) || IsLoopback(hostname(host)) {
		return "http"
	}
	return "https"
}

// lookup finds what is said about a host: with its port, or else without.
func lookup[V any](host string, m map[string]V) (V, bool) {
	if v, ok := m[host]; ok {
		return v, true
	}
	v, ok := m[hostname(host)]
	return v, ok
}

func hostname(host string) string { return (&url.URL{Host: host}).Hostname() }

// IsLoopback reports whether a name, or an address, is one of this machine by
// itself, without asking anybody.
func IsLoopback(name string) bool {
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.IsLoopback()
	}
	name = strings.ToLower(name)
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}
