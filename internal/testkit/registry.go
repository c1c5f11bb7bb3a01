// Package testkit is the world the tests run in: small real servers whose
// bad habits are options, and helpers that start the programs we work with.
// Only tests import it.
package testkit

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// Auth is how a Registry wants to know who is asking.
type Auth uint8

// The ways of authentication.
const (
	// NoAuth lets everybody pull and push.
	NoAuth Auth = iota
	// BasicAuth wants a user and password with every request.
	BasicAuth
	// TokenAuth sends clients to the registry's own token service, /token.
	TokenAuth
)

// Options are a Registry's habits. The zero Options are a well-behaved
// registry without authentication, on plain HTTP.
type Options struct {
	// TLS serves HTTPS with a certificate only CAFile vouches for.
	TLS bool
	// Auth is the kind of authentication asked for.
	Auth Auth
	// Users maps user names to passwords. Every user may pull and push
	// everything; with TokenAuth an anonymous client may pull what is not Private.
	Users map[string]string
	// IdentityTokens maps OAuth2 refresh tokens to users.
	IdentityTokens map[string]string
	// Private lists repositories anonymous clients may not pull.
	Private []string
	// TokenTTL is how long a token lasts, in whole seconds; 0 means 5 minutes.
	TokenTTL time.Duration
	// Redirect answers blob requests with a redirect to a second server, at
	// a signed URL in the manner of S3. That server refuses requests that
	// carry an Authorization header and counts them as Stats.Leaks.
	Redirect bool
	// URLTTL is how long a signed URL lasts, in whole seconds; 0 means 1 hour.
	URLTTL time.Duration
	// Offline starts no servers: the registry is reached through Transport
	// only, under host names that do not exist. For tests in virtual time.
	Offline bool
	// Latency is waited before every answer of either server.
	Latency time.Duration
	// Faults are the misbehaviours to start with; see Inject.
	Faults []Fault
}

// Op is what a request asks for, as far as faults and counters tell apart.
type Op string

// The operations.
const (
	Ping         Op = "ping"
	Token        Op = "token"
	BlobGet      Op = "blob get"
	BlobHead     Op = "blob head"
	ManifestGet  Op = "manifest get"
	ManifestHead Op = "manifest head"
	// StorageGet is a request to the server blobs are redirected to.
	StorageGet Op = "storage get"
	// Upload is any request that pushes.
	Upload Op = "upload"
	// Other is everything else, a tag list for instance.
	Other Op = "other"
)

// Stats says what a Registry was asked for and what it gave.
type Stats struct {
	// Requests counts requests by operation, refused ones included.
	Requests map[Op]int
	// Bytes counts the body bytes sent of each blob, from either server.
	Bytes map[digest.Digest]int64
	// Unauthorized counts answers of 401.
	Unauthorized int
	// Leaks counts requests that brought an Authorization header to the
	// storage server.
	Leaks int
	// Conns counts connections accepted by either server.
	Conns int
}

// Total returns the number of all requests.
func (s Stats) Total() int {
	n := 0
	for _, v := range s.Requests {
		n += v
	}
	return n
}

// TotalBytes returns the number of body bytes sent of all blobs.
func (s Stats) TotalBytes() int64 {
	var n int64
	for _, v := range s.Bytes {
		n += v
	}
	return n
}

// Registry is an OCI registry in memory, with its storage server where it
// redirects. All methods are safe for concurrent use. As an http.Handler it
// is the registry alone, for tests that need no network.
type Registry struct {
	// constant after NewRegistry
	t           testing.TB
	opts        Options
	host        string
	storageHost string            // "" unless opts.Redirect
	certificate *x509.Certificate // nil unless opts.TLS
	closing     chan struct{}     // closed when the test ends; ends hanging answers

	mu      sync.Mutex                // guards the rest
	repos   map[string]*repository    // by name
	uploads map[string][]byte         // by upload id
	tokens  map[string]grant          // by token
	faults  []Fault                   // in the order they were injected
	urlKey  []byte                    // signs storage URLs
	stats   Stats                     // maps made by NewRegistry
	blobs   map[digest.Digest]content // all blobs, for the storage server

	dismissed map[string]bool // users that are none any more
}

