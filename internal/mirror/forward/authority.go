package forward

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"skimmer/internal/blob"
)

const (
	// leafLife is how long a certificate for a host is valid, leafReuse for how
	// long one is used again. It begins early, for clocks that are slow.
	leafLife  = 24 * time.Hour
	leafReuse = 23 * time.Hour
	leafEarly = time.Hour
	// maxLeaves is how many certificates are kept.
	maxLeaves = 1024
)

// authority makes certificates for hosts.
type authority struct {
	ca   *x509.Certificate // constant after newAuthority
	rest [][]byte          // what follows a certificate of ours: the authority's and its chain
	key  crypto.Signer

	mu     sync.Mutex // mu guards leaves
	leaves map[string]leaf
}

// leaf is a certificate for a host.
type leaf struct {
	certificate *tls.Certificate
	made        time.Time
}

// newAuthority returns an authority with the certificate and key of pair.
// Errors: Invalid for what is no authority's.
func newAuthority(pair *tls.Certificate) (*authority, error) {
	if len(pair.Certificate) == 0 {
		return nil, blob.Errorf(blob.Invalid, "read authority of the proxy: there is no certificate")
	}
	ca, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "read authority of the proxy: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	public, comparableKey := ca.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, blob.Errorf(blob.Invalid, "read authority of the proxy: the certificate of %q is not one that may sign others", ca.Subject.CommonName)
	case !ok || !comparableKey || !public.Equal(key.Public()):
		return nil, blob.Errorf(blob.Invalid, "read authority of the proxy: the key is not that of the certificate")
	case time.Now().After(ca.NotAfter):
		return nil, blob.Errorf(blob.Invalid, "read authority of the proxy: the certificate ran out at %v", ca.NotAfter)
	}
	return &authority{ca: ca, rest: pair.Certificate, key: key, leaves: make(map[string]leaf)}, nil
}

// server returns conn with TLS spoken on it, as host, which may have a port.
func (a *authority) server(conn net.Conn, host string) *tls.Conn {
	return tls.Server(conn, &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.certificate(host)
		},
	})
}

// certificate returns one for a host, which may have a port.
func (a *authority) certificate(host string) (*tls.Certificate, error) {
	name, _, _ := net.SplitHostPort(withPort(host, "https"))
	now := time.Now()
	a.mu.Lock()
	l, ok := a.leaves[name]
	a.mu.Unlock()
	if ok && now.Sub(l.made) < leafReuse && now.Before(l.certificate.Leaf.NotAfter) {
		return l.certificate, nil
	}
	c, err := a.mint(name, now)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for old, l := range a.leaves { // of all others, any is as good as the next
		if len(a.leaves) >= maxLeaves || now.Sub(l.made) >= leafReuse {
			delete(a.leaves, old)
		}
	}
	a.leaves[name] = leaf{c, now}
	return c, nil
}

// mint makes a certificate.
func (a *authority) mint(name string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"skimmer proxy"}},
		NotBefore:   now.Add(-leafEarly),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(a.ca.NotAfter) {
		template.NotAfter = a.ca.NotAfter
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		template.IPAddresses = []net.IP{addr.AsSlice()}
	} else {
		template.DNSNames = []string{strings.TrimSuffix(name, ".")}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, a.rest...), PrivateKey: key, Leaf: parsed}, nil
}
