package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// ClientConfig says how a Client reaches peers; its zero value works.
type ClientConfig struct {
	// Rate limits the bytes received. Default: no limit.
	Rate *Limiter
	// TLS, where set, is required of every peer.
	TLS *TLS
	// MaxRange is how many bytes one request asks for at most; larger ranges
	// take several. It must not be more than what servers take. Default:
	// DefaultMaxRange.
	MaxRange int64
	// DialTimeout is how long a peer may take to accept a connection, TLS
	// included, StallTimeout how long any next byte of an answer may take, the
	// first included, IdleTimeout how long an unused connection is kept.
	// Defaults: 3 s, 10 s, 90 s.
	DialTimeout, StallTimeout, IdleTimeout time.Duration
	// IdleConns is how many unused connections are kept to one peer. Default: 8.
	IdleConns int
}

// ClientStats counts what a client did; the numbers only grow.
type ClientStats struct {
	// Requests were made, Bytes of bodies received, right or wrong.
	Requests, Bytes int64
	// Busy answers came, Corrupt ones, and other failures except of who
	// cancelled.
	Busy, Corrupt, Failed int64
}

type clientCounters struct {
	requests, bytes, busy, corrupt, failed atomic.Int64
}

// Client reads from peers, over connections that it keeps. Its methods are
// safe for concurrent use.
type Client struct {
	// Constant after NewClient.
	cfg       ClientConfig
	scheme    string
	transport *http.Transport

	count clientCounters
}

// BusyError is the cause, to be had with errors.As, of an error of kind Busy
// that a peer answered.
type BusyError struct {
	// Addr is the peer, Reason its word for why.
	Addr, Reason string
	// Others are peers it names that may have the bytes, best first. They are as
	// good as the peer that names them.
	Others []string
}

func (e *BusyError) Error() string { return fmt.Sprintf("peer %s is busy (%s)", e.Addr, e.Reason) }

// NewClient returns a client. The caller closes it.
func NewClient(cfg ClientConfig) *Client {
	setDefault(&cfg.MaxRange, DefaultMaxRange)
	setDefault(&cfg.DialTimeout, 3*time.Second)
	setDefault(&cfg.StallTimeout, 10*time.Second)
	setDefault(&cfg.IdleTimeout, 90*time.Second)
	setDefault(&cfg.IdleConns, 8)
	c := &Client{cfg: cfg, scheme: "http"}
	dialer := &net.Dialer{Timeout: cfg.DialTimeout}
	c.transport = &http.Transport{
		// No proxy: peers are reached themselves or not at all.
		DialContext:            dialer.DialContext,
		DisableCompression:     true,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    cfg.IdleConns,
		IdleConnTimeout:        cfg.IdleTimeout,
		MaxResponseHeaderBytes: 32 << 10,
		Protocols:              new(http.Protocols),
	}
	c.transport.Protocols.SetHTTP1(true)
	if cfg.TLS != nil {
		c.scheme = "https"
		c.transport.DialTLSContext = c.dialTLS
	}
	return c
}

func (c *Client) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	conn, err := c.transport.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	secured, err := c.cfg.TLS.client(ctx, conn, addr)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// Close closes the connections that are not in use; the others close when
// their readers do.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Stats returns the counters.
func (c *Client) Stats() ClientStats {
	n := &c.count
	return ClientStats{
		Requests: n.requests.Load(), Bytes: n.bytes.Load(),
		Busy: n.busy.Load(), Corrupt: n.corrupt.Load(), Failed: n.failed.Load(),
	}
}

// Holding is what a peer has of a blob.
type Holding struct {
	// Size is the blob's size in bytes.
	Size int64
	// Held are the parts on the peer's disk, in order and not touching, at most
	// 512 of them. Others may be arriving.
	Held []blob.Range
}

// Stat asks the peer at addr, "host:port", what it has of d.
//
// Errors: as Source.
func (c *Client) Stat(ctx context.Context, addr string, d digest.Digest) (Holding, error) {
	if err := (blob.Ref{Digest: d}).Validate(); err != nil {
		return Holding{}, err
	}
	x, err := c.exchange(ctx, request{http.MethodHead, addr, d, blob.Range{}})
	if err != nil {
		return Holding{}, err
	}
	defer x.close()
	if x.resp.StatusCode != http.StatusOK || x.resp.ContentLength < 0 {
		return Holding{}, x.fail(blob.Errorf(blob.Corrupt, "it answers %q without a size", x.resp.Status))
	}
	h := Holding{Size: x.resp.ContentLength}
	var ok bool
	if h.Held, ok = parseHeld(x.resp.Header.Get(headerHeld), h.Size); !ok {
		return Holding{}, x.fail(blob.Errorf(blob.Corrupt, "what it says it holds makes no sense"))
	}
	return h, nil
}

// Source returns the peer at addr, "host:port", as a Source of what it holds
// or is receiving. Opening a blob whose size is known asks it nothing. Readers
// implement io.WriterTo.
//
// Errors: NotFound for what the peer does not have; Busy, with a *BusyError;
// Unavailable when it cannot be reached or the connection broke; Timeout when
// it stalled; Corrupt when bytes or their number are not what was asked or
// announced; Unauthorized when it and this node do not accept each other's
// certificates; and what it had when it relayed.
func (c *Client) Source(addr string) blob.Source { return &source{c, addr} }

type source struct {
	c    *Client
	addr string
}

func (s *source) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	if ref.Size == blob.SizeUnknown {
		h, err := s.c.Stat(ctx, s.addr, ref.Digest)
		if err != nil {
			return nil, err
		}
		ref.Size = h.Size
	}
	return &remoteBlob{s, ref}, nil
}

