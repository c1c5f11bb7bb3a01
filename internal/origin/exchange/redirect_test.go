package exchange

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

// redirecting answers every request to one host with a redirect.
type redirecting struct{ host, to string }

func (r redirecting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: req}
	if req.URL.Host == r.host {
		resp.StatusCode = http.StatusFound
		resp.Header.Set("Location", r.to)
	}
	return resp, nil
}

// Servers that anybody may name cannot send us to ourselves; those on this
// machine, and all others if that is not asked for, can.
func TestNoWayBack(t *testing.T) {
	for _, c := range []struct {
		from, to  string
		noWayBack bool
		refused   bool
	}{
		{"files.example", "http://127.0.0.1:2375/", true, true},
		{"files.example", "http://[::1]/", true, true},
		{"files.example", "http://localhost:80/", true, true},
		{"files.example", "http://cdn.example/", true, false},
		{"127.0.0.1:80", "http://127.0.0.1:81/", true, false},
		{"files.example", "http://127.0.0.1:2375/", false, false},
	} {
		client, err := New(Config{Transport: redirecting{c.from, c.to}, NoWayBack: c.noWayBack, Retries: -1}, new(Stats))
		if err != nil {
			t.Fatal(err)
		}
		u := &url.URL{Scheme: "http", Host: c.from, Path: "/"}
		resp, err := client.RoundTrip(NewRequest(t.Context(), http.MethodGet, u, nil))
		if err == nil {
			resp, err = client.Follow(resp, func(http.Header) {})
		}
		if err == nil {
			resp.Body.Close()
		}
		if got := blob.KindOf(err) == blob.Forbidden; got != c.refused || err != nil != c.refused {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
	}
}
