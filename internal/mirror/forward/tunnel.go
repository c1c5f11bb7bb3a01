package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
)

// established is the answer to CONNECT behind which the tunnel begins.
const established = "HTTP/1.1 200 Connection Established\r\n\r\n"

// helloTimeout is how long a client has to begin what it wanted a tunnel for,
// where that decides what becomes of it.
const helloTimeout = 30 * time.Second

// connect answers CONNECT.
func (p *Proxy) connect(w http.ResponseWriter, req *http.Request) {
	host, address, err := authorityOf(req)
	if err != nil {
		p.fail(w, req, err)
		return
	}
	if p.tunnels.Add(1) > int64(p.cfg.MaxTunnels) {
		p.tunnels.Add(-1)
		p.fail(w, req, blob.Errorf(blob.Busy, "connect to %s: there are %d tunnels already", address, p.cfg.MaxTunnels))
		return
	}
	release := sync.OnceFunc(func() { p.tunnels.Add(-1) })
	open := p.inside != nil && p.rules.name(host)
	p.log.Debug("proxy tunnel", "address", address, "open", open)
	if open {
		p.open(w, req, tunnelTo{host, address, release})
		return
	}
	defer release()
	server, err := p.cfg.Guard.DialContext(req.Context(), "tcp", address)
	if err != nil {
		p.fail(w, req, err)
		return
	}
	client, err := accept(w)
	if err != nil {
		_ = server.Close() // nothing was sent
		p.fail(w, req, err)
		return
	}
	p.tunnel(req.Context(), client, server)
}

// tunnelTo is where a tunnel leads.
type tunnelTo struct {
	host    string // as URLs of https have it
	address string // with its port
	release func() // to be called when the tunnel ends
}

// authorityOf returns what CONNECT is for, as a host of https URLs and as an
// address to be dialled. Errors: Invalid.
func authorityOf(req *http.Request) (host, address string, err error) {
	_, port, err := net.SplitHostPort(req.URL.Host)
	if err != nil || port == "" || req.URL.Path != "" {
		return "", "", blob.Errorf(blob.Invalid, "connect: what is asked for is not host:port")
	}
	if host, err = hostOf(req.URL.Host, "https"); err != nil {
		return "", "", err
	}
	return host, withPort(host, "https"), nil
}

// clientConn is a client's connection, whose first bytes were read already.
type clientConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *clientConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite tells the client that no more comes.
func (c *clientConn) CloseWrite() error { return closeWrite(c.Conn) }

// accept takes over a client's connection and tells it that it has its tunnel.
func accept(w http.ResponseWriter) (*clientConn, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "make a tunnel: %w", err) // HTTP/2
	}
	_ = conn.SetDeadline(time.Time{}) // the server's limits; a dead connection fails below
	if _, err := io.WriteString(conn, established); err != nil {
		_ = conn.Close() // the write's error says more
		return nil, err
	}
	// rw itself would end the request's context at the end of what the client
	// sends, so only what it has already is taken from it.
	early, _ := rw.Peek(rw.Reader.Buffered()) // that many there are
	return &clientConn{conn, bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn))}, nil
}

// tunnel carries bytes both ways until both sides ended, one failed, nothing
// came for long or ctx is over. It closes both.
func (p *Proxy) tunnel(ctx context.Context, client, server net.Conn) {
	p.stats.Tunnels.Add(1)
	t := &tunnel{p: p, begun: time.Now(), conns: [2]net.Conn{client, server}}
	defer t.end()
	defer context.AfterFunc(ctx, t.end)()
	var other sync.WaitGroup
	other.Go(func() { t.carry(server, client) })
	t.carry(client, server)
	other.Wait()
}

// tunnel is one on its way.
type tunnel struct {
	p     *Proxy
	begun time.Time
	conns [2]net.Conn
	last  atomic.Int64 // when a byte came, in nanoseconds after begun
}

func (t *tunnel) end() {
	for _, c := range t.conns {
		_ = c.Close() // whoever reads or writes it learns of it
	}
}

// carry copies from src to dst. The end of src is passed on and ends nothing
// else; a failure ends the tunnel.
func (t *tunnel) carry(dst, src net.Conn) {
	buf := t.p.buffers.Get()
	defer t.p.buffers.Put(buf)
	if err := t.copy(dst, src, buf); err != nil || closeWrite(dst) != nil {
		t.end()
	}
}

func (t *tunnel) copy(dst, src net.Conn, buf []byte) error {
	for {
		if err := src.SetReadDeadline(t.begun.Add(time.Duration(t.last.Load()) + t.p.cfg.IdleTimeout)); err != nil {
			return err
		}
		n, err := src.Read(buf)
		if n > 0 {
			t.last.Store(int64(time.Since(t.begun)))
			t.p.stats.TunnelBytes.Add(int64(n))
			if err := dst.SetWriteDeadline(time.Now().Add(t.p.cfg.IdleTimeout)); err != nil {
				return err
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Since(t.begun)-time.Duration(t.last.Load()) < t.p.cfg.IdleTimeout:
			// The other direction is in use.
		case err != nil:
			return err
		}
	}
}

// closeWrite tells the other end of conn that no more comes. It fails where that
// cannot be said.
func closeWrite(conn net.Conn) error {
	c, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return c.CloseWrite()
}