type remoteBlob struct {
	s   *source
	ref blob.Ref
}

func (b *remoteBlob) Size() int64 { return b.ref.Size }

func (b *remoteBlob) Close() error { return nil }

func (b *remoteBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(b.ref.Size); err != nil {
		return nil, err
	}
	d := &download{b: b, ctx: ctx, off: r.Off, end: r.End()}
	if r.Len > 0 {
		if err := d.next(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// request is what is asked of a peer.
type request struct {
	method string
	addr   string
	d      digest.Digest
	r      blob.Range // of a GET
}

func (q request) String() string {
	if q.method == http.MethodHead {
		return fmt.Sprintf("stat %s at peer %s", q.d, q.addr)
	}
	return fmt.Sprintf("read %s bytes %v from peer %s", q.d, q.r, q.addr)
}

// errStalled ends an exchange of which no byte came for too long.
var errStalled = errors.New("no byte within the time limit")

// exchange is a request and its answer, while that arrives.
type exchange struct {
	c      *Client
	q      request
	caller context.Context // of whoever asks
	ctx    context.Context // within it; ends with the exchange
	cancel context.CancelCauseFunc
	stall  *time.Timer // ends ctx; runs while we wait for the peer
	resp   *http.Response
}

// exchange sends q and returns when the header of a good answer has come. The
// caller closes the exchange.
func (c *Client) exchange(ctx context.Context, q request) (*exchange, error) {
	c.count.requests.Add(1)
	x := &exchange{c: c, q: q, caller: ctx}
	x.ctx, x.cancel = context.WithCancelCause(ctx)
	if _, _, err := net.SplitHostPort(q.addr); err != nil {
		return nil, x.abort(blob.Errorf(blob.Invalid, "not host:port: %w", err))
	}
	req := (&http.Request{
		Method: q.method,
		URL:    &url.URL{Scheme: c.scheme, Host: q.addr, Path: blobPath(q.d)},
		Host:   q.addr,
		Header: http.Header{"User-Agent": {"skimmer"}},
	}).WithContext(x.ctx)
	if q.r.Len > 0 {
		req.Header["Range"] = []string{"bytes=" + q.r.String()}
		setOrigin(ctx, req.Header)
	}
	x.stall = time.AfterFunc(c.cfg.StallTimeout, func() { x.cancel(errStalled) })
	resp, err := c.transport.RoundTrip(req)
	x.stall.Stop()
	if err != nil {
		return nil, x.abort(err)
	}
	x.resp = resp
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, x.abort(x.refusal())
	}
	return x, nil
}

// read reads from the body, waiting for it no longer than it may take.
func (x *exchange) read(p []byte) (int, error) {
	x.stall.Reset(x.c.cfg.StallTimeout)
	n, err := x.resp.Body.Read(p)
	x.stall.Stop()
	x.c.count.bytes.Add(int64(n))
	return n, err
}

// close ends the exchange. Its connection is used again if all was read.
func (x *exchange) close() {
	if x.resp != nil {
		_ = x.resp.Body.Close() // whoever stops reading does not care why it fails
	}
	x.cancel(nil)
}

// abort is close and fail.
func (x *exchange) abort(err error) error {
	err = x.fail(err)
	x.close()
	return err
}

// refusal is what an answer says that is an error.
func (x *exchange) refusal() error {
	h, kind := x.resp.Header, kindOf(x.resp.StatusCode)
	if kind == blob.Busy {
		return &blob.Error{Kind: kind, Err: &BusyError{
			Addr: x.q.addr, Reason: cleanReason(h.Get(headerBusy)), Others: parsePeers(h.Get(headerPeers)),
		}}
	}
	if _, size, ok := parseContentRange(h.Get("Content-Range")); ok && x.q.r.Check(size) != nil {
		return blob.Errorf(blob.Corrupt, "it has the blob with %d bytes", size)
	}
	text := make([]byte, maxReason)
	n := 0
	for n < len(text) && x.q.method != http.MethodHead {
		m, err := x.read(text[n:])
		n += m
		if err != nil {
			break
		}
	}
	return blob.Errorf(kind, "it answers %d: %s", x.resp.StatusCode, cleanReason(string(text[:n])))
}

// fail says what was being done when err happened, gives it its kind, and
// counts it.
func (x *exchange) fail(err error) error {
	kind := x.kind(err)
	switch {
	case kind == blob.Canceled:
	case kind == blob.Busy:
		x.c.count.busy.Add(1)
	case kind == blob.Corrupt:
		x.c.count.corrupt.Add(1)
	default:
		x.c.count.failed.Add(1)
	}
	switch {
	case x.caller.Err() != nil:
		err = context.Cause(x.caller)
	case errors.Is(err, context.Canceled) && context.Cause(x.ctx) == errStalled:
		err = errStalled
	case err == io.EOF:
		err = io.ErrUnexpectedEOF // nothing above may take it for an end
	}
	return blob.Errorf(kind, "%v: %w", x.q, err)
}

// kind classifies a failure of x.
func (x *exchange) kind(err error) blob.Kind {
	var (
		ours  *blob.Error
		wrong *tls.CertificateVerificationError
		other *net.OpError
	)
	switch {
	case x.caller.Err() != nil:
		return blob.KindOf(x.caller.Err())
	case errors.As(err, &ours):
		return ours.Kind
	case context.Cause(x.ctx) == errStalled:
		return blob.Timeout
	case errors.As(err, &wrong), errors.As(err, &other) && other.Op == "remote error":
		// A certificate was refused, here or there.
		return blob.Unauthorized
	}
	return blob.Unavailable
}
