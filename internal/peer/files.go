package peer

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
	"skimmer/internal/origin/web"
)

// Files is where bytes come from that no node has yet: registries and web
// servers, as a blob.Source that asks the one a reference names. What it reads
// is counted as blob.Traffic.Origin. It is safe for concurrent use.
type Files struct {
	origin *origin.Origin
	web    *web.Source
}

// NewFiles returns a Files over o, which also says how web servers are
// reached. Temporary files are made in tempDir; see web.Config.
func NewFiles(o *origin.Origin, tempDir string, log *slog.Logger) *Files {
	return &Files{o, web.New(web.Config{Client: o.Web(), TempDir: tempDir, Logger: log})}
}

// files returns the node's Files. It is called while New runs, and only there
// for the first time.
func (p *Peer) files() *Files {
	if p.upstream == nil {
		p.upstream = NewFiles(p.origin, p.cfg.DataDir, p.log)
	}
	return p.upstream
}

// FileName names a file as users do.
type FileName struct {
	// URL is an http or https URL, or that of a blob in a registry:
	// oci://registry.example/repository@sha256:…
	URL string
	// Tag and Digest are those of web.Options. Tag means nothing for blobs of
	// registries.
	Tag    string
	Digest digest.Digest
	// Header is sent along to web servers. It must have passed web.CheckHeader.
	Header http.Header
	// Ignore is that of web.Options.
	Ignore []string
}

// ociScheme is what URLs of blobs in registries begin with.
const ociScheme = "oci://"

// Find returns a reference to what name names now, and a context to read it
// with. Blobs of registries are not asked for; their size is not known.
//
// Errors: those of web.Source.Resolve.
func (f *Files) Find(ctx context.Context, name FileName) (context.Context, blob.Ref, web.Meta, error) {
	if rest, ok := strings.CutPrefix(name.URL, ociScheme); ok {
		ref, err := registryBlob(rest, name.Digest)
		return ctx, ref, web.Meta{Ranges: true}, err
	}
	ctx, url, err := withHeader(ctx, name)
	if err != nil {
		return ctx, blob.Ref{}, web.Meta{}, err
	}
	ref, meta, err := f.web.Resolve(ctx, url, web.Options{Tag: name.Tag, Digest: name.Digest, Ignore: name.Ignore})
	return ctx, ref, meta, err
}

// withHeader returns a context with the headers of name, and its URL without
// what of them was in it.
func withHeader(ctx context.Context, name FileName) (context.Context, string, error) {
	url, user, err := web.SplitUser(name.URL)
	if err != nil {
		return ctx, "", err
	}
	h := name.Header.Clone()
	if h == nil {
		h = make(http.Header)
	}
	for key, values := range user {
		if h.Get(key) == "" {
			h[key] = values
		}
	}
	return web.WithHeader(ctx, h), url, nil
}

// registryBlob reads registry.example/repository@digest.
func registryBlob(text string, want digest.Digest) (blob.Ref, error) {
	ref, err := origin.ParseReference(text)
	switch {
	case err != nil:
		return blob.Ref{}, err
	case ref.Digest == "":
		return blob.Ref{}, blob.Errorf(blob.Invalid, "read URL %s%s: it has no digest: write oci://REGISTRY/REPOSITORY@sha256:…", ociScheme, text)
	case want != "" && want != ref.Digest:
		return blob.Ref{}, blob.Errorf(blob.Invalid, "read URL %s%s: the digest wanted is another, %s", ociScheme, text, want)
	}
	return blob.Ref{Digest: ref.Digest, Size: blob.SizeUnknown, Repository: ref.Repository}, nil
}

// Open implements blob.Source.
func (f *Files) Open(ctx context.Context, ref blob.Ref) (b blob.Blob, err error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	switch {
	case ref.URL != "":
		b, err = f.web.Open(ctx, ref)
	case !blob.Verifiable(ref.Digest):
		err = blob.Errorf(blob.NotFound, "open %v: its URL is not known here", ref)
	default:
		b, err = f.origin.Open(ctx, ref)
	}
	if err != nil {
		return nil, err
	}
	return originBlob{b}, nil
}

// originBlob counts what is read.
type originBlob struct{ blob.Blob }

func (b originBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := b.Blob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	return &originReader{rc, blob.TrafficOf(ctx)}, nil
}

// ReadRanges implements blob.MultiReader.
func (b originBlob) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	t := blob.TrafficOf(ctx)
	return blob.ReadRanges(ctx, b.Blob, ranges, func(i int, off int64, p []byte) error {
		t.Origin.Add(int64(len(p)))
		return land(i, off, p)
	})
}

type originReader struct {
	io.ReadCloser
	t *blob.Traffic
}

func (r *originReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.t.Origin.Add(int64(n))
	return n, err
}

// find returns what name names and the source to read it from. What the node
// has whole is found without asking anybody, if its digest is known; what
// nobody will ask for again is not kept.
func (p *Peer) find(ctx context.Context, name FileName) (context.Context, blob.Ref, web.Meta, blob.Source, error) {
	if name.Digest != "" && !strings.HasPrefix(name.URL, ociScheme) {
		held, err := p.store.Stat(name.Digest)
		ctx, url, err2 := withHeader(ctx, name)
		if err == nil && err2 == nil && held.Complete && blob.Verifiable(name.Digest) {
			url, _, _ = strings.Cut(url, "#")
			ref := blob.Ref{Digest: name.Digest, Size: held.Size, MediaType: held.MediaType, URL: url}
			return ctx, ref, web.Meta{ContentType: held.MediaType, Ranges: true}, p.source(), nil
		}
	}
	ctx, ref, meta, err := p.files().Find(ctx, name)
	if meta.Unique {
		return ctx, ref, meta, blob.Meter(p.files(), &p.FromOrigin), err
	}
	return ctx, ref, meta, p.source(), err
}
