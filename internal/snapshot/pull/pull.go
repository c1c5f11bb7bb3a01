// Package pull has containerd pull images the lazy way: it tells the
// snapshotter of every layer where it comes from, so that layers are mounted
// instead of downloaded. It does what "ctr-remote image rpull" does for stock
// stargz, and works with any snapshotter that understands those labels.
package pull

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
)

// Defaults of Options.
const (
	DefaultAddress     = "/run/containerd/containerd.sock"
	DefaultNamespace   = "default"
	DefaultSnapshotter = "stargz"
)

// Options say what to pull, and where to.
type Options struct {
	// Address is containerd's socket; empty is DefaultAddress.
	Address string
	// Namespace is containerd's namespace; empty is DefaultNamespace.
	// Kubernetes uses "k8s.io".
	Namespace string
	// Snapshotter is the name of the snapshotter in containerd; empty is
	// DefaultSnapshotter.
	Snapshotter string
	// Image is the image's name, as people write it.
	Image string
	// Platform is OS/ARCH[/VARIANT]; empty is that of containerd's machine.
	Platform string
	// PlainHTTP speaks plain HTTP to registries on other machines, too.
	PlainHTTP bool
	// CAFile is a PEM file with authorities trusted beside the system's.
	CAFile string
	// Keychain has the credentials; nil is docker's.
	Keychain authn.Keychain
	// UserAgent is what registries are told; empty says nothing special.
	UserAgent string
	// DialTimeout limits the wait for containerd; 0 is 10 s.
	DialTimeout time.Duration
}

// Pull pulls an image into containerd, its layers mounted by the snapshotter,
// their blobs not downloaded where that can mount them. The image stays in
// containerd; the connection the returned value works on is closed when ctx
// ends.
//
// Errors: Unavailable where containerd does not answer, NotFound for a
// snapshotter it does not have, and the registry's; all say what to do.
func Pull(ctx context.Context, opts Options) (client.Image, error) {
	opts.complete()
	c, err := Connect(ctx, opts)
	if err != nil {
		return nil, err
	}
	img, err := opts.pull(ctx, c)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("pull %s: %w", opts.Image, err)
	}
	context.AfterFunc(ctx, func() { c.Close() })
	return img, nil
}

// Result says what became of an image.
type Result struct {
	// Image is its name in containerd, Digest that of its manifest or index.
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"`
	// Layers counts its layers, Lazy those whose blobs were not downloaded.
	Layers int `json:"layers"`
	Lazy   int `json:"lazy"`
	// Size is that of all blobs of its layers, Downloaded of those that were
	// downloaded, in bytes.
	Size       int64 `json:"size"`
	Downloaded int64 `json:"downloaded"`
}

// Inspect says what became of an image that Pull returned.
func Inspect(ctx context.Context, img client.Image, namespace string) (Result, error) {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	r := Result{Image: img.Name(), Digest: img.Target().Digest}
	store := img.ContentStore()
	m, err := images.Manifest(ctx, store, img.Target(), img.Platform())
	if err != nil {
		return r, fmt.Errorf("read manifest of %s: %w", r.Image, err)
	}
	for _, l := range m.Layers {
		r.Layers++
		r.Size += l.Size
		switch _, err := store.Info(ctx, l.Digest); {
		case err == nil:
			r.Downloaded += l.Size
		case errdefs.IsNotFound(err):
			r.Lazy++
		default:
			return r, fmt.Errorf("look for layer %s: %w", l.Digest, err)
		}
	}
	return r, nil
}

func (o *Options) complete() {
	for _, d := range []struct {
		value *string
		or    string
	}{{&o.Address, DefaultAddress}, {&o.Namespace, DefaultNamespace}, {&o.Snapshotter, DefaultSnapshotter}} {
		if *d.value == "" {
			*d.value = d.or
		}
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 10 * time.Second
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
}

// Connect returns a client of the containerd that opts name, once it has
// answered and has the snapshotter. The caller closes it.
//
// Errors: as Pull's.
func Connect(ctx context.Context, opts Options) (*client.Client, error) {
	opts.complete()
	failed := func(err error) error {
		return blob.Errorf(blob.Unavailable, "connect to containerd on %s: %w: is it running? say where it is with --containerd", opts.Address, err)
	}
	if _, err := os.Stat(opts.Address); err != nil {
		return nil, failed(err)
	}
	c, err := client.New(opts.Address, client.WithTimeout(opts.DialTimeout), client.WithDefaultNamespace(opts.Namespace))
	if err != nil {
		return nil, failed(err)
	}
	ask, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, opts.Namespace), opts.DialTimeout)
	defer cancel()
	plugins, err := c.IntrospectionService().Plugins(ask, fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%s", opts.Snapshotter))
	switch {
	case err != nil:
		err = failed(err)
	case len(plugins.Plugins) == 0:
		err = blob.Errorf(blob.NotFound, "find snapshotter %s in containerd: it is not configured: "+
			"run \"skimmer install containerd --restart\", or name another with --snapshotter", opts.Snapshotter)
	case plugins.Plugins[0].InitErr != nil:
		err = blob.Errorf(blob.Unavailable, "find snapshotter %s in containerd: it did not start: %s: run \"skimmer doctor\"",
			opts.Snapshotter, plugins.Plugins[0].InitErr.Message)
	default:
		return c, nil
	}
	c.Close()
	return nil, err
}

