package mirror

import (
	"net/http"
	"net/url"
	"strings"

	"skimmer/internal/origin"
)

// headerRegistry names the upstream.
const headerRegistry = "X-Dragonfly-Registry"

// parameterNS is how containerd names the upstream to a mirror.
const parameterNS = "ns"

// The names Docker Hub goes by, and where its API is.
const (
	hubName     = "docker.io"
	hubIndex    = "index.docker.io"
	hubRegistry = "registry-1.docker.io"
)

// upstream is the registry a request is for.
type upstream struct {
	scheme, host string // of its API
	name         string // of the repository at it
	repository   string // as in blob.Ref
}

// url returns where the registry has a path.
func (u upstream) url(path, query string) *url.URL {
	return &url.URL{Scheme: u.scheme, Host: u.host, Path: path, RawQuery: query}
}

// repo returns what the tables know the repository by.
func (u upstream) repo() repo { return repo{u.host, u.name} }

// upstreamOf returns the base URL of the registry that a request names.
func (m *Mirror) upstreamOf(req *http.Request) (*url.URL, error) {
	if s := req.Header.Get(headerRegistry); s != "" {
		return parseUpstream(s)
	}
	if s := req.URL.Query().Get(parameterNS); s != "" {
		return parseUpstream(s)
	}
	if m.fallback == nil {
		return nil, coded(http.StatusBadRequest, "UNSUPPORTED",
			"the request names no registry: send the header %s or the parameter %s, or set proxy.registryMirror.addr", headerRegistry, parameterNS)
	}
	return m.fallback, nil
}

// parseUpstream reads how somebody names a registry: a URL or a host. A host
// has no scheme; it is spoken to as the origin speaks to it.
func parseUpstream(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "//" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, coded(http.StatusBadRequest, "NAME_INVALID", "the registry is named by what is not a URL")
	}
	switch {
	case u.Host == "" || u.Hostname() == "":
		return nil, coded(http.StatusBadRequest, "NAME_INVALID", "the registry's URL has no host")
	case u.Scheme != "" && u.Scheme != "https" && u.Scheme != "http":
		return nil, coded(http.StatusBadRequest, "NAME_INVALID", "the registry's URL begins with %.20q: it is http or https", u.Scheme+"://")
	case u.User != nil:
		return nil, coded(http.StatusBadRequest, "NAME_INVALID", "the registry's URL has a user: credentials come in the Authorization header")
	case strings.Trim(u.Path, "/") != "" && strings.Trim(u.Path, "/") != "v2" || u.RawQuery != "" || u.Fragment != "":
		return nil, coded(http.StatusBadRequest, "NAME_INVALID", "the registry's URL has a path: only scheme, host and port name a registry")
	}
	return &url.URL{Scheme: strings.ToLower(u.Scheme), Host: strings.ToLower(u.Host)}, nil
}

// checkUpstream returns how to speak to the registry at base, and what the
// origin calls its repository of that name, which may be empty.
func (m *Mirror) checkUpstream(base *url.URL, name string) (upstream, error) {
	u := upstream{host: base.Host, name: name}
	registry := base.Host
	switch registry = strings.TrimSuffix(registry, ":443"); registry {
	case hubName, hubIndex, hubRegistry:
		u.host, registry = hubRegistry, hubName
		if !strings.Contains(name, "/") {
			registry = hubRegistry // a name in "library" is complete here, and is not completed
		}
	default:
		registry = base.Host
	}
	x := m.cfg.Origin.Exchange()
	u.scheme = x.Scheme(u.host)
	switch {
	case base.Scheme == "http" && u.scheme == "https":
		return upstream{}, coded(http.StatusBadRequest, "UNSUPPORTED",
			"the registry is named as http://%s, but spoken to over TLS: list it in origin.insecure if plain HTTP is meant", base.Host)
	case base.Scheme == "https" && u.scheme == "http":
		return upstream{}, coded(http.StatusBadRequest, "UNSUPPORTED",
			"the registry is named as https://%s, but spoken to over plain HTTP: name its authority in origin.caFiles if TLS is meant", base.Host)
	}
	if name == "" {
		return u, nil
	}
	if !strings.ContainsAny(registry, ".:") {
		// A bare word is a registry to us, and a folder of Docker Hub in a name.
		registry += map[string]string{"http": ":80", "https": ":443"}[u.scheme]
		u.host = registry
	}
	u.repository = registry + "/" + name
	// Credentials go where a reader of this name goes: it has to be the same.
	if got := (origin.Reference{Repository: u.repository}).Host(); got != u.host {
		return upstream{}, coded(http.StatusBadRequest, "NAME_INVALID", "%.300q is not a repository at %s", name, base.Host)
	}
	return u, nil
}

// speaks reports whether the origin speaks to a registry in the way that base
// says, which may leave it open.
func (m *Mirror) speaks(base *url.URL) bool {
	return base.Scheme == "" || base.Scheme == m.cfg.Origin.Exchange().Scheme(base.Host)
}
