package mirror

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// what is the kind of thing a path names.
type what uint8

const (
	other what = iota // passed on
	aBlob
	aManifest
)

// target is what the path of a request names.
type target struct {
	what   what
	path   string        // of the whole, as it goes upstream
	name   string        // of the repository; empty where there is none
	digest digest.Digest // of a blob or manifest; empty for a tag
	tag    string
}

// String returns the path, for logs. It has no query, which may be secret.
func (t target) String() string { return t.path }

// reference returns what a manifest is asked for by.
func (t target) reference() string {
	if t.tag != "" {
		return t.tag
	}
	return t.digest.String()
}

// The grammar of OCI distribution specification 1.1, "Pulling manifests"; a
// name has at most 255 bytes in all registries we know.
var (
	namePattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	// restPattern is what other paths below /v2/ consist of.
	restPattern = regexp.MustCompile(`^[a-zA-Z0-9._~:@+=,/-]*$`)
)

const (
	maxName = 255
	maxPath = 1024
)

// parseTarget reads the path of a request. The only sign that may be written
// as %xx is the colon of a digest: an encoded slash or dot would mean one
// thing here and may mean another upstream.
//
// Errors: with a code of the distribution specification.
func parseTarget(u *url.URL) (target, error) {
	path := u.EscapedPath()
	if len(path) > maxPath {
		return target{}, coded(http.StatusBadRequest, "NAME_INVALID", "the path has more than %d bytes", maxPath)
	}
	path = strings.ReplaceAll(strings.ReplaceAll(path, "%3A", ":"), "%3a", ":")
	if path == "/v2" {
		path = "/v2/"
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return target{}, coded(http.StatusNotFound, "UNSUPPORTED", "this is a registry mirror: it has nothing outside of /v2/")
	}
	if !restPattern.MatchString(rest) || dotted(rest) {
		return target{}, coded(http.StatusBadRequest, "NAME_INVALID", "the path has parts that no repository, tag or digest has")
	}
	t := target{path: path}
	// A name may have parts that are called blobs or manifests: the last counts.
	if i := strings.LastIndex(rest, "/blobs/"); i >= 0 && !strings.Contains(rest[i+len("/blobs/"):], "/") {
		return t.blob(rest[:i], rest[i+len("/blobs/"):])
	}
	if i := strings.LastIndex(rest, "/manifests/"); i >= 0 && !strings.Contains(rest[i+len("/manifests/"):], "/") {
		return t.manifest(rest[:i], rest[i+len("/manifests/"):])
	}
	return t.rest(rest)
}

// dotted reports a path that is not the shortest for what it names.
func dotted(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return true
		}
	}
	return strings.Contains(path, "//")
}

func (t target) named(name string) (target, error) {
	if len(name) > maxName || !namePattern.MatchString(name) {
		return target{}, coded(http.StatusBadRequest, "NAME_INVALID", "%.300q is not the name of a repository", name)
	}
	t.name = name
	return t, nil
}

func (t target) blob(name, d string) (target, error) {
	t, err := t.named(name)
	if err != nil {
		return target{}, err
	}
	t.what, t.digest = aBlob, digest.Digest(d)
	if d == "uploads" || t.digest.Validate() != nil {
		return target{}, coded(http.StatusBadRequest, "DIGEST_INVALID", "%.100q is not a digest", d)
	}
	return t, nil
}

func (t target) manifest(name, reference string) (target, error) {
	t, err := t.named(name)
	if err != nil {
		return target{}, err
	}
	t.what = aManifest
	switch d := digest.Digest(reference); {
	case d.Validate() == nil:
		t.digest = d
	case tagPattern.MatchString(reference):
		t.tag = reference
	default:
		return target{}, coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%.200q is neither a tag nor a digest", reference)
	}
	return t, nil
}

// rest is a path that is passed on: the check of the version, lists of tags
// and referrers, and what else registries offer to readers.
func (t target) rest(rest string) (target, error) {
	if strings.Contains(rest+"/", "/blobs/uploads/") {
		return target{}, coded(http.StatusMethodNotAllowed, "UNSUPPORTED", "this is a pull-only mirror: it has no uploads")
	}
	if name, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return t.named(name)
	}
	if i := strings.LastIndex(rest, "/referrers/"); i >= 0 {
		d := digest.Digest(rest[i+len("/referrers/"):])
		if d.Validate() != nil {
			return target{}, coded(http.StatusBadRequest, "DIGEST_INVALID", "%.100q is not a digest", d)
		}
		return t.named(rest[:i])
	}
	return t, nil
}
