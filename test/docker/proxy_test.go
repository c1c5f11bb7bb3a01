//go:build e2e

package docker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// Docker pulls from any registry by the forward proxy, which has an authority
// that dockerd trusts.
func TestProxy(t *testing.T) {
	secure := testkit.NewRegistry(t, testkit.Options{TLS: true, Auth: testkit.BasicAuth, Users: map[string]string{"u": password}})
	plain, err := lab.StartRegistry(t.Context(), lab.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	n, cert := newProxy(t, secure)
	// In lower case it would be reached past any proxy (package httpproxy).
	local := strings.Replace(plain.Host(), "127.0.0.1", "LOCALHOST", 1)
	n.startDocker(map[string]any{"insecure-registries": []string{local}},
		"HTTP_PROXY="+n.url(), "HTTPS_PROXY="+n.url(), "NO_PROXY=", "SSL_CERT_FILE="+cert)

	t.Run("https", func(t *testing.T) {
		im := newImage(t, "https")
		im.add(secure, "some/image")
		const name = "registry.test/some/image:v1"
		if _, err := n.docker("", "pull", "--quiet", name); err == nil {
			t.Error("an anonymous pull succeeded")
		}
		for range 2 {
			if _, err := n.docker("u:"+password, "pull", "--quiet", name); err != nil {
				t.Fatal(err)
			}
			im.expectSent(t, secure.Stats().Bytes, 1)
			n.mustDocker("rmi", name)
		}
		if _, err := n.docker("", "pull", "--quiet", name); err == nil {
			t.Error("an anonymous pull succeeded, because the image is here")
		}
	})
	t.Run("http", func(t *testing.T) {
		im := newImage(t, "http")
		im.push(t, "http://"+plain.Host(), "some/image")
		plain.Reset()
		name := local + "/some/image:v1"
		for range 2 {
			n.mustDocker("pull", "--quiet", name)
			im.expectSent(t, plain.Counts().BlobBytes, 1)
			n.mustDocker("rmi", name)
		}
	})
}

// Where the system does not trust the proxy's authority, dockerd does for the
// registries that have it below /etc/docker/certs.d.
func TestProxyTrustedForOneRegistry(t *testing.T) {
	secure := testkit.NewRegistry(t, testkit.Options{TLS: true})
	n, cert := newProxy(t, secure)
	n.ownCerts()
	n.startDocker(map[string]any{}, "HTTP_PROXY="+n.url(), "HTTPS_PROXY="+n.url(), "NO_PROXY=")
	im := newImage(t, "certs.d")
	im.add(secure, "some/image")
	pull := func() error {
		_, err := n.docker("", "pull", "--quiet", "registry.test/some/image:v1")
		return err
	}
	if err := pull(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("docker trusts an authority that it does not know: %v", err)
	}
	im.expectSent(t, secure.Stats().Bytes, 0)
	p, err := os.ReadFile(cert)
	if err == nil {
		err = errors.Join(os.Mkdir(filepath.Join(n.certs, "registry.test"), 0o755), os.WriteFile(filepath.Join(n.certs, "registry.test", "ca.crt"), p, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from this node
		if err := pull(); err != nil {
			t.Fatal(err)
		}
		im.expectSent(t, secure.Stats().Bytes, 1)
		n.mustDocker("rmi", "registry.test/some/image:v1")
	}
}

// newProxy starts a peer whose proxy asks secure for what is asked of
// registry.test, which does not exist. It returns the file of the certificate
// that the proxy's are signed with, too.
func newProxy(t *testing.T, secure *testkit.Registry) (n *node, cert string) {
	t.Helper()
	cert, key := authority(t)
	return newNode(t, fmt.Sprintf(`proxy:
  server: {port: PORT, caCert: %q, caKey: %q}
  allowHosts: [localhost, 127.0.0.1]
  rules:
    - {regex: '^https://registry\.test/.*(blobs|manifests)/', redirect: %[3]q}
    - {regex: '^https://registry\.test/', redirect: %[3]q, direct: true}
    - {regex: 'blobs/sha256.*'}
origin: {caFiles: {%[3]q: [%[4]q]}}`, cert, key, secure.Host(), secure.CAFile())), cert
}

// authority makes an authority, and returns the files of its certificate and
// key.
func authority(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	public, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: public}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
