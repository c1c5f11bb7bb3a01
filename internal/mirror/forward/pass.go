package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// maxIdle is how many connections to servers are kept that nobody uses.
const maxIdle = 256

// newTransport returns the pool of connections for what is passed on. It asks
// servers as the client does: nothing is packed, unpacked or tried again with
// another protocol. How long an answer may take is the client's business.
func (p *Proxy) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            p.cfg.Guard.DialContext,
		DialTLSContext:         p.dialTLS,
		DisableCompression:     true,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
}

// dialTLS connects to a server over TLS.
func (p *Proxy) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	host, err := hostOf(address, "https")
	if err != nil {
		return nil, err
	}
	raw, err := p.cfg.Guard.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if p.cfg.Roots != nil {
		roots = p.cfg.Roots(host)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says more
		return nil, err
	}
	return conn, nil
}

// pass passes a request on to target and its answer back.
func (p *Proxy) pass(w http.ResponseWriter, req *http.Request, target *url.URL) {
	p.stats.Passed.Add(1)
	if req.ContentLength != 0 {
		// Answers may begin while the request still arrives. Where that cannot
		// be, they begin later.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	if req.Header.Get("Upgrade") != "" {
		w = &upgradable{w, req.Context()}
	}
	proxy := httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { p.outgoing(r, target) },
		Transport:     p.transport,
		FlushInterval: -1,
		BufferPool:    &p.buffers,
		ErrorLog:      slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode == http.StatusProxyAuthRequired {
				return errUnexpected // or a client would show the server what is for us
			}
			resp.Header.Add("Via", p.via())
			return nil
		},
		ErrorHandler: p.fail,
	}
	proxy.ServeHTTP(w, req)
}

// outgoing makes the request to the server. ReverseProxy did away with what is
// about the connection, but also with what a proxy for clients leaves alone.
func (p *Proxy) outgoing(r *httputil.ProxyRequest, target *url.URL) {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = values
		}
	}
	dropOurs(r.Out.Header)
	r.Out.Header.Add("Via", p.via())
	r.Out.URL = target
	r.Out.Host = target.Host
}

// upgradable is the writer of an answer after which the connection may be
// another protocol's, to end with ctx.
type upgradable struct {
	http.ResponseWriter
	ctx context.Context
}

// Unwrap is for http.ResponseController.
func (u *upgradable) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// Hijack implements http.Hijacker.
func (u *upgradable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err == nil {
		context.AfterFunc(u.ctx, func() { _ = conn.Close() }) // whoever reads it learns the error
	}
	return conn, rw, err
}

// bufferPool keeps what answers are copied with.
type bufferPool struct{ pool sync.Pool }

// copySize is how much is copied at a time, in bytes.
const copySize = 32 << 10

// Get implements httputil.BufferPool.
func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[copySize]byte); ok {
		return p[:]
	}
	return make([]byte, copySize)
}

// Put implements httputil.BufferPool.
func (b *bufferPool) Put(p []byte) { b.pool.Put((*[copySize]byte)(p)) }