type content struct {
	mediaType string
	data      []byte
}

type repository struct {
	blobs     map[digest.Digest]content
	manifests map[digest.Digest]content
	tags      map[string]digest.Digest
}

// NewRegistry starts a registry on a free loopback port. It stops when the
// test ends.
func NewRegistry(t testing.TB, opts Options) *Registry {
	t.Helper()
	r := &Registry{
		t: t, opts: opts,
		closing: make(chan struct{}),
		repos:   make(map[string]*repository),
		uploads: make(map[string][]byte),
		tokens:  make(map[string]grant),
		faults:  slices.Clone(opts.Faults),
		urlKey:  []byte(rand.Text()),
		stats:   Stats{Requests: make(map[Op]int), Bytes: make(map[digest.Digest]int64)},
		blobs:   make(map[digest.Digest]content),

		dismissed: make(map[string]bool),
	}
	if opts.Offline {
		r.host = "registry.localhost"
	} else {
		r.host = r.start(r)
	}
	if opts.Redirect && opts.Offline {
		r.storageHost = "storage.localhost"
	} else if opts.Redirect {
		r.storageHost = r.start(http.HandlerFunc(r.serveStorage))
	}
	// Last in, first out: hanging answers end before the servers wait for them.
	t.Cleanup(func() { close(r.closing) })
	return r
}

// start starts one of the servers and returns its host:port.
func (r *Registry) start(h http.Handler) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			r.mu.Lock()
			r.stats.Conns++
			r.mu.Unlock()
		}
	}
	// Clients that break off or do not trust us are what tests are about.
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if r.opts.TLS {
		s.EnableHTTP2 = true
		s.StartTLS()
		r.certificate = s.Certificate()
	} else {
		s.Start()
	}
	r.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.Listener.Addr().String()
}

// Transport returns an http.RoundTripper that calls the registry and its
// storage server directly: no network, no goroutines, each answer collected
// before it is returned, so that it works inside a synctest bubble.
func (r *Registry) Transport() http.RoundTripper { return transport{r} }

type transport struct{ r *Registry }

func (t transport) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	var h http.Handler = t.r
	switch req.URL.Host {
	case t.r.host:
	case t.r.storageHost:
		h = http.HandlerFunc(t.r.serveStorage)
	default:
		return nil, fmt.Errorf("dial %s: no such host in this test", req.URL.Host)
	}
	defer func() {
		if recover() != nil { // http.ErrAbortHandler
			resp, err = nil, io.ErrUnexpectedEOF
		}
	}()
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, in)
	if err := context.Cause(req.Context()); err != nil {
		return nil, err
	}
	resp = w.Result()
	resp.Body = cancelledBody{resp.Body, req.Context()}
	return resp, nil
}

// cancelledBody ends with its request's context, as a body from a network does.
type cancelledBody struct {
	io.ReadCloser
	ctx context.Context
}

func (b cancelledBody) Read(p []byte) (int, error) {
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

// Host returns the registry's host:port, what an image reference starts with.
func (r *Registry) Host() string { return r.host }

// StorageHost returns the host:port of the server blobs are redirected to, or
// "" without Options.Redirect.
func (r *Registry) StorageHost() string { return r.storageHost }

// URL returns the registry's base URL, without a trailing slash.
func (r *Registry) URL() string { return r.scheme() + "://" + r.host }

func (r *Registry) scheme() string {
	if r.opts.TLS {
		return "https"
	}
	return "http"
}

// Repo returns repo as references write it: host/repo.
func (r *Registry) Repo(repo string) string { return r.Host() + "/" + repo }

// CAFile writes the certificate both servers are to be trusted by to a PEM
// file and returns its path. It fails the test without Options.TLS.
func (r *Registry) CAFile() string {
	r.t.Helper()
	if !r.opts.TLS {
		r.t.Fatal("registry has no certificate: Options.TLS is not set")
	}
	path := filepath.Join(r.t.TempDir(), "ca.pem")
	p := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.certificate.Raw})
	if err := os.WriteFile(path, p, 0o600); err != nil {
		r.t.Fatalf("write CA file: %v", err)
	}
	return path
}

