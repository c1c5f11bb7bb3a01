//go:build e2e

package swarm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skimmer/internal/lab/cluster"
)

// TestTLS has all nodes show each other certificates: they exchange blobs as
// ever, and no port between nodes answers somebody without one.
func TestTLS(t *testing.T) {
	s := newSwarm(t, formation{nodes: 3, seeds: 1, rate: 400 * mbit, all: certificate(t)})
	f := s.file("file", 16*mib)
	s.start(f, s.peers...).wait()
	s.leftOnce(f, once)

	for _, c := range []struct {
		node string
		port uint16
	}{{"n1", cluster.PortPeer}, {"seed1", cluster.PortPeer}, {"scheduler", cluster.PortScheduler}} {
		conn, err := s.world.Node("n2").DialContext(t.Context(), "tcp", s.world.Node(c.node).HostPort(c.port))
		if err != nil {
			t.Fatal(err)
		}
		if answer := plain(t, conn); answer != "" {
			t.Errorf("%s answers on port %d without TLS: %q", c.node, c.port, answer)
		}
	}
}

// plain speaks HTTP without TLS on conn and returns what looks like an answer
// to that.
func plain(t *testing.T, conn net.Conn) string {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// A server that wants TLS may close before all is written.
	_, _ = io.WriteString(conn, "GET /blobs/sha256:0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	answer, _ := io.ReadAll(conn)
	if len(answer) > 0 && answer[0] == 0x15 { // a TLS alert
		return ""
	}
	// net/http says what is wrong, and serves nothing.
	if string(answer) == "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n" {
		return ""
	}
	return string(answer)
}

// certificate makes an authority and a certificate for all nodes, and returns
// the configuration that names them.
func certificate(t *testing.T) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "swarm.test"}, DNSNames: []string{"swarm.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: raw}, "key": {Type: "PRIVATE KEY", Bytes: private}}
	for name, block := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("tls: {cert: %q, key: %q, ca: %q, serverName: swarm.test}",
		filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "cert"))
}
