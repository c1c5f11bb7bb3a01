package scheduler_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/transfer"
)

// node makes an authority, and a certificate for this machine that it signs,
// and returns TLS that trusts this authority and no other.
func node(t *testing.T, dir string) *transfer.TLS {
	t.Helper()
	return newAuthority(t).issue(t, dir, "a node")
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

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	self := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, self, self, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// issue writes a certificate with a new key for a node of this name to dir,
// and returns TLS that trusts all of trusted.
func (a *authority) issue(t *testing.T, dir, name string, trusted ...*authority) *transfer.TLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	raw, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var cas []byte
	for _, c := range append(trusted, a) {
		cas = append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})...)
	}
	cfg := transfer.TLSConfig{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	for name, p := range map[string][]byte{
		cfg.Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), cfg.CA: cas,
		cfg.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
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

// An ID is its certificate's, while the peer is there and after it left. A
// renewed certificate is the same one, with another key too.
func TestIDsBelongToCertificates(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := ca.issue(t, t.TempDir(), "scheduler", other)
	w := newWorld(t, scheduler.Config{TLS: server.ServerConfig()})
	join := func(id string, by *transfer.TLS) *member {
		t.Helper()
		r := newRecorder()
		s, err := remote.Dial(remote.Config{Addr: w.addr, Hello: hello(id), Handler: r, TLS: by.ClientConfig})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return &member{s, r, schedule.PeerID(id)}
	}
	refused := func(what, id string, by *transfer.TLS) {
		t.Helper()
		m := join(id, by)
		defer m.Close()
		err := next[down](t, m.recorder).err
		if !errors.Is(err, blob.Forbidden) || !strings.Contains(err.Error(), id) {
			t.Errorf("%s: joining as %s ended with %v, want a Forbidden that names it", what, id, err)
		}
	}
	dir := t.TempDir()
	alice, bob := ca.issue(t, dir, "alice"), ca.issue(t, t.TempDir(), "bob")
	namesake := other.issue(t, t.TempDir(), "alice", ca)
	a := join("a", alice)
	next[up](t, a.recorder)
	refused("while a is there", "a", bob)
	refused("with the same name by another authority", "a", namesake)
	a.Send(want(blobA, 1, 0, 1)) // its stream was not ended
	next[schedule.Grant](t, a.recorder)

	// Renewed: it joins again, as after a restart, and ends its older stream.
	renewed := join("a", ca.issue(t, dir, "alice"))
	next[up](t, renewed.recorder)
	if d := next[down](t, a.recorder); !errors.Is(d.err, blob.Canceled) {
		t.Errorf("the older stream ended with %v, want Canceled", d.err)
	}
	a.Close()
	renewed.Close()
	w.waitFor(func(s scheduler.Stats) bool { return s.Peers == 0 })
	refused("after a has left", "a", bob)
	back := join("a", alice)
	next[up](t, back.recorder)

	// A peer in the scheduler's process has an ID of its own, too.
	local, err := w.service.Connect(hello("here"), newRecorder())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(local.Close)
	w.waitFor(func(s scheduler.Stats) bool { return s.Peers == 2 })
	refused("of the scheduler's process", "here", bob)
	next[up](t, join("b", bob).recorder)
	if s := w.service.Stats(); s.ForeignIDs < 4 || s.Invalid != 0 {
		t.Errorf("counters are %+v, want 4 foreign ids or more", s)
	}
}

// Without TLS anybody may say who they are, as ever.
func TestIDsWithoutTLS(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	first := w.join(ways["remote"], hello("a"))
	w.join(ways["in process"], hello("a"))
	if d := next[down](t, first.recorder); !errors.Is(d.err, blob.Canceled) {
		t.Errorf("the older stream ended with %v, want Canceled", d.err)
	}
	if n := w.service.Stats().ForeignIDs; n != 0 {
		t.Errorf("%d ids are foreign", n)
	}
}