// repo returns a repository, made if need be. The caller holds mu.
func (r *Registry) repo(name string) *repository {
	rep := r.repos[name]
	if rep == nil {
		rep = &repository{
			blobs:     make(map[digest.Digest]content),
			manifests: make(map[digest.Digest]content),
			tags:      make(map[string]digest.Digest),
		}
		r.repos[name] = rep
	}
	return rep
}

// AddBlob puts p, which must not be changed afterwards, into repo and returns
// a reference to it.
func (r *Registry) AddBlob(repo string, p []byte) blob.Ref {
	d := digest.FromBytes(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addBlob(repo, d, p)
	return blob.Ref{Digest: d, Size: int64(len(p)), Repository: r.Repo(repo)}
}

func (r *Registry) addBlob(repo string, d digest.Digest, p []byte) {
	c := content{"application/octet-stream", p}
	r.repo(repo).blobs[d] = c
	r.blobs[d] = c
}

// AddManifest puts a manifest or index into repo, under tag unless that is
// "", and returns a reference to it. What it refers to is not looked for.
func (r *Registry) AddManifest(repo, tag, mediaType string, p []byte) blob.Ref {
	d := digest.FromBytes(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	rep := r.repo(repo)
	rep.manifests[d] = content{mediaType, p}
	if tag != "" {
		rep.tags[tag] = d
	}
	return blob.Ref{Digest: d, Size: int64(len(p)), MediaType: mediaType, Repository: r.Repo(repo)}
}

// AddImage puts an OCI image of the given layer blobs (gzipped tars, unless
// the test does not care) into repo and returns a reference to its manifest.
// The image's configuration is that of linux/amd64 and runs nothing.
func (r *Registry) AddImage(repo, tag string, layers ...[]byte) blob.Ref {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.Type = "layers"
	for _, p := range layers {
		ref := r.AddBlob(repo, p)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: ref.Digest, Size: ref.Size})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, ref.Digest)
	}
	ref := r.AddBlob(repo, r.json(config))
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: ref.Digest, Size: ref.Size}
	return r.AddManifest(repo, tag, ocispec.MediaTypeImageManifest, r.json(m))
}

func (r *Registry) json(v any) []byte {
	r.t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		r.t.Errorf("encode %T: %v", v, err)
	}
	return p
}

// Manifest returns the manifest that reference, a tag or digest, names in
// repo, with its media type; nil where there is none. It is not counted.
func (r *Registry) Manifest(repo, reference string) (data []byte, mediaType string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.repo(repo).manifest(reference)
	return c.data, c.mediaType
}

// Blob returns the content of a blob in repo, nil where there is none. It is
// not counted.
func (r *Registry) Blob(repo string, d digest.Digest) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.repo(repo).blobs[d].data
}

func (rep *repository) manifest(reference string) content {
	if d, ok := rep.tags[reference]; ok {
		return rep.manifests[d]
	}
	return rep.manifests[digest.Digest(reference)]
}

// Stats returns what was counted since the start or the last ResetStats.
func (r *Registry) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Requests, s.Bytes = maps.Clone(s.Requests), maps.Clone(s.Bytes)
	return s
}

// ResetStats sets all counters to zero.
func (r *Registry) ResetStats() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats = Stats{Requests: make(map[Op]int), Bytes: make(map[digest.Digest]int64)}
}

// RevokeTokens makes every token given out so far invalid, whatever it was
// told about its life.
func (r *Registry) RevokeTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// Dismiss makes a user unknown, and every token given out so far invalid.
func (r *Registry) Dismiss(user string) {
	r.RevokeTokens()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dismissed[user] = true
}

// RevokeURLs makes every storage URL given out so far invalid.
func (r *Registry) RevokeURLs() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.urlKey = []byte(rand.Text())
}

// isPrivate reports whether anonymous clients may not pull from repo.
func (r *Registry) isPrivate(repo string) bool {
	return slices.Contains(r.opts.Private, repo)
}
