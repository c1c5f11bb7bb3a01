// Package origin reads blobs and manifests from where they come from: OCI
// registries and the storage servers those redirect to. It is the last hop of
// the data path, a [blob.Source] over the distribution specification, and the
// place where everything that can go wrong between us and a registry ends in
// a correct read or in an error that says what happened and what to do.
//
// Time. Every request gets an answer within 2*ConnectTimeout+HeaderTimeout,
// and its body may pause for at most IdleTimeout; what takes longer fails the
// attempt it belongs to. Attempts that may succeed later (connection errors,
// time limits, statuses 408, 429, 500, 502, 503 and 504, bodies that end
// early) are made again up to Retries times after the last progress, with
// waits between that double from Backoff up to MaxBackoff, or as long as the
// server's Retry-After asks, up to MaxRetryAfter. So a server that accepts
// connections and then says nothing fails a read, with the default Config,
// after (Retries+1)*HeaderTimeout and the waits, less than two minutes; one
// that cannot be reached, sooner. Fetching a token counts as an operation of
// its own. A caller who wants an answer earlier gives the context a deadline;
// cancelling it ends everything at once.
//
// Trust. The bytes of a range are those the server says it sent for it;
// positions and lengths are checked, so nothing is ever delivered at a wrong
// offset. A read of a whole blob is also held against the blob's digest.
// Credentials and tokens go to the registry and its token service and to no
// other host, and appear in no log and no error.
package origin

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// Config says how registries are reached. The zero value of every field means
// its default. Proxies are taken from the environment (HTTP_PROXY,
// HTTPS_PROXY, NO_PROXY).
type Config struct {
	// Keychain finds credentials where the context of a request brings none.
	// Default: DockerKeychain.
	Keychain Keychain
	// Insecure lists hosts, as host or host:port, that are spoken to over
	// plain HTTP. Loopback hosts always are, unless CAFiles names them.
	Insecure []string
	// CAFiles maps a host, as host or host:port, to PEM files with authorities
	// trusted for it in addition to the system's; an empty list only says that
	// the host speaks TLS. Storage servers are hosts of their own.
	CAFiles map[string][]string
	// ConnectTimeout bounds making a TCP connection, and the TLS handshake on
	// it. Default: 5 s.
	ConnectTimeout time.Duration
	// HeaderTimeout bounds the wait for an answer to a request. Default: 20 s.
	HeaderTimeout time.Duration
	// IdleTimeout bounds how long a read waits for the next byte of an answer.
	// Default: 20 s.
	IdleTimeout time.Duration
	// Retries is how often a failed attempt is made again before progress is
	// made, which is 256 KiB. Negative means never. Default: 4.
	Retries int
	// Backoff is the wait before the first retry; it doubles up to MaxBackoff.
	// Defaults: 200 ms and 10 s.
	Backoff, MaxBackoff time.Duration
	// MaxRetryAfter is the longest a server's Retry-After is obeyed. Asked for
	// more, a request fails at once. Default: 1 min.
	MaxRetryAfter time.Duration
	// MaxConns bounds connections per host, and with HTTP/1.1 therefore how
	// many readers of one host can be open. A request waits for a free one no
	// longer than an attempt may take. Default: 64.
	MaxConns int
	// MaxClients bounds how many combinations of registry, repository and
	// credential are remembered, with token and redirects. Default: 256.
	MaxClients int
	// Logger receives what an operator may want to know. Default: discard.
	Logger *slog.Logger
	// Dial makes connections. Default: a net.Dialer with ConnectTimeout.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// DialWeb makes those to servers that are no registries, see Web. Default:
	// Dial.
	DialWeb func(ctx context.Context, network, addr string) (net.Conn, error)

	transport http.RoundTripper // for tests
}

