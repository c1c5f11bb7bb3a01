package origin

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// MaxManifest is the largest manifest or index that is read, in bytes; it is
// the size registries are asked to accept (OCI distribution specification
// 1.1, "Pushing Manifests").
const MaxManifest = 4 << 20

// manifestTypes are the media types of what an image reference can lead to:
// those of OCI, and those of docker's image manifest version 2, schema 2.
var manifestTypes = []string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}

// Resolve returns the descriptor of what ref names at its registry: digest,
// media type and size in bytes. It asks with HEAD, and reads the manifest
// where that does not tell; a tag may mean something else the next moment.
//
// Errors: as Manifest.
func (o *Origin) Resolve(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	c, err := o.client(ctx, ref.Repository)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := checkIdentifier(ref.Identifier()); err != nil {
		return ocispec.Descriptor{}, err
	}
	var found ocispec.Descriptor
	err = o.x.Retry(ctx, func() (err error) {
		found, err = c.headManifest(ctx, ref)
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, c.explain(err, "resolve %v", ref)
	}
	if found.Digest != "" {
		return found, nil
	}
	data, mediaType, d, err := o.Manifest(ctx, ref.Repository, ref.Identifier())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, nil
}

// headManifest asks for a manifest's descriptor. Where the registry does not
// tell all of it, or does not know HEAD, the descriptor is empty.
func (c *client) headManifest(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	resp, err := c.send(ctx, http.MethodHead, "/manifests/"+ref.Identifier(), accept())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return ocispec.Descriptor{}, headFailure(resp)
	}
	resp.Body.Close()
	d := ocispec.Descriptor{
		MediaType: mediaTypeOf(resp.Header, nil),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if d.Digest.Validate() != nil || d.MediaType == "" || d.Size < 0 || d.Size > MaxManifest {
		return ocispec.Descriptor{}, nil
	}
	if ref.Digest != "" && ref.Digest != d.Digest {
		return ocispec.Descriptor{}, blob.Errorf(blob.Corrupt, "HEAD %s: the registry answered for %v", c.repo.host, d.Digest)
	}
	return d, nil
}

// headFailure returns the error that an answer to HEAD with a bad status
// means, or nil where GET may still do better: a registry that does not
// implement HEAD says so in many ways.
func headFailure(resp *http.Response) error {
	f := exchange.StatusFailure(resp, time.Now())
	switch blob.KindOf(f) {
	case blob.Unauthorized, blob.Forbidden, blob.NotFound:
		return f
	}
	if f.Again {
		return f
	}
	return nil
}

// Manifest returns a manifest or index with its media type and digest.
// Repository is as in blob.Ref, reference a tag or a digest; asked for a
// digest, the bytes returned have it. A media type the registry does not tell
// is taken from the document, or empty. The credential is the context's, if
// it brings one.
//
// Errors: Invalid for malformed names and for what is larger than
// MaxManifest; NotFound, Unauthorized, Forbidden, Unavailable, Timeout, Busy,
// Corrupt.
func (o *Origin) Manifest(ctx context.Context, repository, reference string) (data []byte, mediaType string, d digest.Digest, err error) {
	c, err := o.client(ctx, repository)
	if err != nil {
		return nil, "", "", err
	}
	if err := checkIdentifier(reference); err != nil {
		return nil, "", "", err
	}
	var header http.Header
	err = o.x.Retry(ctx, func() (err error) {
		data, header, err = c.getManifest(ctx, reference)
		return err
	})
	if err == nil {
		d, err = manifestDigest(data, reference, header.Get("Docker-Content-Digest"))
	}
	if err != nil {
		return nil, "", "", c.explain(err, "read manifest %s of %v", reference, c.repo)
	}
	return data, mediaTypeOf(header, data), d, nil
}

func (c *client) getManifest(ctx context.Context, reference string) ([]byte, http.Header, error) {
	resp, err := c.send(ctx, http.MethodGet, "/manifests/"+reference, accept())
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, exchange.StatusFailure(resp, time.Now())
	}
	defer resp.Body.Close()
	if resp.ContentLength > MaxManifest {
		return nil, nil, tooLarge()
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err == nil && len(data) > MaxManifest {
		err = tooLarge()
	}
	return data, resp.Header, err
}

func tooLarge() error {
	return blob.Errorf(blob.Invalid, "it is larger than %d bytes", MaxManifest)
}

// manifestDigest returns the digest of a manifest, held against the reference
// where that is one, and against what the registry said otherwise.
func manifestDigest(data []byte, reference, told string) (digest.Digest, error) {
	want := digest.Digest(reference)
	if want.Validate() != nil {
		want = digest.Digest(told)
		if want.Validate() != nil {
			return digest.FromBytes(data), nil
		}
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return "", blob.Errorf(blob.Corrupt, "the bytes have digest %v, not %v", got, want)
	}
	return want, nil
}

// checkIdentifier refuses what is neither tag nor digest.
func checkIdentifier(s string) error {
	if !strings.Contains(s, ":") && tagPattern.MatchString(s) {
		return nil
	}
	if err := digest.Digest(s).Validate(); err != nil {
		return blob.Errorf(blob.Invalid, "check manifest reference %q: neither a tag nor a digest", s)
	}
	return nil
}

func accept() http.Header { return http.Header{"Accept": {strings.Join(manifestTypes, ", ")}} }

// mediaTypeOf returns the type of a manifest: that of the headers if it is
// one of a manifest, else what the document says of itself, else whatever the
// headers say.
func mediaTypeOf(header http.Header, data []byte) string {
	t, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err == nil && slices.Contains(manifestTypes, t) {
		return t
	}
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &doc) == nil && doc.MediaType != "" {
		return doc.MediaType
	}
	return t
}

// size asks how long a blob is.
func (c *client) size(ctx context.Context, d digest.Digest) (size int64, err error) {
	err = c.o.x.Retry(ctx, func() (err error) {
		size, err = c.headBlob(ctx, d)
		if err == nil && size == blob.SizeUnknown {
			size, err = c.sizeByRange(ctx, d)
		}
		return err
	})
	return size, err
}

// headBlob asks for a blob's size with HEAD; SizeUnknown where that is no use.
func (c *client) headBlob(ctx context.Context, d digest.Digest) (int64, error) {
	resp, err := c.send(ctx, http.MethodHead, "/blobs/"+d.String(), nil)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode == http.StatusOK {
		resp.Body.Close()
		return max(resp.ContentLength, blob.SizeUnknown), nil
	}
	err = headFailure(resp)
	if resp.Request.URL.Host != c.repo.host && !blob.KindOf(err).Temporary() {
		err = nil // a URL signed for GET only
	}
	return blob.SizeUnknown, err
}

// sizeByRange asks for a blob's first byte, and so for the length of the rest.
func (c *client) sizeByRange(ctx context.Context, d digest.Digest) (int64, error) {
	resp, err := c.fetch(ctx, d, http.Header{"Range": {"bytes=0-0"}})
	if err != nil {
		return 0, err
	}
	got, err := exchange.ParseContentRange(resp.Header.Get("Content-Range"))
	size := got.Total
	switch resp.StatusCode {
	case http.StatusOK:
		size = resp.ContentLength
	case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable: // an empty blob has no first byte
		if err != nil {
			size = blob.SizeUnknown
		}
	default:
		return 0, exchange.StatusFailure(resp, time.Now())
	}
	resp.Body.Close()
	if size < 0 {
		return 0, blob.Errorf(blob.Unavailable, "GET %s: the registry does not say how long the blob is", resp.Request.URL.Host)
	}
	return size, nil
}
