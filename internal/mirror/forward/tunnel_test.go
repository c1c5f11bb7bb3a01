package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob/blobtest"
)

// TestTunnels has HTTPS from end to end: the proxy sees none of it.
func TestTunnels(t *testing.T) {
	const host = "server.example.test"
	address, roots := secure(t, host, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, req.Host+req.URL.Path+req.Header.Get("Via"))
	}))
	w := newWorld(t, Config{Guard: resolveTo(t, host), Rules: []Rule{{Regex: `.*`}}})
	resp, body := w.do(w.client(roots), w.request(http.MethodGet, "https://"+net.JoinHostPort(host, portOfAddress(t, address))+"/a", nil))
	if want := host + ":" + portOfAddress(t, address) + "/a"; resp.StatusCode != http.StatusOK || body != want {
		t.Errorf("%s %q, want %q", resp.Status, body, want)
	}
	if s := w.proxy.Stats(); s.Tunnels.Load() != 1 || s.Opened.Load() != 0 || s.TunnelBytes.Load() == 0 || s.Passed.Load() != 0 {
		t.Errorf("tunnels %d, opened %d, bytes %d, passed %d", s.Tunnels.Load(), s.Opened.Load(), s.TunnelBytes.Load(), s.Passed.Load())
	}
}

// TestTunnelCarriesBothWays checks that the end of one direction leaves the
// other open, whichever ends first.
func TestTunnelCarriesBothWays(t *testing.T) {
	const size = 5 << 20
	there, back := blobtest.Bytes(1, size), blobtest.Bytes(2, size)
	w := newWorld(t, Config{})
	t.Run("client ends first", func(t *testing.T) {
		address := listen(t, func(conn *net.TCPConn) {
			if got, err := io.ReadAll(conn); string(got) != string(there) || err != nil {
				t.Errorf("the server got %d bytes, %v", len(got), err)
			}
			_, _ = conn.Write(back)
		})
		conn, r := w.connect(address)
		_, _ = conn.Write(there)
		_ = conn.CloseWrite()
		if got, err := io.ReadAll(r); string(got) != string(back) || err != nil {
			t.Errorf("the client got %d bytes, %v", len(got), err)
		}
	})
	t.Run("server ends first", func(t *testing.T) {
		done := make(chan struct{})
		address := listen(t, func(conn *net.TCPConn) {
			defer close(done)
			_, _ = conn.Write(back)
			_ = conn.CloseWrite()
			if got, err := io.ReadAll(conn); string(got) != string(there) || err != nil {
				t.Errorf("the server got %d bytes, %v", len(got), err)
			}
		})
		conn, r := w.connect(address)
		if got, err := io.ReadAll(r); string(got) != string(back) || err != nil {
			t.Errorf("the client got %d bytes, %v", len(got), err)
		}
		_, _ = conn.Write(there)
		_ = conn.CloseWrite()
		within(t, "the server's end", done)
	})
	t.Run("client does not wait for the answer", func(t *testing.T) {
		address := listen(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
		conn, r := w.raw("CONNECT " + address + " HTTP/1.1\r\nHost: x\r\n\r\nearly")
		_ = w.answer(r)
		_ = conn.CloseWrite()
		if got, err := io.ReadAll(r); string(got) != "early" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("server breaks off", func(t *testing.T) {
		address := listen(t, func(conn *net.TCPConn) {
			_, _ = io.ReadFull(conn, make([]byte, 1))
			_ = conn.SetLinger(0)
		})
		conn, r := w.connect(address)
		_, _ = conn.Write([]byte("x"))
		_, _ = io.Copy(io.Discard, r)
		// Its other direction ended, too, although this end stays open.
		for {
			if _, err := conn.Write([]byte("x")); err != nil {
				break
			}
		}
	})
	if n := w.proxy.Stats().Tunnels.Load(); n != 4 {
		t.Errorf("%d tunnels", n)
	}
}

func TestTunnelsRefused(t *testing.T) {
	hold := make(chan struct{})
	address := listen(t, func(*net.TCPConn) { <-hold })
	defer close(hold)
	g := newGuard(t, GuardConfig{Allow: []string{address}})
	w := newWorld(t, Config{Guard: g, MaxTunnels: 1})
	connect := func(target string) (int, string) {
		_, r := w.raw("CONNECT " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")
		resp := w.answer(r)
		return resp.StatusCode, resp.Header.Get("Proxy-Status")
	}
	for target, want := range map[string]int{
		"127.0.0.1:1": 403, "localhost:1": 403, "169.254.169.254:80": 403, "[::1]:1": 403, "[::ffff:127.0.0.1]:1": 403, "0.0.0.0:1": 403, "[::]:1": 403,
		"0:1": 403, "127.1:1": 403, "2130706433:1": 403, // what resolvers may take for 127.0.0.1; others know no such name
		"host": 400, "host:": 400, ":80": 400, "host:0": 400, "host:99999": 400, "/path": 400, "a%20b:80": 400,
	} {
		status, word := connect(target)
		if status != want && !(status == http.StatusBadGateway && strings.HasSuffix(word, "dns_error") && strings.Trim(target, "0123456789.") == ":") {
			t.Errorf("CONNECT %s: %d %q, want %d", target, status, word, want)
		}
	}
	_, _ = w.connect(address)
	if status, word := connect(address); status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d %q", status, word)
	}
}

func TestCloseEndsTunnels(t *testing.T) {
	ended := make(chan struct{})
	address := listen(t, func(conn *net.TCPConn) {
		defer close(ended)
		_, _ = io.Copy(io.Discard, conn)
	})
	w := newWorld(t, Config{})
	_, r := w.connect(address)
	if err := w.proxy.Close(); err != nil {
		t.Error(err)
	}
	within(t, "the server's end", ended)
	if _, err := r.ReadByte(); err == nil {
		t.Error("the client's end is there")
	}
	if n := w.proxy.tunnels.Load(); n != 0 {
		t.Errorf("%d tunnels after Close", n)
	}
}

// TestIdleTunnelsEnd runs in virtual time, on pipes.
func TestIdleTunnelsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config{Guard: newGuard(t, GuardConfig{}), IdleTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = p.Close() }()
		client, here := net.Pipe()
		server, there := net.Pipe()
		begun := time.Now()
		ended := make(chan time.Duration, 1)
		go func() {
			p.tunnel(t.Context(), here, there)
			ended <- time.Since(begun)
		}()
		// One direction in use keeps the other.
		for range 10 {
			time.Sleep(50 * time.Second)
			if _, err := server.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := <-ended, 560*time.Second; got != want {
			t.Errorf("ended after %v, want %v", got, want)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the client's end: %v", err)
		}
		// An end that does not read is idle as well.
		client, here = net.Pipe()
		server, there = net.Pipe()
		begun = time.Now()
		go func() {
			p.tunnel(t.Context(), here, there)
			ended <- time.Since(begun)
		}()
		_, _ = server.Write([]byte("x"))
		if got, want := <-ended, time.Minute; got != want {
			t.Errorf("ended after %v, want %v", got, want)
		}
		_ = client.Close()
	})
}

// TestClientLeavesBeforeTheTunnel has a client that gives up while the connection is
// being made.
func TestClientLeavesBeforeTheTunnel(t *testing.T) {
	asked, left := make(chan struct{}), make(chan struct{})
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case <-asked:
		default:
			close(asked)
		}
		<-ctx.Done() // of the client, or the test fails below
		select {
		case <-left:
		default:
			close(left)
		}
		return nil, ctx.Err()
	}}
	w := newWorld(t, Config{Guard: newGuard(t, GuardConfig{Resolver: resolver, Timeout: time.Hour})})
	conn, _ := w.raw("CONNECT slow.example.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	within(t, "the question", asked)
	_ = conn.Close()
	within(t, "the end of it", left)
}
