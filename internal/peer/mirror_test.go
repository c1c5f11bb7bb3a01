package peer

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
)

// What anybody may name does not lead the node to itself, or to what only its
// own network should reach.
func TestGuardedDials(t *testing.T) {
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"x"`) }))
	t.Cleanup(inside.Close)
	u, err := url.Parse(inside.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url    string
		allow  []string
		refuse bool
	}{
		"asked for":   {url: inside.URL},
		"allowed":     {url: "http://0.0.0.0:" + u.Port(), allow: []string{"0.0.0.0"}},
		"metadata":    {url: "http://169.254.169.254/latest", refuse: true},
		"link-local":  {url: "http://[fe80::1%25lo]/", refuse: true},
		"unspecified": {url: "http://0.0.0.0:" + u.Port(), refuse: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Origin: origin.Config{Retries: -1, Insecure: c.allow}}
			if err := cfg.guardDials(); err != nil {
				t.Fatal(err)
			}
			o, err := origin.New(cfg.Origin)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			_, _, _, err = NewFiles(o, t.TempDir(), slog.New(slog.DiscardHandler)).Find(t.Context(), FileName{URL: c.url})
			if refused := blob.KindOf(err) == blob.Forbidden; err != nil != c.refuse || refused != c.refuse {
				t.Errorf("%s: %v", c.url, err)
			}
		})
	}
	// A registry may be on this machine, but not where machines are told who
	// they are.
	cfg := Config{}
	if err := cfg.guardDials(); err != nil {
		t.Fatal(err)
	}
	if conn, err := cfg.Origin.Dial(t.Context(), "tcp", u.Host); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if _, err := cfg.Origin.Dial(t.Context(), "tcp", "169.254.169.254:80"); blob.KindOf(err) != blob.Forbidden {
		t.Errorf("a registry at a metadata address: %v", err)
	}
}
