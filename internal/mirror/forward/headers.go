package forward

import (
	"net/http"
	"strings"
)

// Headers of Dragonfly's clients; the package comment says what they mean.
const (
	dragonfly      = "X-Dragonfly-"
	headerUseP2P   = dragonfly + "Use-P2p" // in canonical form
	headerFiltered = dragonfly + "Filtered-Query-Params"
	headerTag      = dragonfly + "Tag"
)

// forUs reports whether a header is for this proxy and goes no further. "Proxy"
// itself is in there: CGI programs take it for configuration.
func forUs(name string) bool {
	return strings.HasPrefix(name, dragonfly) || strings.HasPrefix(name, "Proxy-") || name == "Proxy"
}

// dropOurs removes from h what is for this proxy.
func dropOurs(h http.Header) {
	for name := range h {
		if forUs(http.CanonicalHeaderKey(name)) {
			delete(h, name)
		}
	}
}

// aboutMessage are the headers that are about a request or its connection and
// not about the file: whoever reads the file makes its own.
var aboutMessage = []string{
	"Accept-Encoding", "Connection", "Content-Length", "Expect", "Host", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
	"If-Unmodified-Since", "Keep-Alive", "Range", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Via",
}

// fileHeader returns what of a request's header goes along when its file is
// read.
func fileHeader(h http.Header) http.Header {
	out := h.Clone()
	for _, value := range h.Values("Connection") {
		for name := range strings.SplitSeq(value, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range aboutMessage {
		out.Del(name)
	}
	dropOurs(out)
	return out
}

// via returns what this proxy adds to Via.
func (p *Proxy) via() string { return "1.1 " + p.name }

// looped reports whether a request has been here before.
func (p *Proxy) looped(req *http.Request) bool {
	for _, value := range req.Header.Values("Via") {
		if strings.Contains(value, p.name) {
			return true
		}
	}
	return false
}