func (c Config) withDefaults() Config {
	if c.MaxClients <= 0 {
		c.MaxClients = 256
	}
	if c.Keychain == nil {
		c.Keychain = DockerKeychain()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Stats counts what an Origin did. All fields may be read at any time.
type Stats struct {
	// Stats counts requests, and bytes of all their answers.
	exchange.Stats
	// TokenFetches is the number of requests to token services.
	TokenFetches atomic.Int64
	// RangesIgnored is the number of answers that brought a whole blob where a
	// part was asked for.
	RangesIgnored atomic.Int64
}

// Origin is a blob.Source over registries. Its methods are safe for
// concurrent use.
type Origin struct {
	// Constant after New.
	cfg Config
	x   *exchange.Client
	web *exchange.Client

	stats Stats // atomics

	mu       sync.Mutex // guards the rest
	clients  *lru[clientKey, *client]
	noRanges map[string]bool // registry hosts known to ignore Range
	oneRange map[string]bool // those known to take no more than one range in a request
	noList   map[string]bool // those known not to list referrers
}

// New returns an Origin. It makes no connection.
//
// Errors: a CA file that cannot be read or holds no certificate.
func New(cfg Config) (*Origin, error) {
	o := &Origin{
		cfg:      cfg.withDefaults(),
		noRanges: make(map[string]bool),
		oneRange: make(map[string]bool),
		noList:   make(map[string]bool),
	}
	o.clients = newLRU[clientKey, *client](o.cfg.MaxClients)
	how := exchange.Config{
		Insecure: cfg.Insecure, CAFiles: cfg.CAFiles,
		ConnectTimeout: cfg.ConnectTimeout, HeaderTimeout: cfg.HeaderTimeout, IdleTimeout: cfg.IdleTimeout,
		Retries: cfg.Retries, Backoff: cfg.Backoff, MaxBackoff: cfg.MaxBackoff, MaxRetryAfter: cfg.MaxRetryAfter,
		MaxConns: cfg.MaxConns, Logger: cfg.Logger, Dial: cfg.Dial, Transport: cfg.transport,
	}
	var err error
	if o.x, err = exchange.New(how, &o.stats.Stats); err != nil {
		return nil, err
	}
	how.NoWayBack = true
	if cfg.DialWeb != nil {
		how.Dial = cfg.DialWeb
	}
	o.web, err = exchange.New(how, &o.stats.Stats)
	return o, err
}

// Stats returns the Origin's counters.
func (o *Origin) Stats() *Stats { return &o.stats }

// Exchange returns what makes the Origin's requests.
func (o *Origin) Exchange() *exchange.Client { return o.x }

// Web returns what asks other servers, those that anybody may name, with the
// same limits and counters: they cannot redirect to this machine.
func (o *Origin) Web() *exchange.Client { return o.web }

// Close closes idle connections. Blobs and readers stay usable; an Origin
// owns no goroutines.
func (o *Origin) Close() error {
	o.x.Close()
	o.web.Close()
	return nil
}

// NoRanges reports whether blobs of a repository, given as in
// blob.Ref.Repository, came from a server that was seen to ignore range
// requests: reads are correct, but each costs everything before it, so
// mounting lazily makes no sense. False until a read has shown it.
func (o *Origin) NoRanges(repository string) bool {
	rep, err := parseRepository(repository)
	if err != nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.noRanges[rep.host]
}

// rangesIgnored notes that host answered a range with the whole.
func (o *Origin) rangesIgnored(host string) {
	o.stats.RangesIgnored.Add(1)
	o.mu.Lock()
	first := !o.noRanges[host]
	o.noRanges[host] = true
	o.mu.Unlock()
	if first {
		o.cfg.Logger.Warn("registry ignores range requests: every read of a part fetches all before it", "registry", host)
	}
}

// Open implements blob.Source. Where ref.Size is known it makes no request;
// else it asks the registry with HEAD, or for a first byte where that says
// nothing. The credential is the context's, if it brings one.
func (o *Origin) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	if !blob.Verifiable(ref.Digest) {
		return nil, blob.Errorf(blob.Invalid, "open %v: no registry has blobs of that name", ref)
	}
	c, err := o.client(ctx, ref.Repository)
	if err != nil {
		return nil, err
	}
	b := &openBlob{c: c, ref: ref}
	if ref.Size == blob.SizeUnknown {
		if b.ref.Size, err = c.size(ctx, ref.Digest); err != nil {
			return nil, c.explain(err, "open blob %v", ref)
		}
	}
	return b, nil
}
