package keychain

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"

	"skimmer/internal/origin"
)

// The bounds of a docker configuration in a secret. Kubernetes allows 1 MiB
// for all of a secret.
const (
	maxDockerConfig = 2 << 20
	maxPattern      = 1024
)

// entry is a credential and the repositories it is for.
type entry struct {
	pattern    string // as it was written, for a stable order
	host       string // host name, which may be a glob; lower case
	port       string
	path       string // without slashes around it; empty is the whole registry
	glob       bool
	credential origin.Credential
}

// errDockerConfig says nothing more: parsers quote what they read.
var errDockerConfig = errors.New("not a docker configuration")

// parseDockerConfig reads the JSON of docker's config.json. Entries that make
// no sense are left out. The order is always the same.
func parseDockerConfig(data []byte) ([]entry, error) {
	if len(data) > maxDockerConfig {
		return nil, errDockerConfig
	}
	var config struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	if json.Unmarshal(data, &config) != nil {
		return nil, errDockerConfig
	}
	var entries []entry
	for pattern, raw := range config.Auths {
		e, ok := parsePattern(pattern)
		if !ok {
			continue
		}
		if e.credential, ok = parseAuth(raw); ok {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.pattern, b.pattern) })
	return entries, nil
}

// parseAuth reads a value of auths. Tokens go before passwords, for where
// there is an identity token docker writes a user that is none.
func parseAuth(raw []byte) (origin.Credential, bool) {
	var auth struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	if json.Unmarshal(raw, &auth) != nil {
		return origin.Credential{}, false
	}
	switch {
	case auth.RegistryToken != "":
		return origin.Credential{RegistryToken: auth.RegistryToken}, true
	case auth.IdentityToken != "":
		return origin.Credential{IdentityToken: auth.IdentityToken}, true
	case auth.Auth != "":
		c, ok := DecodeBasic(auth.Auth)
		return c, ok && c != origin.Credential{}
	}
	c := origin.Credential{Username: auth.Username, Password: auth.Password}
	return c, c != origin.Credential{}
}

// parsePattern reads a key of auths as the kubelet does: host[:port][/path],
// with or without a scheme; /v1/ and /v2/ are docker's way to say the registry.
func parsePattern(pattern string) (entry, bool) {
	if len(pattern) > maxPattern {
		return entry{}, false
	}
	s := pattern
	if !strings.HasPrefix(s, "https://") && !strings.HasPrefix(s, "http://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return entry{}, false
	}
	e := entry{pattern: pattern, host: strings.ToLower(u.Hostname()), port: u.Port(), path: strings.Trim(u.Path, "/")}
	for _, version := range []string{"v1", "v2"} {
		if e.path == version {
			e.path = ""
		} else if rest, ok := strings.CutPrefix(e.path, version+"/"); ok {
			e.path = rest
			break
		}
	}
	if IsHub(e.host) && e.port == "" {
		e.host = hub
	}
	e.glob = strings.ContainsAny(e.host, `*?[\`)
	for part := range strings.SplitSeq(e.host, ".") {
		if _, err := path.Match(part, ""); err != nil {
			return entry{}, false
		}
	}
	return e, true
}

// hub is Docker Hub in a blob.Ref.
const hub = "docker.io"

// IsHub reports whether host is one of the names of Docker Hub.
func IsHub(host string) bool {
	switch host {
	case hub, "index.docker.io", "registry-1.docker.io":
		return true
	}
	return false
}

// matches reports whether the entry is for the repository. Labels of a host
// match one by one, so that *.example.com is for a.example.com and not for
// a.b.example.com; paths match by whole elements, where the kubelet would take
// example.com/team for example.com/team-b too.
func (e entry) matches(repository string) bool {
	host, repositoryPath, _ := strings.Cut(repository, "/")
	u := url.URL{Host: strings.ToLower(host)}
	if u.Port() != e.port {
		return false
	}
	want, got := strings.Split(e.host, "."), strings.Split(u.Hostname(), ".")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		// parsePattern has refused bad patterns.
		if ok, _ := path.Match(want[i], got[i]); !ok {
			return false
		}
	}
	return e.path == "" || repositoryPath == e.path || strings.HasPrefix(repositoryPath, e.path+"/")
}

// preferred orders entries that match a repository: hosts written out before
// globs, longer paths before shorter ones.
func preferred(a, b entry) int {
	if a.glob != b.glob {
		if a.glob {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(len(b.path), len(a.path)), cmp.Compare(len(b.host), len(a.host)))
}