func (o *Options) pull(ctx context.Context, c *client.Client) (client.Image, error) {
	ref, err := o.reference()
	if err != nil {
		return nil, err
	}
	resolver, err := o.resolver()
	if err != nil {
		return nil, err
	}
	all := []client.RemoteOpt{
		client.WithResolver(resolver),
		client.WithPullUnpack,
		client.WithPullSnapshotter(o.Snapshotter),
		client.WithImageHandlerWrapper(Labels(ref)),
	}
	if o.Platform != "" {
		all = append(all, client.WithPlatform(o.Platform))
	}
	img, err := c.Pull(namespaces.WithNamespace(ctx, o.Namespace), ref, all...)
	switch {
	case err == nil:
		return img, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errdefs.IsNotFound(err):
		return nil, blob.Errorf(blob.NotFound, "%w", err)
	case errdefs.IsUnavailable(err):
		return nil, blob.Errorf(blob.Unavailable, "%w: does the snapshotter answer? run \"skimmer doctor\"", err)
	}
	return nil, err
}

// reference returns the image's name as containerd has it.
func (o *Options) reference() (string, error) {
	ref, err := origin.ParseReference(o.Image)
	if err != nil {
		return "", err
	}
	if ref.Digest != "" {
		ref.Tag = "" // containerd knows either
	}
	return ref.String(), nil
}

// resolver returns how containerd's client reaches registries.
func (o *Options) resolver() (remotes.Resolver, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "read CA file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, blob.Errorf(blob.Invalid, "read CA file %s: no PEM certificates in it", o.CAFile)
		}
		tlsConfig.RootCAs = pool
	}
	hc := &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
	}}
	header := make(http.Header)
	if o.UserAgent != "" {
		header.Set("User-Agent", o.UserAgent)
	}
	// A registry on this machine that has a certificate is spoken to with TLS.
	plain := func(host string) (bool, error) {
		if o.PlainHTTP {
			return true, nil
		}
		local, err := docker.MatchLocalhost(host)
		return local && o.CAFile == "", err
	}
	return docker.NewResolver(docker.ResolverOptions{
		Headers: header,
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithClient(hc),
			docker.WithPlainHTTP(plain),
			docker.WithAuthorizer(docker.NewDockerAuthorizer(
				docker.WithAuthClient(hc), docker.WithAuthHeader(header), docker.WithAuthCreds(o.credential))),
		),
	}), nil
}

// credential returns user and password for a host, or an empty user and an
// identity token.
func (o *Options) credential(host string) (string, string, error) {
	if host == "registry-1.docker.io" {
		host = name.DefaultRegistry
	}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return "", "", blob.Errorf(blob.Invalid, "find credentials: %w", err)
	}
	a, err := o.Keychain.Resolve(reg)
	if err != nil {
		return "", "", fmt.Errorf("find credentials for %s: %w", host, err)
	}
	c, err := a.Authorization()
	if err != nil {
		return "", "", fmt.Errorf("find credentials for %s: %w", host, err)
	}
	if c.IdentityToken != "" {
		return "", c.IdentityToken, nil
	}
	return c.Username, c.Password, nil
}

// The labels stock stargz reads, and clients set for it.
const (
	labelReference = "containerd.io/snapshot/remote/stargz.reference"
	labelDigest    = "containerd.io/snapshot/remote/stargz.digest"
	labelLayers    = "containerd.io/snapshot/remote/stargz.layers"
)

// Labels returns a wrapper for client.WithImageHandlerWrapper that annotates
// the layers of an image named ref with what a remote snapshotter has to
// know: containerd's own labels, and those of stargz.
func Labels(ref string) func(images.Handler) images.Handler {
	return func(h images.Handler) images.Handler {
		h = snapshotters.AppendInfoHandlerWrapper(ref)(h)
		return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			children, err := h.Handle(ctx, desc)
			if err != nil || !images.IsManifestType(desc.MediaType) {
				return children, err
			}
			for i := range children {
				c := &children[i]
				if !images.IsLayerType(c.MediaType) {
					continue
				}
				c.Annotations[labelReference] = ref
				c.Annotations[labelDigest] = c.Digest.String()
				c.Annotations[labelLayers] = layerList(children[i:])
			}
			return children, nil
		})
	}
}

// layerList joins the digests of layers, as many as fit into a label.
func layerList(children []ocispec.Descriptor) string {
	var list []string
	for _, c := range children {
		if !images.IsLayerType(c.MediaType) {
			continue
		}
		if more := append(list, c.Digest.String()); labels.Validate(labelLayers, strings.Join(more, ",")) == nil {
			list = more
			continue
		}
		break
	}
	return strings.Join(list, ",")
}
