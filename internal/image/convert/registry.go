package convert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// Access says how registries are reached. The zero Access asks Docker's
// configuration and its credential helpers for credentials, the environment
// for proxies, and speaks plain HTTP to this machine only.
type Access struct {
	// PlainHTTP allows registries elsewhere to be spoken to without TLS.
	PlainHTTP bool
	// CAFile names a file of PEM certificates trusted beside the system's.
	CAFile string
	// Keychain, where set, takes the place of Docker's configuration.
	Keychain authn.Keychain
	// UserAgent is how requests introduce themselves; empty for the library's
	// own.
	UserAgent string
}

// session is what the registries of one operation share.
type session struct {
	puller *remote.Puller
	pusher *remote.Pusher
	plain  bool
	idle   func()
}

// open prepares to speak to registries, jobs requests at a time. It makes no
// connection.
func (a Access) open(jobs int) (*session, error) {
	tr := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: jobs + 1,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: remote.DefaultTransport.(*http.Transport).TLSHandshakeTimeout,
		IdleConnTimeout:     remote.DefaultTransport.(*http.Transport).IdleConnTimeout,
		DialContext:         remote.DefaultTransport.(*http.Transport).DialContext,
	}
	if a.CAFile != "" {
		pem, err := os.ReadFile(a.CAFile)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "read CA file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, blob.Errorf(blob.Invalid, "read CA file %s: no PEM certificates in it", a.CAFile)
		}
		tr.TLSClientConfig.RootCAs = pool
	}
	keychain := a.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	var rt http.RoundTripper = tr
	if !a.PlainHTTP {
		rt = tlsOnly{tr}
	}
	opts := []remote.Option{
		remote.WithTransport(rt), remote.WithAuthFromKeychain(keychain), remote.WithJobs(jobs), remote.WithUserAgent(a.UserAgent),
		// Trying again is our own business: the library sleeps through an
		// interrupt, and starts only requests anew, not broken transfers.
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}),
	}
	puller, err := remote.NewPuller(opts...)
	if err != nil {
		return nil, fmt.Errorf("prepare registry access: %w", err)
	}
	pusher, err := remote.NewPusher(opts...)
	if err != nil {
		return nil, fmt.Errorf("prepare registry access: %w", err)
	}
	return &session{puller, pusher, a.PlainHTTP, tr.CloseIdleConnections}, nil
}

func (s *session) close() { s.idle() }

// tlsOnly refuses plain HTTP to other machines. The registry library falls
// back to it for private addresses, where it would show credentials to
// whoever listens.
type tlsOnly struct{ next http.RoundTripper }

func (t tlsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !isLoopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed; --plain-http allows it", req.URL.Host)
	}
	return t.next.RoundTrip(req)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// reference returns ref with the scheme its registry is to be spoken to.
func (s *session) reference(ref name.Reference) (name.Reference, error) {
	var opts []name.Option
	if s.plain || isLoopback(hostOf(ref.Context().RegistryStr())) {
		opts = append(opts, name.Insecure)
	}
	return name.ParseReference(ref.Name(), opts...)
}

func hostOf(registry string) string {
	if host, _, err := net.SplitHostPort(registry); err == nil {
		return host
	}
	return strings.Trim(registry, "[]")
}

// registryError gives an error of the registry library its kind, and the
// cause words where a status alone says little.
func registryError(err error, doing string) error {
	if err == nil {
		return nil
	}
	var te *transport.Error
	var ne net.Error
	kind, hint := blob.KindOf(err), ""
	switch {
	case kind != blob.Internal:
	case errors.As(err, &te):
		kind, hint = statusKind(te.StatusCode)
	case errors.As(err, &ne) && ne.Timeout():
		kind = blob.Timeout
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &ne):
		kind = blob.Unavailable
	case strings.Contains(err.Error(), "error verifying"):
		// The library's error for wrong content has no exported type.
		kind = blob.Corrupt
	}
	return blob.Errorf(kind, "%s: %s%w", doing, hint, err)
}

func statusKind(status int) (blob.Kind, string) {
	switch {
	case status == http.StatusUnauthorized:
		return blob.Unauthorized, "the registry wants other credentials (docker login), or there is no such repository: "
	case status == http.StatusForbidden:
		return blob.Forbidden, "these credentials may not do that: "
	case status == http.StatusNotFound:
		return blob.NotFound, "the registry has no such image: "
	case status == http.StatusTooManyRequests:
		return blob.Busy, "the registry limits requests: "
	case status >= 500:
		return blob.Unavailable, "the registry failed: "
	case status >= 400:
		return blob.Invalid, "the registry refused: "
	}
	return blob.Internal, ""
}

