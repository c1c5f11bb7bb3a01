package origin

import (
	"fmt"
	"regexp"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Reference is an image's name, complete: what the user left out is filled in
// as docker does.
type Reference struct {
	// Repository is host[:port]/path, as blob.Ref has it. Docker Hub is
	// written "docker.io".
	Repository string
	// Tag is the tag, or empty where only a digest was given.
	Tag string
	// Digest is the digest, or empty. Where there are both, it decides.
	Digest digest.Digest
}

// String returns the reference as repository[:tag][@digest];
// ParseReference of that is the same Reference.
func (r Reference) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// Identifier returns what selects the manifest within the repository: the
// digest, or else the tag.
func (r Reference) Identifier() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// Host returns the host[:port] of the registry's API, which for Docker Hub is
// not the host in its names.
func (r Reference) Host() string {
	if rep, err := parseRepository(r.Repository); err == nil {
		return rep.host
	}
	return ""
}

// maxReference bounds an image reference in bytes: a name of 255, a tag of
// 128, a digest and the signs between them fit.
const maxReference = 1024

// ParseReference reads an image name as people write it: "python",
// "ghcr.io/user/app:v1", "localhost:5000/app@sha256:...". A name without a
// host is on Docker Hub, one without tag and digest is ":latest".
//
// Errors: Invalid.
func ParseReference(s string) (Reference, error) {
	if len(s) > maxReference {
		return Reference{}, blob.Errorf(blob.Invalid, "parse image reference: it has %d bytes, at most %d are allowed", len(s), maxReference)
	}
	base, dgst, pinned := cutLast(s, '@')
	var r Reference
	if pinned {
		r.Digest = digest.Digest(dgst)
		if err := r.Digest.Validate(); err != nil {
			return Reference{}, blob.Errorf(blob.Invalid, "parse image reference %q: digest %q: %w", s, dgst, err)
		}
	}
	tag, err := name.NewTag(base, name.WithDefaultTag(""))
	if err != nil {
		return Reference{}, blob.Errorf(blob.Invalid, "parse image reference %q: %w", s, err)
	}
	rep, err := checkRepository(tag.Repository)
	if err != nil {
		return Reference{}, blob.Errorf(blob.Invalid, "parse image reference %q: %w", s, err)
	}
	r.Repository, r.Tag = rep.String(), tag.TagStr()
	if r.Tag == "" && !pinned {
		r.Tag = name.DefaultTag
	}
	if r.Tag != "" && !tagPattern.MatchString(r.Tag) {
		return Reference{}, blob.Errorf(blob.Invalid, "parse image reference %q: %q is not a tag", s, r.Tag)
	}
	return r, nil
}

// cutLast cuts s around the last sep.
func cutLast(s string, sep byte) (before, after string, found bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// The grammar of names: OCI distribution specification 1.1, "Pulling
// manifests". Hosts are those of RFC 3986 without user information and
// percent-encoding.
var (
	hostPattern = regexp.MustCompile(`^([a-zA-Z0-9]+(-+[a-zA-Z0-9]+)*(\.[a-zA-Z0-9]+(-+[a-zA-Z0-9]+)*)*|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)
	pathPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// The names Docker Hub goes by.
const (
	hubName     = "docker.io"            // in references
	hubIndex    = "index.docker.io"      // in docker's config, and in go-containerregistry
	hubRegistry = "registry-1.docker.io" // where the API is
)

// repository is a checked Ref.Repository.
type repository struct {
	registry string // host[:port] as names have it; Docker Hub is hubName
	host     string // host[:port] of the API
	path     string
}

func (r repository) String() string { return r.registry + "/" + r.path }

// parseRepository checks a Ref.Repository. The error is Invalid.
func parseRepository(s string) (repository, error) {
	n, err := name.NewRepository(s)
	if err != nil {
		return repository{}, blob.Errorf(blob.Invalid, "parse repository %q: %w", s, err)
	}
	r, err := checkRepository(n)
	if err != nil {
		return repository{}, blob.Errorf(blob.Invalid, "parse repository %q: %w", s, err)
	}
	return r, nil
}

// checkRepository holds a repository to the grammar, which
// go-containerregistry does not: a path it accepts may be "../..".
func checkRepository(n name.Repository) (repository, error) {
	r := repository{registry: n.RegistryStr(), host: n.RegistryStr(), path: n.RepositoryStr()}
	switch r.registry {
	case hubName, hubIndex:
		r.registry, r.host = hubName, hubRegistry
	}
	if !hostPattern.MatchString(r.host) {
		return r, fmt.Errorf("%q is not a registry host", r.host)
	}
	if !pathPattern.MatchString(r.path) {
		return r, fmt.Errorf("%q is not a repository path: lower-case letters, digits and separators only", r.path)
	}
	return r, nil
}
