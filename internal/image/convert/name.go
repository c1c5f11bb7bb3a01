package convert

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Transport is where a Name's image is kept.
type Transport string

// The transports. Their values are the prefixes users write, but for Archive.
const (
	// Registry is an OCI distribution registry.
	Registry Transport = "docker"
	// Layout is an OCI image layout directory.
	Layout Transport = "oci"
	// OCIArchive is a tar of an OCI image layout.
	OCIArchive Transport = "oci-archive"
	// DockerArchive is what docker save writes.
	DockerArchive Transport = "docker-archive"
	// Archive is either of the archives; its content says which. It is not
	// written, but what a plain path to a file stands for.
	Archive Transport = "archive"
)

// Name says where an image is or shall be. The zero Name names nothing.
type Name struct {
	// Transport says which of the other fields matter.
	Transport Transport
	// Ref is the reference of an image in a registry, with ":latest" where
	// nothing was written.
	Ref name.Reference
	// Path is the directory or file of the other transports.
	Path string
	// Tag selects one image of a layout or archive; empty selects the only
	// one. In a docker archive it may be a whole reference.
	Tag string
	// Digest, where set, selects a manifest of a layout or OCI archive by
	// digest, in place of Tag.
	Digest digest.Digest
}

// ParseName reads a name as users write it:
//
//	docker.io/library/python:3.12  registry.example:5000/app@sha256:…
//	oci:DIR[:TAG]  oci:DIR@sha256:…
//	oci-archive:FILE[:TAG]  docker-archive:FILE[:REFERENCE]
//
// A plain path works where it cannot be mistaken: an existing OCI layout
// directory, or an existing file, whose content then says which archive it is.
// A path that does not begin with "/" or "." must end in a name tar archives
// have, so that a stray file is not taken for an image in a registry. Errors
// are of kind Invalid.
func ParseName(s string) (Name, error) {
	for _, t := range []Transport{Layout, OCIArchive, DockerArchive} {
		if rest, ok := strings.CutPrefix(s, string(t)+":"); ok {
			return parsePath(t, rest)
		}
	}
	rest, explicit := strings.CutPrefix(s, string(Registry)+"://")
	if !explicit {
		n, ok, err := detectPath(s)
		if ok || err != nil {
			return n, err
		}
	}
	ref, err := name.ParseReference(rest)
	if err != nil {
		return Name{}, blob.Errorf(blob.Invalid,
			"parse image name %q: no such layout or archive, and not a registry reference either (%w); write REGISTRY/REPOSITORY[:TAG], oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE", s, err)
	}
	return Name{Transport: Registry, Ref: ref}, nil
}

// ParseLayout reads the name of a layout directory, in which "oci:" may be
// left out.
func ParseLayout(s string) (Name, error) {
	return parsePath(Layout, strings.TrimPrefix(s, string(Layout)+":"))
}

// ParseRegistry reads a name that can only be a reference to a registry.
func ParseRegistry(s string) (Name, error) {
	for _, t := range []Transport{Layout, OCIArchive, DockerArchive} {
		// "oci:x" would also be tag x of Docker Hub's repository oci.
		if strings.HasPrefix(s, string(t)+":") {
			return Name{}, blob.Errorf(blob.Invalid, "parse image name %q: not a registry reference; skimmer image cp copies from and to everywhere", s)
		}
	}
	ref, err := name.ParseReference(strings.TrimPrefix(s, string(Registry)+"://"))
	if err != nil {
		return Name{}, blob.Errorf(blob.Invalid, "parse image name %q: not a registry reference: %w", s, err)
	}
	return Name{Transport: Registry, Ref: ref}, nil
}

// parsePath splits DIR[:TAG] or DIR@DIGEST. A path that exists as written is
// not split, so that file names may contain what separates.
func parsePath(t Transport, s string) (Name, error) {
	n := Name{Transport: t, Path: s}
	if _, err := os.Stat(s); err != nil {
		if path, d, ok := strings.Cut(s, "@"); ok && t != DockerArchive {
			n.Path, n.Digest = path, digest.Digest(d)
			if err := n.Digest.Validate(); err != nil {
				return Name{}, blob.Errorf(blob.Invalid, "parse image name %q: digest %q: %w", string(t)+":"+s, d, err)
			}
		} else if path, tag, ok := strings.Cut(s, ":"); ok {
			n.Path, n.Tag = path, tag
			if tag == "" {
				return Name{}, blob.Errorf(blob.Invalid, "parse image name %q: the tag behind the colon is empty", string(t)+":"+s)
			}
		}
	}
	if n.Path == "" {
		return Name{}, blob.Errorf(blob.Invalid, "parse image name %q: the path is empty", string(t)+":"+s)
	}
	return n, nil
}

// detectPath recognises a plain path; ok is false where s is to be taken for
// a registry reference.
func detectPath(s string) (n Name, ok bool, err error) {
	path, tag, _ := strings.Cut(s, ":")
	if _, statErr := os.Stat(s); statErr == nil {
		path, tag = s, ""
	}
	plain := strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".")
	info, err := os.Stat(path)
	switch {
	case err != nil && isArchiveName(path):
		return Name{}, false, blob.Errorf(blob.Invalid, "parse image name %q: no such archive: %w; a new one is written to oci-archive:FILE", s, err)
	case err != nil && plain:
		return Name{}, false, blob.Errorf(blob.Invalid, "parse image name %q: no such layout or archive: %w; a new layout is written to oci:DIR", s, err)
	case err != nil:
		return Name{}, false, nil
	case info.IsDir():
		_, err := os.Stat(filepath.Join(path, layoutFile))
		if err != nil && plain {
			return Name{}, false, blob.Errorf(blob.Invalid, "parse image name %q: a directory, but not an OCI layout: %w", s, err)
		}
		return Name{Transport: Layout, Path: path, Tag: tag}, err == nil, nil
	case !plain && !isArchiveName(path):
		return Name{}, false, nil
	}
	return Name{Transport: Archive, Path: path, Tag: tag}, true, nil
}

func isArchiveName(path string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst"} {
		if strings.HasSuffix(path, suffix) {
			return true
		}
	}
	return false
}

// String returns the name in the form ParseName reads.
func (n Name) String() string {
	if n.Transport == Registry {
		return n.Repository() + strings.TrimPrefix(n.Ref.Name(), n.Ref.Context().Name())
	}
	s := n.Path
	if n.Transport != Archive {
		s = string(n.Transport) + ":" + s
	}
	switch {
	case n.Digest != "":
		return s + "@" + n.Digest.String()
	case n.Tag != "":
		return s + ":" + n.Tag
	}
	return s
}

// Repository returns the repository of an image in a registry as blob.Ref
// wants it, and "" for the other transports. Docker's registry is called
// docker.io, as everybody writes it.
func (n Name) Repository() string {
	if n.Transport != Registry {
		return ""
	}
	repo := n.Ref.Context().Name()
	if rest, ok := strings.CutPrefix(repo, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return repo
}

// shortTag returns the tag that an image read from n keeps in a layout when
// the destination names none.
func (n Name) shortTag() string {
	if n.Transport == Registry {
		if tag, ok := n.Ref.(name.Tag); ok {
			return tag.TagStr()
		}
		return ""
	}
	return n.Tag
}
