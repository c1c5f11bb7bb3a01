package mirror

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
	"skimmer/internal/store"
	"skimmer/internal/testkit"
)

// world is a mirror over a store over an origin, behind a real server.
type world struct {
	*Mirror
	url    string
	client *http.Client
	origin *origin.Origin
	store  *store.Store
}

func newWorld(t *testing.T, reg *testkit.Registry, change func(*Config)) *world {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	o, err := origin.New(origin.Config{Keychain: nobody{t}, Retries: -1, Backoff: time.Nanosecond, MaxBackoff: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(store.Config{Dir: t.TempDir(), PieceSize: 16 << 10, RandomRun: -1})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{origin: o, store: st, client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	cfg := Config{Source: st.Through(o), Origin: o, Dir: t.TempDir(), Logger: logger}
	if reg != nil {
		cfg.Upstream = reg.URL()
	}
	if change != nil {
		change(&cfg)
	}
	if w.Mirror, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.Mirror)
	w.url = srv.URL
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		srv.Close()
		if err := w.Mirror.Close(); err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		_ = o.Close()
	})
	return w
}

// nobody is the node's keychain, which must not be asked for others.
type nobody struct{ t *testing.T }

func (n nobody) Credential(ctx context.Context, repository string) (origin.Credential, error) {
	n.t.Errorf("the node's own credentials were asked for %s", repository)
	return origin.Credential{}, blob.Errorf(blob.Unauthorized, "not for clients")
}

// token fetches a token to pull from a repository, as anybody or as a user
// with password "secret".
func token(t *testing.T, reg *testkit.Registry, repo, user string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, reg.URL()+"/token?"+url.Values{"scope": {"repository:" + repo + ":pull"}}.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, "secret")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil || doc.Token == "" {
		t.Fatalf("no token: %s, %v", resp.Status, err)
	}
	return doc.Token
}
