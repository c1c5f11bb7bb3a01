package web

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

type headerKey struct{}

// WithHeader returns a context whose Resolve and Open calls, and the reads of
// what they open, send h along. It must have passed CheckHeader and not change
// afterwards.
func WithHeader(ctx context.Context, h http.Header) context.Context {
	return context.WithValue(ctx, headerKey{}, h)
}

func headerOf(ctx context.Context) http.Header {
	h, _ := ctx.Value(headerKey{}).(http.Header)
	return h
}

// ours are the headers that we set, or that are about a connection.
var ours = []string{
	"Accept-Encoding", "Connection", "Content-Length", "Expect", "Host", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
	"If-Unmodified-Since", "Keep-Alive", "Proxy-Connection", "Range", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// harmless are the headers that go along to other hosts.
var harmless = []string{"Accept", "Accept-Encoding", "Accept-Language", "Range", "User-Agent"}

// ParseHeader reads a header as people write it, "Name: value", and adds it to
// h. Errors: Invalid, without quoting the value.
func ParseHeader(h http.Header, line string) error {
	key, value, ok := strings.Cut(line, ":")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !ok || key == "" {
		return blob.Errorf(blob.Invalid, "read header: it is not like \"Name: value\"")
	}
	h.Add(key, value)
	return CheckHeader(h)
}

// CheckHeader reports, as an Invalid error, what cannot be sent along: names
// or values that are malformed, and headers that requests have anyway.
func CheckHeader(h http.Header) error {
	for key, values := range h {
		if strings.ContainsFunc(key, func(r rune) bool { return !isToken(r) }) {
			return blob.Errorf(blob.Invalid, "read header: %.40q is not a name", key)
		}
		if slices.Contains(ours, http.CanonicalHeaderKey(key)) {
			return blob.Errorf(blob.Invalid, "read header %s: it cannot be chosen", key)
		}
		for _, value := range values {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return blob.Errorf(blob.Invalid, "read header %s: its value has control characters", key)
			}
		}
	}
	return nil
}

// isToken reports whether a header's name may have r (RFC 9110, section 5.6.2).
func isToken(r rune) bool {
	return r > ' ' && r < 0x7f && !strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
}

// get makes one request for a file, or a range of it where that is not empty,
// and goes where it is redirected to.
func (s *Source) get(ctx context.Context, u *url.URL, header http.Header, ranges string) (*http.Response, error) {
	req := exchange.NewRequest(ctx, http.MethodGet, u, header)
	req.Header.Set("Accept-Encoding", "identity")
	if ranges != "" {
		req.Header.Set("Range", ranges)
	}
	resp, err := s.x.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return s.x.Follow(resp, keepHarmless)
}

// keepHarmless takes out of a header what is not for other hosts.
func keepHarmless(h http.Header) {
	for key := range h {
		if !slices.Contains(harmless, key) {
			h.Del(key)
		}
	}
}

// failed returns the failure that an answer is. It closes it.
func failed(resp *http.Response) error {
	f := exchange.StatusFailure(resp, time.Now())
	if blob.KindOf(f) == blob.Unauthorized {
		f.Err = blob.Errorf(blob.Unauthorized, "%w; send credentials in a header", f.Err)
	}
	return f
}

// explain says what was being done when err happened.
func explain(err error, format string, args ...any) error {
	return blob.Errorf(blob.KindOf(err), format+": %w", append(args, err)...)
}

func formatSize(n int64) string { return strconv.FormatInt(n, 10) }
