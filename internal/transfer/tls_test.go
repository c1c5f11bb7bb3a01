package transfer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.cert.Raw = a.sign(t, a.cert, key)
	if a.cert, err = x509.ParseCertificate(a.cert.Raw); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// issue writes the files of a node that trusts the authorities trusted.
func (a *authority) issue(t *testing.T, cfg TLSConfig, trusted ...*authority) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"peer.test"},
	}, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var cas []byte
	for _, ca := range trusted {
		cas = append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	}
	replace(t, cfg.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
	replace(t, cfg.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	replace(t, cfg.CA, cas)
}

// replace writes a file and makes sure that its time differs from before.
func replace(t *testing.T, name string, p []byte) {
	t.Helper()
	when := time.Now()
	if st, err := os.Stat(name); err == nil {
		when = st.ModTime().Add(time.Second)
	}
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, when, when); err != nil {
		t.Fatal(err)
	}
}

func tlsFiles(t *testing.T) TLSConfig {
	dir := t.TempDir()
	return TLSConfig{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
}

// node returns the TLS of a node that a signed and that trusts trusted.
func (a *authority) node(t *testing.T, trusted ...*authority) (*TLS, TLSConfig) {
	t.Helper()
	cfg := tlsFiles(t)
	a.issue(t, cfg, trusted...)
	n, err := NewTLS(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n, cfg
}

func TestTLSConformance(t *testing.T) {
	a := newAuthority(t)
	for name, source := range map[string]func(*testing.T, [][]byte) (blob.Source, []blob.Ref){"Files": inFiles, "Relayed": inMemory} {
		t.Run(name, func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				src, refs := source(t, contents)
				mine, _ := a.node(t, a)
				peers, _ := a.node(t, a)
				_, addr := serve(t, ServerConfig{Source: src, TLS: peers})
				return connect(t, ClientConfig{TLS: mine}).Source(addr), refs
			})
		})
	}
}

// TestStrangersGetNothing has clients and servers that one end does not
// trust, or that do not speak TLS at all.
func TestStrangersGetNothing(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	dir := newFolder(t)
	ref := dir.add(t, blobtest.Bytes(1, 1000))
	ours, _ := a.node(t, a)
	s, addr := serve(t, ServerConfig{Source: dir, TLS: ours})

	stranger, _ := b.node(t, a, b)      // trusts us
	suspicious, _ := a.node(t, b)       // is trusted
	named, namedFiles := a.node(t, a)   // wants a name that the server has not
	namedFiles.ServerName = "else.test" // (nor has its certificate)
	named.cfg = namedFiles
	for name, c := range map[string]struct {
		tls  *TLS
		want []blob.Kind
	}{
		// Its request may meet a closed connection before it meets the alert.
		"signed by another authority": {stranger, []blob.Kind{blob.Unauthorized, blob.Unavailable}},
		"trusts another authority":    {suspicious, []blob.Kind{blob.Unauthorized}},
		"expects another name":        {named, []blob.Kind{blob.Unauthorized}},
		"speaks plain HTTP":           {nil, []blob.Kind{blob.Invalid}},
	} {
		p, err := fetch(t.Context(), open(t, connect(t, ClientConfig{TLS: c.tls}), addr, ref), blob.Range{Len: 10})
		if err == nil || len(p) != 0 || !containsKind(c.want, err) {
			t.Errorf("client that %s: %d bytes, %v (%v)", name, len(p), err, blob.KindOf(err))
		}
	}
	// One without a certificate.
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_, _ = io.WriteString(conn, "GET "+blobPath(ref.Digest)+" HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n")
		var p []byte
		if p, err = io.ReadAll(conn); len(p) > 0 {
			t.Errorf("client without a certificate gets %q", p)
		}
		conn.Close()
	}
	if err == nil {
		t.Error("client without a certificate is not refused")
	}
	if st := s.Stats(); st.Requests != 0 {
		t.Errorf("%d requests came through", st.Requests)
	}

	plain, plainAddr := serve(t, ServerConfig{Source: dir})
	mine, _ := a.node(t, a)
	if _, err := fetch(t.Context(), open(t, connect(t, ClientConfig{TLS: mine}), plainAddr, ref), blob.Range{Len: 10}); !errors.Is(err, blob.Unavailable) {
		t.Errorf("server that speaks plain HTTP: %v", err)
	}
	if st := plain.Stats(); st.Requests != 0 {
		t.Errorf("%d requests went out in the clear", st.Requests)
	}
}

func containsKind(kinds []blob.Kind, err error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

// TestCommonName has peers whose certificates carry a name and not where they
// are reached.
func TestCommonName(t *testing.T) {
	a := newAuthority(t)
	dir := newFolder(t)
	ref := dir.add(t, blobtest.Bytes(1, 1000))
	ours, _ := a.node(t, a)
	_, addr := serve(t, ServerConfig{Source: dir, TLS: ours})
	mine, _ := a.node(t, a)
	mine.cfg.ServerName = "peer.test"
	if _, err := fetch(t.Context(), open(t, connect(t, ClientConfig{TLS: mine}), addr, ref), blob.Range{Len: 10}); err != nil {
		t.Error(err)
	}
}

// TestReload moves a cluster of two from one authority to another, with
// neither restarted.
func TestReload(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	dir := newFolder(t)
	ref := dir.add(t, blobtest.Bytes(1, 1000))
	server, serverFiles := a.node(t, a)
	client, clientFiles := a.node(t, a)
	old, _ := a.node(t, a, b)
	_, addr := serve(t, ServerConfig{Source: dir, TLS: server})
	ask := func(n *TLS) error {
		_, err := fetch(t.Context(), open(t, connect(t, ClientConfig{TLS: n}), addr, ref), blob.Range{Len: 10})
		return err
	}
	if err := ask(client); err != nil {
		t.Fatalf("before: %v", err)
	}
	b.issue(t, serverFiles, b)
	if err := ask(client); !errors.Is(err, blob.Unauthorized) {
		t.Errorf("server moved, client did not: %v, want unauthorized", err)
	}
	b.issue(t, clientFiles, b)
	if err := ask(client); err != nil {
		t.Errorf("both moved: %v", err)
	}
	if err := ask(old); err == nil {
		t.Error("a client of the old authority is served")
	}
	replace(t, serverFiles.Cert, []byte("half a certif"))
	if err := ask(client); err != nil {
		t.Errorf("while a file is being written: %v", err)
	}
	if err := os.Remove(clientFiles.Key); err != nil {
		t.Fatal(err)
	}
	if err := ask(client); err != nil {
		t.Errorf("while a file is missing: %v", err)
	}
}

func TestBadTLSFiles(t *testing.T) {
	a := newAuthority(t)
	for name, spoil := range map[string]func(t *testing.T, c TLSConfig){
		"missing certificate": func(t *testing.T, c TLSConfig) {
			if err := os.Remove(c.Cert); err != nil {
				t.Fatal(err)
			}
		},
		"empty authorities": func(t *testing.T, c TLSConfig) { replace(t, c.CA, nil) },
		"another's key":     func(t *testing.T, c TLSConfig) { c2 := tlsFiles(t); c2.Key = c.Key; a.issue(t, c2, a) },
	} {
		cfg := tlsFiles(t)
		a.issue(t, cfg, a)
		spoil(t, cfg)
		if _, err := NewTLS(cfg, nil); !errors.Is(err, blob.Invalid) || !strings.HasPrefix(err.Error(), "set up TLS") {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}
