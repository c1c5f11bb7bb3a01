package mirror

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// hopByHop are the fields that are about one connection (RFC 9110, section
// 7.6.1), and those that proxies and mirrors are told by.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// notAsked are the further fields of a request that do not go along: those
// that are ours to set, and Accept-Encoding, because bytes are compared with
// digests.
var notAsked = []string{"Accept-Encoding", "Authorization", "Content-Length", "Cookie", "Expect", "Host", "Via"}

// notTold are the further fields of an answer that do not come along: they
// speak of the upstream's host, and the client talks to this one.
var notTold = []string{"Alt-Svc", "Set-Cookie", "Strict-Transport-Security"}

// conditional are the fields that make a request depend on what is held.
var conditional = []string{"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since"}

// crossing is what goes along to another host than the upstream.
var crossing = []string{"Accept", "If-Range", "Range", "User-Agent"}

// endToEnd returns a copy of h without fields about the connection, without
// those in drop, and without what was for the mirror.
func endToEnd(h http.Header, drop []string) http.Header {
	var named []string // by Connection
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			named = append(named, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	out := make(http.Header, len(h))
	for key, values := range h {
		if !slices.Contains(hopByHop, key) && !slices.Contains(drop, key) && !slices.Contains(named, key) && !strings.HasPrefix(key, "X-Dragonfly-") {
			out[key] = slices.Clone(values)
		}
	}
	return out
}

// containsToken reports whether a comma-separated list has an element.
func containsToken(list, element string) bool {
	for one := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(one) == element {
			return true
		}
	}
	return false
}

// send asks the upstream for the request's target, with the client's
// authorization, and goes where it redirects to, without. The caller closes
// the answer's body.
func (r *request) send(ctx context.Context, method string, header http.Header, query string) (*http.Response, error) {
	x := r.m.cfg.Origin.Web()
	out := exchange.NewRequest(ctx, method, r.to.url(r.target.path, query), header)
	if r.authorization != "" {
		out.Header.Set("Authorization", r.authorization)
	}
	for _, via := range r.req.Header.Values("Via") {
		out.Header.Add("Via", via)
	}
	out.Header.Add("Via", r.m.via)
	resp, err := x.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	return x.Follow(resp, func(h http.Header) {
		for key := range h {
			if !slices.Contains(crossing, key) {
				delete(h, key)
			}
		}
	})
}

// query returns the request's query as it goes upstream.
func (r *request) query() string {
	raw := r.req.URL.RawQuery
	if q := r.req.URL.Query(); q.Has(parameterNS) {
		q.Del(parameterNS)
		return q.Encode()
	}
	return raw
}

// pass passes the request on as it is, and the answer back. A whole body that
// has a digest is held against it.
func (r *request) pass(verify digest.Digest) error {
	return r.passWith(endToEnd(r.req.Header, notAsked), verify)
}

func (r *request) passWith(header http.Header, verify digest.Digest) error {
	r.m.stats.Passed.Add(1)
	resp, err := r.send(r.req.Context(), r.req.Method, header, r.query())
	if err != nil {
		return err
	}
	r.learn(resp)
	r.addTotal(resp)
	return r.relay(resp, verify)
}

// passTo passes the request on to the registry at base, which the node does not
// read because of an error. Nothing that is here is served, and nothing is
// learned of who may read what: somebody else may have answered for the
// registry.
func (r *request) passTo(base *url.URL, because error) error {
	r.m.stats.Passed.Add(1)
	r.m.log.Info("a request is passed on past the node", "upstream", base.Host, "path", r.target.String(), "error", because)
	r.to = upstream{scheme: base.Scheme, host: base.Host, name: r.target.name}
	resp, err := r.send(r.req.Context(), r.req.Method, endToEnd(r.req.Header, notAsked), r.query())
	if err != nil {
		return err
	}
	return r.relay(resp, r.target.digest)
}

