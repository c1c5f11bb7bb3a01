//go:build e2e

package docker

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"skimmer/internal/testkit"
)

const password = "correct-horse-battery-staple"

// Docker pulls by the mirror in daemon.json from what plays Docker Hub: with
// tokens, and storage that blobs are redirected to. Each byte leaves it once,
// and who may not read an image gets nothing of it.
func TestMirror(t *testing.T) {
	hub := testkit.NewRegistry(t, testkit.Options{
		Auth: testkit.TokenAuth, Users: map[string]string{"u": password}, Private: []string{"u/private"}, Redirect: true,
	})
	// docker goes to the real Docker Hub when a mirror fails, by this proxy.
	var wentPast atomic.Int64
	past := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wentPast.Add(1)
		http.Error(w, "this test stays on this machine", http.StatusForbidden)
	}))
	defer past.Close()
	n := newNode(t, fmt.Sprintf("proxy: {server: {port: PORT}, registryMirror: {addr: %q}}", hub.URL()))
	n.startDocker(map[string]any{"registry-mirrors": []string{n.url()}}, "HTTPS_PROXY="+past.URL)
	for _, c := range []struct{ repo, name, user string }{
		{"library/public", "public", ""}, {"u/private", "u/private", "u:" + password},
	} {
		im := newImage(t, c.repo)
		im.add(hub, c.repo)
		refused := wentPast.Load()
		pull := func(user string) error {
			_, err := n.docker(user, "pull", "--quiet", c.name+":v1")
			return err
		}
		if c.user != "" && pull("") == nil {
			t.Errorf("an anonymous pull of %s succeeded", c.repo)
		}
		if c.user != "" && wentPast.Load() == refused {
			t.Error("docker did not try Docker Hub itself, so a pull past the mirror would not be seen")
		}
		refused = wentPast.Load()
		for range 2 { // the second time from this node
			if err := pull(c.user); err != nil {
				t.Fatal(err)
			}
			im.expectSent(t, hub.Stats().Bytes, 1)
			if got, want := n.mustDocker("run", "--rm", "--network=none", c.name+":v1", "/tool", "sha", dataFile), im.sum+" "+dataFile; got != want {
				t.Errorf("run %s: it says %q, want %q", c.name, got, want)
			}
			n.mustDocker("rmi", c.name+":v1")
		}
		if got := wentPast.Load() - refused; got != 0 {
			t.Errorf("%d requests of good pulls went past the mirror", got)
		}
		if c.user != "" && (pull("") == nil || pull("u:wrong") == nil) {
			t.Errorf("%s was pulled without its password, because it is here", c.repo)
		}
	}
	if hub.Tokens() == nil {
		t.Error("the registry has given out no token")
	}
	log := n.log("peer")
	for _, secret := range append(hub.Tokens(), password, "Bearer ") {
		if strings.Contains(log, secret) {
			t.Error("a token, or the password, is in the peer's log")
		}
	}
}