// registrySource reads an image from a registry.
type registrySource struct {
	name Name
	ref  name.Reference
	s    *session
}

func (r *registrySource) root(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	return r.get(ctx, r.ref)
}

func (r *registrySource) get(ctx context.Context, ref name.Reference) (ocispec.Descriptor, []byte, error) {
	var got *remote.Descriptor
	err := retry(ctx, retryDelays, func() (err error) {
		got, err = r.s.puller.Get(ctx, ref)
		return registryError(err, fmt.Sprintf("read image %v", r.name))
	})
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return ocispec.Descriptor{
		MediaType: string(got.MediaType), Digest: digest.Digest(got.Digest.String()), Size: got.Size,
	}, got.Manifest, nil
}

func (r *registrySource) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, blob.Errorf(blob.Corrupt, "read manifest %q of %v: %w", d.Digest, r.name, err)
	}
	_, raw, err := r.get(ctx, r.ref.Context().Digest(d.Digest.String()))
	return raw, err
}

func (r *registrySource) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	doing := fmt.Sprintf("read blob %v of %v", d.Digest, r.name)
	if err := d.Digest.Validate(); err != nil {
		return nil, blob.Errorf(blob.Corrupt, "%s: %w", doing, err)
	}
	layer, err := r.s.puller.Layer(ctx, r.ref.Context().Digest(d.Digest.String()))
	if err != nil {
		return nil, registryError(err, doing)
	}
	rc, err := layer.Compressed()
	if err != nil {
		return nil, registryError(err, doing)
	}
	return registryReader{rc, doing}, nil
}

func (r *registrySource) origin(d ocispec.Descriptor) name.Reference {
	return r.ref.Context().Digest(d.Digest.String())
}

func (r *registrySource) close() error { return nil }

// registryReader gives errors in mid-transfer their kind.
type registryReader struct {
	io.ReadCloser
	doing string
}

func (r registryReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = registryError(err, r.doing)
	}
	return n, err
}

// registryTarget writes an image to a registry.
type registryTarget struct {
	name Name
	ref  name.Tag
	s    *session
}

func (r *registryTarget) has(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	layer, err := r.s.puller.Layer(ctx, r.ref.Context().Digest(d.Digest.String()))
	if err == nil {
		var ok bool
		if ok, err = partial.Exists(layer); err == nil {
			return ok, nil
		}
	}
	err = registryError(err, fmt.Sprintf("look up blob %v for %v", d.Digest, r.name))
	switch blob.KindOf(err) {
	case blob.Unauthorized, blob.Forbidden, blob.NotFound:
		// Who may push need not be allowed to pull; the push will tell.
		return false, nil
	}
	return false, err
}

func (r *registryTarget) put(ctx context.Context, d ocispec.Descriptor, c content) error {
	var layer v1.Layer = upload{d, c}
	if c.from != nil && c.from.Context().RegistryStr() == r.ref.RegistryStr() {
		layer = &remote.MountableLayer{Layer: layer, Reference: c.from}
	}
	err := r.s.pusher.Upload(ctx, r.ref.Context(), layer)
	return registryError(err, fmt.Sprintf("push blob %v to %v", d.Digest, r.name))
}

func (r *registryTarget) putManifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	err := r.s.pusher.Push(ctx, r.ref.Context().Digest(d.Digest.String()), document{d, raw})
	return registryError(err, fmt.Sprintf("push manifest %v to %v", d.Digest, r.name))
}

func (r *registryTarget) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	err := r.s.pusher.Push(ctx, r.ref, document{d, raw})
	return registryError(err, fmt.Sprintf("push %v", r.name))
}

func (r *registryTarget) close() error { return nil }

// document is a manifest or index as the registry library wants it.
type document struct {
	d   ocispec.Descriptor
	raw []byte
}

func (d document) RawManifest() ([]byte, error)        { return d.raw, nil }
func (d document) MediaType() (types.MediaType, error) { return types.MediaType(d.d.MediaType), nil }

// upload is a blob as the registry library wants it.
type upload struct {
	d ocispec.Descriptor
	c content
}

func (u upload) Digest() (v1.Hash, error)           { return v1.NewHash(u.d.Digest.String()) }
func (u upload) Compressed() (io.ReadCloser, error) { return u.c.open() }
func (u upload) Size() (int64, error)               { return u.d.Size, nil }

// MediaType is not that of the descriptor: the library would leave out
// layers it takes for non-distributable, which is not its decision here.
func (u upload) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// DiffID and Uncompressed belong to the library's interface; nothing that
// uploads calls them.
func (u upload) DiffID() (v1.Hash, error) { return v1.Hash{}, errors.ErrUnsupported }

func (u upload) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
