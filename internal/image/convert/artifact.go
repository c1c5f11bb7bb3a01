package convert

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// Artifact is a small document that is kept beside an image.
type Artifact struct {
	// Type is its artifact type, and the media type of its one layer, Data.
	Type string
	Data []byte
	// Created is when it was made; it becomes part of the artifact's digest.
	Created time.Time
}

// Attach stores an artifact in the repository of the image n, as a referrer of
// the manifest called subject, which stays what it is. It returns the digest
// of the artifact's manifest; the same artifact has the same. For registries
// that do not list referrers, the artifact is entered under the tag that OCI's
// specification of distribution names for that.
//
// Errors: Invalid for an image that is not in a registry, NotFound if the
// registry does not have the subject, and the Kinds of reaching it.
func Attach(ctx context.Context, n Name, subject digest.Digest, a Artifact, access Access) (digest.Digest, error) {
	if n.Transport != Registry {
		return "", blob.Errorf(blob.Invalid, "attach to %v: only a registry keeps what belongs to an image", n)
	}
	s, err := access.open(1)
	if err != nil {
		return "", err
	}
	defer s.close()
	ref, err := s.reference(n.Ref)
	if err != nil {
		return "", blob.Errorf(blob.Invalid, "attach to %v: %w", n, err)
	}
	repo := ref.Context()
	got, _, err := (&registrySource{n, ref, s}).get(ctx, repo.Digest(subject.String()))
	if err != nil {
		return "", err
	}
	d, raw, err := a.manifest(got)
	if err != nil {
		return "", err
	}
	for _, content := range [][]byte{ocispec.DescriptorEmptyJSON.Data, a.Data} {
		if err := a.upload(ctx, s, repo, n, content); err != nil {
			return "", err
		}
	}
	err = retry(ctx, retryDelays, func() error {
		err := s.pusher.Push(ctx, repo.Digest(d.Digest.String()), document{d, raw})
		return registryError(err, fmt.Sprintf("push %s beside %v", a.Type, n))
	})
	return d.Digest, err
}

// manifest returns the manifest of the artifact about subject.
func (a Artifact) manifest(subject ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	raw, err := encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: a.Type,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeEmptyJSON, Digest: ocispec.DescriptorEmptyJSON.Digest, Size: ocispec.DescriptorEmptyJSON.Size,
		},
		Layers:      []ocispec.Descriptor{{MediaType: a.Type, Digest: digest.FromBytes(a.Data), Size: int64(len(a.Data))}},
		Subject:     &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{ocispec.AnnotationCreated: a.Created.UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("encode manifest of %s: %w", a.Type, err)
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, raw, nil
}

func (a Artifact) upload(ctx context.Context, s *session, repo name.Repository, n Name, content []byte) error {
	d := ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
	return retry(ctx, retryDelays, func() error {
		err := s.pusher.Upload(ctx, repo, upload{d, bytesContent(content)})
		return registryError(err, fmt.Sprintf("push %s beside %v", a.Type, n))
	})
}

// LayoutBlobs returns the blobs of the OCI layout in a directory. It opens
// nothing before a blob is asked for; what it returns is not checked.
func LayoutBlobs(dir string) blob.Source {
	return localBlobs{&layoutSource{Name{Transport: Layout, Path: dir}, dirFiles(dir)}}
}

// LayoutDocument returns a manifest or config of the OCI layout in a
// directory, checked. Errors: NotFound, Corrupt.
func LayoutDocument(ctx context.Context, dir string, d digest.Digest) ([]byte, error) {
	src := &layoutSource{Name{Transport: Layout, Path: dir}, dirFiles(dir)}
	return src.manifest(ctx, ocispec.Descriptor{Digest: d})
}
