package forward

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
)

// TestOpensTunnelsThatRulesName has two servers, each with an authority of its
// own. The client of the one that is named sees the proxy's.
func TestOpensTunnelsThatRulesName(t *testing.T) {
	const named, other = "named.example.test", "other.example.test"
	who := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		_, _ = fmt.Fprint(w, req.Method, " ", req.Proto, " ", req.RequestURI, " ", string(body), err, " ", req.Header.Get("Authorization"))
	})
	namedAddress, namedRoots := secure(t, named, who)
	otherAddress, otherRoots := secure(t, other, who)
	ca, roots := newCA(t, 48*time.Hour)
	w := newWorld(t, Config{
		Guard: resolveTo(t, named, other), CA: ca, Rules: []Rule{{Regex: `^https://named\.example\.test(:\d+)?/`}}, Username: "u", Password: "p",
		Roots: func(host string) *x509.CertPool {
			if host == net.JoinHostPort(named, portOfAddress(t, namedAddress)) {
				return namedRoots
			}
			return nil
		},
	})
	w.url.User = url.UserPassword("u", "p")
	client := w.client(roots)
	namedURL := "https://" + net.JoinHostPort(named, portOfAddress(t, namedAddress))
	for range 2 {
		resp, body := w.do(client, w.request(http.MethodPost, namedURL+"/a%2Fb?c=;", nil, "Authorization", "Bearer x"))
		if want := "POST HTTP/1.1 /a%2Fb?c=; <nil> Bearer x"; body != want || resp.StatusCode != http.StatusOK || resp.Header.Get("Via") == "" {
			t.Errorf("named: %v %q, want %q", resp, body, want)
		}
		leaf := resp.TLS.PeerCertificates[0]
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life > leafLife+leafEarly || leaf.PublicKeyAlgorithm != x509.ECDSA {
			t.Errorf("certificate lives %v, with %v", life, leaf.PublicKeyAlgorithm)
		}
	}
	otherURL := "https://" + net.JoinHostPort(other, portOfAddress(t, otherAddress))
	if resp, body := w.do(w.client(otherRoots), w.request(http.MethodGet, otherURL+"/", nil)); resp.Header.Get("Via") != "" {
		t.Errorf("other: %v %q came through the proxy in the open", resp, body)
	}
	if _, err := client.Get(otherURL); err == nil {
		t.Error("the other server has a certificate of the proxy")
	}
	if s := w.proxy.Stats(); s.Opened.Load() != 1 || s.Tunnels.Load() != 2 || s.Passed.Load() != 2 {
		t.Errorf("opened %d, tunnels %d, passed %d", s.Opened.Load(), s.Tunnels.Load(), s.Passed.Load())
	}
	// Kept connections count as long as they last.
	if err := w.proxy.Close(); err != nil || w.proxy.tunnels.Load() != 0 {
		t.Errorf("close: %v, %d tunnels", err, w.proxy.tunnels.Load())
	}
}

// inside makes a tunnel to address that the proxy opens, and speaks TLS in it.
func (w *world) inside(address, name string, roots *x509.CertPool) *tls.Conn {
	w.t.Helper()
	conn, r := w.connect(address)
	if r.Buffered() > 0 {
		w.t.Fatal("the server speaks first")
	}
	secure := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots})
	if err := secure.HandshakeContext(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return secure
}

