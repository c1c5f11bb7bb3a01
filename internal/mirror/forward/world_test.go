package forward

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

// world is a proxy on a port of its own, and servers behind it.
type world struct {
	t      *testing.T
	proxy  *Proxy
	server *httptest.Server
	url    *url.URL // of the port
}

// newWorld starts a proxy. It may reach 127.0.0.1 unless cfg has a Guard.
func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	if cfg.Guard == nil {
		cfg.Guard = newGuard(t, GuardConfig{Allow: []string{"127.0.0.1"}})
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, proxy: p}
	mirror := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "the mirror: "+req.RequestURI)
	})
	w.server = httptest.NewServer(Handler(mirror, p))
	w.url = mustURL(t, w.server.URL)
	t.Cleanup(func() {
		w.server.CloseClientConnections()
		w.server.Close()
		_ = p.Close()
	})
	return w
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// client returns a client of the proxy that trusts roots.
func (w *world) client(roots *x509.CertPool) *http.Client {
	transport := &http.Transport{Proxy: http.ProxyURL(w.url), TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do makes a request through the proxy and returns the answer with its body.
func (w *world) do(c *http.Client, req *http.Request) (*http.Response, string) {
	w.t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp, string(body)
}

func (w *world) get(rawURL string, header ...string) (*http.Response, string) {
	w.t.Helper()
	return w.do(w.client(nil), w.request(http.MethodGet, rawURL, nil, header...))
}

func (w *world) request(method, rawURL string, body io.Reader, header ...string) *http.Request {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, rawURL, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// raw sends text to the port as it is and returns the connection.
func (w *world) raw(text string) (*net.TCPConn, *bufio.Reader) {
	w.t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(w.t.Context(), "tcp", w.url.Host)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute)) // so that a failing test ends
	if _, err := io.WriteString(conn, text); err != nil {
		w.t.Fatal(err)
	}
	return conn.(*net.TCPConn), bufio.NewReader(conn)
}

// connect makes a tunnel and returns its end here.
func (w *world) connect(address string) (*net.TCPConn, *bufio.Reader) {
	w.t.Helper()
	conn, r := w.raw("CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n\r\n")
	if status := w.answer(r); status.StatusCode != http.StatusOK {
		w.t.Fatalf("CONNECT %s: %s", address, status.Status)
	}
	return conn, r
}

func (w *world) answer(r *bufio.Reader) *http.Response {
	w.t.Helper()
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// listen returns the address of a server that handle is called for with each
// connection, which is closed when it returns.
func listen(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handle(conn.(*net.TCPConn))
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// newCA returns an authority that is valid for life, and the pool it is in.
func newCA(t *testing.T, life time.Duration) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, pool
}

// secure starts a server of HTTPS for host, whose certificate an authority
// signed that only the returned pool has. Its address is to be dialled for
// host.
func secure(t *testing.T, host string, h http.Handler) (address string, roots *x509.CertPool) {
	t.Helper()
	ca, roots := newCA(t, 48*time.Hour)
	a, err := newAuthority(ca)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.certificate(host)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), roots
}

// resolveTo returns a Guard for which hosts are on this machine.
func resolveTo(t *testing.T, hosts ...string) *Guard {
	t.Helper()
	known := make(map[string]netip.Addr)
	for _, h := range hosts {
		known[h] = netip.MustParseAddr("127.0.0.1")
	}
	return newGuard(t, GuardConfig{Allow: hosts, Resolver: names(t, known)})
}

func portOfAddress(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func contains(t *testing.T, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s: %q does not have %q", what, text, part)
	}
}

// within fails a test whose channel does not close.
func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("%s: not after a minute", what)
	}
}