// addTotal completes the Content-Range of an upstream that does not say how
// long the whole is: clients take it for no answer.
func (r *request) addTotal(resp *http.Response) {
	c, err := exchange.ParseContentRange(resp.Header.Get("Content-Range"))
	m, ok := r.m.access.members.get(item{r.to.repo(), r.target.what, r.target.digest})
	if err == nil && ok && c.Total == blob.SizeUnknown && m.size >= c.Range.End() {
		resp.Header.Set("Content-Range", "bytes "+c.Range.String()+"/"+strconv.FormatInt(m.size, 10))
	}
}

// learn remembers what an answer says of the client's access.
func (r *request) learn(resp *http.Response) {
	if r.target.digest == "" {
		return
	}
	who, i := reader{r.to.repo(), r.who}, item{r.to.repo(), r.target.what, r.target.digest}
	if size, ok := sizeIn(resp); ok {
		r.m.access.accepted(who, i, size)
	} else {
		r.m.access.refused(who, i, resp.StatusCode)
	}
}

// tell sets the header of an answer of the upstream.
func (r *request) tell(from http.Header) {
	h := r.w.Header()
	for key, values := range endToEnd(from, notTold) {
		h[key] = values
	}
	if links := from.Values("Link"); len(links) > 0 {
		h["Link"] = nil
		for _, link := range links {
			h.Add("Link", r.link(link))
		}
	}
}

// relay passes an answer on, and closes it. An error after its begin has to
// break the connection.
func (r *request) relay(resp *http.Response, verify digest.Digest) error {
	defer resp.Body.Close()
	r.tell(resp.Header)
	if resp.ContentLength >= 0 {
		r.w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	if r.req.Method == http.MethodHead {
		r.w.WriteHeader(resp.StatusCode)
		return nil
	}
	encoding := resp.Header.Get("Content-Encoding")
	if verify == "" || resp.StatusCode != http.StatusOK || encoding != "" && encoding != "identity" {
		verify = ""
	}
	return r.body(resp.StatusCode, resp.Body, verify)
}

// relayBuffer is how many bytes are passed on at once.
const relayBuffer = 64 << 10

// body sends a body. If it has to have a digest, its last byte waits until the
// others are there and it has.
func (r *request) body(status int, from io.Reader, verify digest.Digest) error {
	var check digest.Verifier
	if verify != "" {
		check = verify.Verifier()
	}
	buf := make([]byte, relayBuffer)
	held := 0 // bytes at the beginning of buf that wait
	for {
		n, err := from.Read(buf[held:])
		if check != nil {
			_, _ = check.Write(buf[held : held+n]) // a hash does not fail
		}
		n += held
		end := err == io.EOF
		if end && check != nil && !check.Verified() {
			err = blob.Errorf(blob.Corrupt, "GET %s: what came does not have digest %v", r.to.host, verify)
			end = false
		}
		held = 0
		if !end && check != nil && n > 0 {
			held = 1
		}
		if n > held || end {
			if r.w.status == 0 {
				r.w.WriteHeader(status)
			}
			if _, err := r.w.Write(buf[:n-held]); err != nil {
				return blob.Errorf(blob.Canceled, "send bytes to the client: %w", err)
			}
		}
		if end {
			return nil
		}
		if err != nil {
			return err
		}
		copy(buf, buf[n-held:n])
	}
}

// link writes a Link field so that who follows it comes here again: pages of
// lists are named relative to the upstream, by it or by its host.
func (r *request) link(value string) string {
	before, rest, ok := strings.Cut(value, "<")
	where, after, ok2 := strings.Cut(rest, ">")
	if !ok || !ok2 || strings.TrimSpace(before) != "" {
		return value
	}
	u, err := r.to.url(r.target.path, "").Parse(where)
	if err != nil || u.Host != r.to.host || u.Scheme != r.to.scheme {
		return value
	}
	u = &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	if ns := r.req.URL.Query().Get(parameterNS); ns != "" {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += url.Values{parameterNS: {ns}}.Encode()
	}
	return "<" + u.String() + ">" + after
}
