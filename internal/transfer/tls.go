package transfer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"skimmer/internal/blob"
)

// TLSConfig names the files that make peers sure of each other. All three are
// PEM and required.
type TLSConfig struct {
	// Cert and Key are this node's; the certificate is for clients and servers
	// both, since a node is both.
	Cert, Key string
	// CA holds the authorities that sign the certificates of peers.
	CA string
	// ServerName is the name that a peer's certificate must have, where all have
	// a common one. Default: the host of the address it is reached at.
	ServerName string
}

// TLS is a node's side of mutual TLS, for its Server and its Client. Files
// that change take effect at the next handshake, without a restart;
// connections that are open stay. It is safe for concurrent use.
type TLS struct {
	// Constant after NewTLS.
	cfg TLSConfig
	log *slog.Logger

	// mu guards what follows.
	mu     sync.Mutex
	stamps [3]stamp // of the files when they were read last
	loaded *identity
}

// stamp tells whether a file has changed.
type stamp struct {
	mod  time.Time
	size int64
}

// identity is what the files say.
type identity struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// NewTLS reads the files; they must be good at this time. A log of nil
// discards what is to say of later changes.
func NewTLS(cfg TLSConfig, log *slog.Logger) (*TLS, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &TLS{cfg: cfg, log: log}
	var err error
	if t.stamps, err = t.look(); err != nil {
		return nil, blob.Errorf(blob.Invalid, "set up TLS between peers: %w", err)
	}
	if t.loaded, err = t.load(); err != nil {
		return nil, blob.Errorf(blob.Invalid, "set up TLS between peers: %w", err)
	}
	return t, nil
}

// look returns the state of the files.
func (t *TLS) look() (stamps [3]stamp, err error) {
	for i, name := range []string{t.cfg.Cert, t.cfg.Key, t.cfg.CA} {
		var info fs.FileInfo
		if info, err = os.Stat(name); err != nil {
			return stamps, err
		}
		stamps[i] = stamp{info.ModTime(), info.Size()}
	}
	return stamps, nil
}

// load reads the files.
func (t *TLS) load() (*identity, error) {
	cert, err := tls.LoadX509KeyPair(t.cfg.Cert, t.cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", t.cfg.Cert, err)
	}
	pem, err := os.ReadFile(t.cfg.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bytes.TrimSpace(pem)) {
		return nil, fmt.Errorf("read authorities %s: no certificate in it", t.cfg.CA)
	}
	return &identity{cert, pool}, nil
}

// current returns what the files say now, or what they said last when they
// were good: they may be in the middle of being replaced.
func (t *TLS) current() *identity {
	t.mu.Lock()
	defer t.mu.Unlock()
	stamps, err := t.look()
	if err == nil && stamps == t.stamps {
		return t.loaded
	}
	if err == nil {
		var id *identity
		if id, err = t.load(); err == nil {
			t.stamps, t.loaded = stamps, id
			t.log.Info("certificates of peers reloaded", "cert", t.cfg.Cert, "ca", t.cfg.CA)
			return id
		}
	}
	t.log.Warn("cannot reload certificates of peers, going on with the old ones", "error", err)
	return t.loaded
}

// server returns the configuration of a listener.
func (t *TLS) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// With tickets a peer could return under an authority that is not
		// trusted any more.
		SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := t.current()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				SessionTicketsDisabled: true,
				NextProtos:             []string{"http/1.1"},
				Certificates:           []tls.Certificate{id.cert},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              id.pool,
			}, nil
		},
	}
}

// client does the handshake on a connection to addr.
func (t *TLS) client(ctx context.Context, conn net.Conn, addr string) (net.Conn, error) {
	cfg, err := t.ClientConfig(addr)
	if err != nil {
		return nil, err
	}
	cfg.NextProtos = []string{"http/1.1"}
	c := tls.Client(conn, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// ServerConfig returns the configuration of a listener between nodes that
// speaks something else than this package's protocol. It need not be asked for
// again when files change.
func (t *TLS) ServerConfig() *tls.Config { return t.server() }

// ClientConfig returns the configuration of one connection to addr, host:port,
// whatever is spoken on it. It has what the files say now. The error is that
// of an address which has no host.
func (t *TLS) ClientConfig(addr string) (*tls.Config, error) {
	name := t.cfg.ServerName
	if name == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		name = host
	}
	id := t.current()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ServerName:             name,
		RootCAs:                id.pool,
		Certificates:           []tls.Certificate{id.cert},
	}, nil
}