func TestInsideTunnels(t *testing.T) {
	ca, roots := newCA(t, 48*time.Hour)
	w := newWorld(t, Config{CA: ca, Rules: []Rule{{Regex: `.*`}}, Guard: newGuard(t, GuardConfig{Allow: []string{"named.example.test"}, Resolver: names(t, nil)})})
	conn := w.inside("named.example.test:443", "named.example.test", roots)
	client := http.Client{Transport: &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	for _, c := range []struct {
		method, host string
		want         int
	}{
		{"GET", "other.example.test", http.StatusMisdirectedRequest},
		{"GET", "named.example.test:444", http.StatusMisdirectedRequest},
		{"GET", "Named.example.test:443", http.StatusBadGateway}, // there is no such server
		{"CONNECT", "named.example.test", http.StatusBadRequest},
	} {
		req := w.request(c.method, "https://named.example.test/", nil)
		req.Host = c.host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.host, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s: %s, want %d", c.method, c.host, resp.Status, c.want)
		}
	}
	client.CloseIdleConnections()
	// What must not be reached is not even opened.
	for _, target := range []string{"localhost:443", "127.0.0.1:443", "169.254.169.254:443"} {
		_, r := w.raw("CONNECT " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp := w.answer(r); resp.StatusCode != http.StatusForbidden {
			t.Errorf("CONNECT %s: %s", target, resp.Status)
		}
	}
}

// TestNoTLSBehindTunnels has clients see of servers without TLS what they would
// see in a tunnel that nobody opens: no answer.
func TestNoTLSBehindTunnels(t *testing.T) {
	ca, roots := newCA(t, 48*time.Hour)
	w := newWorld(t, Config{CA: ca, Rules: []Rule{{Regex: `.*`}}})
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, server := range map[string]*httptest.Server{"plain": plain, "gone": gone} {
		resp, err := w.client(roots).Get("https://" + server.Listener.Addr().String() + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: answered %s", name, resp.Status)
		}
	}
	if s := w.proxy.Stats(); s.Opened.Load() != 2 {
		t.Errorf("%d tunnels were opened, want 2", s.Opened.Load())
	}
}

// TestOpenedTunnelsCarryWhatIsNotTLS has a rule that names everything.
func TestOpenedTunnelsCarryWhatIsNotTLS(t *testing.T) {
	ca, _ := newCA(t, 48*time.Hour)
	w := newWorld(t, Config{CA: ca, Rules: []Rule{{Regex: `.*`}}})
	address := listen(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	conn, r := w.connect(address)
	_, _ = io.WriteString(conn, "hello")
	_ = conn.CloseWrite()
	if got, err := io.ReadAll(r); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	// One that waits for the server to speak first does not hold up Close.
	_, r = w.connect(address)
	if err := w.proxy.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("the client's end is there after Close")
	}
}

func TestAuthorityIsChecked(t *testing.T) {
	good, _ := newCA(t, time.Hour)
	other, _ := newCA(t, time.Hour)
	old, _ := newCA(t, -time.Minute)
	a, err := newAuthority(good)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.certificate("a.test")
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string]*tls.Certificate{
		"nothing":          {},
		"garbage":          {Certificate: [][]byte{{1, 2, 3}}, PrivateKey: good.PrivateKey},
		"another's key":    {Certificate: good.Certificate, PrivateKey: other.PrivateKey},
		"no key":           {Certificate: good.Certificate},
		"a server's":       leaf,
		"one that ran out": old,
	} {
		if _, err := New(Config{Guard: newGuard(t, GuardConfig{}), CA: pair}); !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if _, err := New(Config{}); !errors.Is(err, blob.Invalid) {
		t.Errorf("no guard: %v, want Invalid", err)
	}
}

// TestCertificates runs in virtual time.
func TestCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, roots := newCA(t, 60*time.Hour)
		a, err := newAuthority(ca)
		if err != nil {
			t.Fatal(err)
		}
		get := func(host string) *tls.Certificate {
			t.Helper()
			c, err := a.certificate(host)
			if err != nil {
				t.Fatal(err)
			}
			name := (&url.URL{Host: host}).Hostname()
			if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: time.Now()}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
			return c
		}
		first := get("a.test")
		for _, host := range []string{"b.test", "127.0.0.1", "[::1]", "[::1]:81", "a_b.test", "b.test.:81"} {
			if get(host) == first {
				t.Errorf("%s has the certificate of another", host)
			}
		}
		time.Sleep(22 * time.Hour)
		if get("a.test:81") != first {
			t.Error("a certificate was made again after 22 h")
		}
		time.Sleep(time.Hour)
		second := get("a.test")
		if second == first || len(a.leaves) != 1 {
			t.Errorf("after 23 h there are %d certificates", len(a.leaves))
		}
		time.Sleep(23 * time.Hour)
		if third := get("a.test"); !third.Leaf.NotAfter.Equal(ca.Leaf.NotAfter) {
			t.Errorf("valid until %v, the authority until %v", third.Leaf.NotAfter, ca.Leaf.NotAfter)
		}
		for i := range maxLeaves + 10 {
			a.leaves[fmt.Sprint(i)] = leaf{second, time.Now()}
		}
		get("c.test")
		if len(a.leaves) > maxLeaves {
			t.Errorf("%d certificates are kept", len(a.leaves))
		}
	})
}
