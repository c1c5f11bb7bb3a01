package scheduler_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/transfer"
)

// node makes an authority, and a certificate for this machine that it signs,
// and returns TLS that trusts this authority and no other.
func node(t *testing.T, dir string) *transfer.TLS {
	t.Helper()
	cfg := transfer.TLSConfig{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	self := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	raw, err := x509.CreateCertificate(rand.Reader, self, self, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
	for name, p := range map[string][]byte{cfg.Cert: cert, cfg.CA: cert, cfg.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n, err := transfer.NewTLS(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// With TLS members join as they do without, and nobody else does.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ours, stranger := node(t, dir), node(t, t.TempDir())
	w := newWorld(t, scheduler.Config{TLS: ours.ServerConfig()})
	join := func(id string, clientTLS func(string) (*tls.Config, error)) *recorder {
		r := newRecorder()
		s, err := remote.Dial(remote.Config{Addr: w.addr, Hello: hello(id), Handler: r, TLS: clientTLS})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return r
	}
	for name, clientTLS := range map[string]func(string) (*tls.Config, error){
		"plaintext": nil,
		"stranger":  stranger.ClientConfig,
		"stranger that trusts us": func(addr string) (*tls.Config, error) {
			cfg, err := stranger.ClientConfig(addr)
			if err == nil {
				cfg.InsecureSkipVerify = true
			}
			return cfg, err
		},
		"no certificate": func(addr string) (*tls.Config, error) {
			cfg, err := ours.ClientConfig(addr)
			if err == nil {
				cfg.Certificates = nil
			}
			return cfg, err
		},
	} {
		t.Logf("%s: %v", name, next[down](t, join(name, clientTLS)).err)
	}
	a := newRecorder()
	s, err := remote.Dial(remote.Config{Addr: w.addr, Hello: hello("a"), Handler: a, TLS: ours.ClientConfig})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	next[up](t, a)
	s.Send(want(blobA, 1, 0, 1))
	next[schedule.Grant](t, a)
	if got := w.service.Stats(); got.Joins != 1 {
		t.Errorf("%d streams were opened, want 1", got.Joins)
	}
	// Files that are replaced count for the next connection, at both ends.
	node(t, dir)
	b := join("b", ours.ClientConfig)
	next[up](t, b)
}
