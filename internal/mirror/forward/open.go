package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"skimmer/internal/blob"
)

// tlsHandshake is the first byte of a connection that speaks TLS.
const tlsHandshake = 0x16

// open answers CONNECT to a host that rules name: what is asked for inside is
// answered here. What is not TLS is carried as in any tunnel.
func (p *Proxy) open(w http.ResponseWriter, req *http.Request, to tunnelTo) {
	ctx := req.Context()
	if err := p.cfg.Guard.Check(ctx, to.address); errors.Is(err, blob.Forbidden) {
		to.release()
		p.fail(w, req, err)
		return
	}
	client, err := accept(w)
	if err != nil {
		to.release()
		p.fail(w, req, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = client.Close() }) // Peek learns of it
	_ = client.SetReadDeadline(time.Now().Add(helloTimeout))      // a dead connection fails below
	first, err := client.r.Peek(1)
	if !stop() || err != nil || client.SetReadDeadline(time.Time{}) != nil {
		to.release()
		_ = client.Close() // its end is all there is to say
		return
	}
	if first[0] == tlsHandshake {
		p.stats.Opened.Add(1)
		p.handOver.give(p.authority.server(&openedConn{client, to}, to.host))
		return
	}
	defer to.release()
	server, err := p.cfg.Guard.DialContext(ctx, "tcp", to.address)
	if err != nil {
		_ = client.Close() // it has its 200 already
		p.log.Warn("proxy tunnel failed", "address", to.address, "error", err)
		return
	}
	p.tunnel(ctx, client, server)
}

// openedConn is a client's connection that TLS is spoken on.
type openedConn struct {
	*clientConn
	to tunnelTo
}

// Close implements net.Conn.
func (c *openedConn) Close() error {
	c.to.release()
	return c.clientConn.Close()
}

// insideKey is for the tunnelTo of requests inside.
type insideKey struct{}

// serveInside starts the server of what is asked for inside tunnels.
func (p *Proxy) serveInside() {
	p.handOver = &handOver{conns: make(chan net.Conn), done: make(chan struct{})}
	p.inside = &http.Server{
		Handler:           http.HandlerFunc(p.answerInside),
		ReadHeaderTimeout: helloTimeout,
		IdleTimeout:       p.cfg.IdleTimeout,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return p.ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if secure, ok := conn.(*tls.Conn); ok {
				if c, ok := secure.NetConn().(*openedConn); ok {
					return context.WithValue(ctx, insideKey{}, c.to)
				}
			}
			return ctx
		},
	}
	p.wg.Go(func() {
		if err := p.inside.Serve(p.handOver); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("proxy serves no opened tunnels any more", "error", err)
		}
	})
}

// answerInside answers a request that came through an opened tunnel.
func (p *Proxy) answerInside(w http.ResponseWriter, req *http.Request) {
	ctx, done, ok := p.begin(req.Context())
	if !ok {
		p.fail(w, req, blob.Errorf(blob.Canceled, "serve a request: the proxy is stopping"))
		return
	}
	defer done()
	p.stats.Requests.Add(1)
	req = req.WithContext(ctx)
	to, ok := ctx.Value(insideKey{}).(tunnelTo)
	host, err := hostOf(req.Host, "https")
	switch {
	case req.Method == http.MethodConnect:
		p.fail(w, req, blob.Errorf(blob.Invalid, "connect: there is no tunnel in a tunnel"))
	case p.looped(req):
		p.fail(w, req, errLoop)
	case !ok || req.Host != "" && (err != nil || host != to.host):
		p.fail(w, req, errMisdirect)
	default:
		u := req.URL
		p.route(w, req, &url.URL{Scheme: "https", Host: to.host, Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery})
	}
}

// handOver is a listener whose connections are given to it.
type handOver struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// give gives it a connection, or closes that if nobody takes it any more.
func (h *handOver) give(conn net.Conn) {
	select {
	case h.conns <- conn:
	case <-h.done:
		_ = conn.Close() // nothing was sent on it
	}
}

// Accept implements net.Listener.
func (h *handOver) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handOver) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handOver) Addr() net.Addr { return tunnelAddr{} }

// tunnelAddr is the address of a server that is reached through tunnels.
type tunnelAddr struct{}

// Network implements net.Addr.
func (tunnelAddr) Network() string { return "tunnel" }

func (tunnelAddr) String() string { return "tunnel" }
