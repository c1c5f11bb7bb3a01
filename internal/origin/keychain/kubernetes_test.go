package keychain

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
)

func (s *apiServer) authority() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// kubeconfigFor returns a kubeconfig for the server, with lines of a user.
func (s *apiServer) kubeconfig(user string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Config
current-context: here
clusters:
- name: other
  cluster: {server: "https://192.0.2.1"}
- name: test
  cluster:
    server: %s
    certificate-authority-data: %s
    extensions: [{name: x, extension: {a: 1}}]
contexts:
- {name: here, context: {cluster: test, user: node, namespace: x}}
users:
- name: node
  user: %s
`, s.URL, base64.StdEncoding.EncodeToString(s.authority()), user)
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// running is a Kubernetes that runs until the test ends.
type running struct {
	*Kubernetes
	t       *testing.T
	changes chan struct{}
	text    func() string
}

func run(t *testing.T, kubeconfig string) *running {
	t.Helper()
	logger, text := testLog(t)
	k, err := NewKubernetes(KubernetesConfig{Kubeconfig: kubeconfig, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{k, t, make(chan struct{}, 1), text}
	k.minPause, k.maxPause = time.Millisecond, 20*time.Millisecond
	k.changed = func() {
		select {
		case r.changes <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return r
}

// becomes waits until the repository's credential has the user; empty is none.
func (r *running) becomes(repository, user string) {
	r.t.Helper()
	limit := time.After(time.Minute)
	for {
		c, err := r.Credential(r.t.Context(), repository)
		if err != nil {
			r.t.Fatal(err)
		}
		if c.Username == user {
			return
		}
		select {
		case <-r.changes:
		case <-limit:
			r.t.Fatalf("user for %s is %q, want %q; log:\n%s", repository, c.Username, user, r.text())
		}
	}
}

func TestKubernetesFollows(t *testing.T) {
	s := newAPIServer(t)
	s.do(func() { s.token, s.maxPage = secretWord, 2 })
	for i := range 7 {
		s.putConfig("default", fmt.Sprint("s", i), "", fmt.Sprintf("r%d.example", i))
	}
	r := run(t, writeFile(t, filepath.Join(t.TempDir(), "config"), s.kubeconfig("{token: "+secretWord+"}")))
	for i := range 7 {
		r.becomes(fmt.Sprintf("r%d.example/app", i), fmt.Sprintf("r%d.example", i))
	}
	if lists, _ := s.counts(); lists != 4 {
		t.Errorf("%d pages for 7 secrets by 2", lists)
	}
	s.putConfig("default", "new", "", "new.example/team")
	r.becomes("new.example/team/app", "new.example/team")
	s.putConfig("default", "new", "", "*.example")
	r.becomes("new.example/team/app", "*.example")
	s.raw(fmt.Sprintf(`{"type":"BOOKMARK","object":{"kind":"Secret","metadata":{"resourceVersion":"%d","creationTimestamp":null}}}`, 1000))
	s.remove("default", "new")
	r.becomes("new.example/team/app", "")
	r.becomes("r3.example/app", "r3.example")
	if strings.Contains(r.text(), "level=WARN") {
		t.Errorf("warnings without a failure:\n%s", r.text())
	}
}

func TestKubernetesOrder(t *testing.T) {
	s := newAPIServer(t)
	s.putConfig("a", "old", "2026-01-01T00:00:00Z", "r.example")
	s.put("a", "young", "2026-02-01T00:00:00Z", fmt.Sprintf(`{%q: %q}`, configKey,
		base64.StdEncoding.EncodeToString([]byte(`{"auths":{"r.example":{"username":"young","password":"hunter2"}}}`))))
	s.put("a", "unreadable", "not a time", `{".dockerconfigjson": 12345}`)
	s.put("a", "broken", "", fmt.Sprintf(`{%q: %q}`, configKey, base64.StdEncoding.EncodeToString([]byte(`{"auths": "hunter2`))))
	s.put("a", "empty", "", `{}`)
	r := run(t, writeFile(t, filepath.Join(t.TempDir(), "config"), s.kubeconfig("{}")))
	r.becomes("r.example/app", "young")
	for _, name := range []string{"unreadable", "broken", "empty"} {
		if !strings.Contains(r.text(), "secret="+name) {
			t.Errorf("log does not name secret %s:\n%s", name, r.text())
		}
	}
	s.remove("a", "young")
	r.becomes("r.example/app", "r.example")
}

// TestKubernetesLosesTouch breaks the conversation in all ways, changes a
// secret meanwhile, and wants it to be known afterwards.
func TestKubernetesLosesTouch(t *testing.T) {
	for _, c := range []struct {
		name   string
		lists  bool // it takes a new list to recover
		before func(s *apiServer)
		after  func(s *apiServer)
	}{
		{"connection cut", false, (*apiServer).cutWatches, func(*apiServer) {}},
		{"changes forgotten", true, func(s *apiServer) {
			s.do(func() { s.refuse = http.StatusServiceUnavailable })
			s.cutWatches()
		}, func(s *apiServer) {
			s.compact()
			s.do(func() { s.refuse = 0 })
		}},
		{"changes forgotten, said in the stream", true, func(s *apiServer) {
			s.do(func() { s.refuse, s.lateGone = http.StatusInternalServerError, true })
			s.cutWatches()
		}, func(s *apiServer) {
			s.compact()
			s.do(func() { s.refuse = 0 })
		}},
		{"list expires between pages", true, func(s *apiServer) {
			s.do(func() { s.maxPage, s.expire, s.refuse = 1, 2, http.StatusForbidden })
			s.cutWatches()
		}, func(s *apiServer) {
			s.compact()
			s.do(func() { s.refuse = 0 })
		}},
		{"event that is none", true, func(s *apiServer) { s.raw(`{"type":"ADDED","object":{"metadata":"` + secretWord + `"}}`) }, func(*apiServer) {}},
		{"event that is no JSON", false, func(s *apiServer) { s.raw(`hunter2`) }, func(*apiServer) {}},
		{"event too large to be believed", false, func(s *apiServer) {
			s.raw(`{"type":"DELETED","object":{"metadata":{"namespace":"a","name":"y","resourceVersion":"101"}},"x":"` + strings.Repeat("x", maxEvent) + `"}`)
		}, func(*apiServer) {}},
		{"server away", false, func(s *apiServer) {
			s.do(func() { s.refuse = http.StatusTooManyRequests })
			s.CloseClientConnections()
		}, func(s *apiServer) { s.do(func() { s.refuse = 0 }) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newAPIServer(t)
			s.putConfig("a", "x", "", "before.example")
			s.putConfig("a", "y", "", "stays.example")
			r := run(t, writeFile(t, filepath.Join(t.TempDir(), "config"), s.kubeconfig("{}")))
			r.becomes("before.example/app", "before.example")
			// The watch has to be there before it can be broken.
			s.putConfig("a", "z", "", "watched.example")
			r.becomes("watched.example/app", "watched.example")

			lists, _ := s.counts()
			c.before(s)
			wantCredential(t, r, "stays.example/app", origin.Credential{Username: "stays.example", Password: secretWord})
			s.putConfig("a", "x", "", "after.example")
			c.after(s)
			r.becomes("after.example/app", "after.example")
			r.becomes("before.example/app", "")
			r.becomes("stays.example/app", "stays.example")
			if again, _ := s.counts(); c.lists && again == lists {
				t.Error("no new list was asked for")
			}
		})
	}
}

func TestKubernetesTokenIsReplaced(t *testing.T) {
	s := newAPIServer(t)
	dir := t.TempDir()
	s.do(func() { s.token = secretWord + "-1" })
	writeFile(t, filepath.Join(dir, "token"), secretWord+"-1\n")
	s.putConfig("a", "x", "", "r.example")
	r := run(t, writeFile(t, filepath.Join(dir, "config"), s.kubeconfig("{tokenFile: token, token: fallback}")))
	r.becomes("r.example/app", "r.example")
	s.do(func() { s.token = secretWord + "-2" })
	s.cutWatches()
	s.putConfig("a", "y", "", "s.example")
	writeFile(t, filepath.Join(dir, "token"), secretWord+"-2\n")
	r.becomes("s.example/app", "s.example")
}

// TestKubernetesLateKubeconfig starts before the kubelet has written the file.
func TestKubernetesLateKubeconfig(t *testing.T) {
	s := newAPIServer(t)
	s.putConfig("a", "x", "", "r.example")
	path := filepath.Join(t.TempDir(), "config")
	r := run(t, path)
	wantCredential(t, r, "r.example/app", origin.Credential{})
	writeFile(t, path, s.kubeconfig("{}"))
	r.becomes("r.example/app", "r.example")
}

func TestKubernetesNeverRun(t *testing.T) {
	k, err := NewKubernetes(KubernetesConfig{Kubeconfig: filepath.Join(t.TempDir(), "none"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Credential(ctx, "r.example/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("credential for who went away: %v", err)
	}
}

func TestPodAccess(t *testing.T) {
	s := newAPIServer(t)
	s.do(func() { s.token = secretWord })
	s.putConfig("a", "x", "", "r.example")
	dir := t.TempDir()
	host, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "https://"), ":")
	env := map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
	getenv := func(name string) string { return env[name] }
	if _, err := podAccess(getenv, dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pod without service account: %v", err)
	}
	writeFile(t, filepath.Join(dir, "ca.crt"), string(s.authority()))
	writeFile(t, filepath.Join(dir, "token"), secretWord)
	a, err := podAccess(getenv, dir)
	if err != nil {
		t.Fatal(err)
	}
	k := &Kubernetes{
		logger: slog.New(slog.DiscardHandler), connect: func() (*apiAccess, error) { return a, nil },
		changed: func() {}, tried: make(chan struct{}), secrets: make(map[secretName]secret),
	}
	session := session{keychain: k}
	defer session.close()
	if _, err := session.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := k.find("r.example/a"); c.Username != "r.example" {
		t.Errorf("credential %v", c)
	}
	if _, err := podAccess(func(string) string { return "" }, dir); !errors.Is(err, blob.Invalid) {
		t.Errorf("not in a pod: %v", err)
	}
}

func TestStatusErrors(t *testing.T) {
	for code, want := range map[int]error{401: blob.Unauthorized, 403: blob.Forbidden, 410: errGone, 429: blob.Unavailable, 500: blob.Unavailable, 302: blob.Unavailable} {
		if err := statusError("list", code); !errors.Is(err, want) {
			t.Errorf("%d: %v", code, err)
		}
	}
}

func FuzzWatchEvent(f *testing.F) {
	for _, s := range []string{
		`{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"5"},"type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"e30="}}}`,
		`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"5","creationTimestamp":null}}}`,
		`{"type":"ERROR","object":{"code":410}}`, `{"type":"ERROR","object":{"reason":"Expired"}}`,
		`{"type":"DELETED","object":null}`, `{}`, `[`, `{"type":"MODIFIED","object":{"metadata":{"resourceVersion":5}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parseEvent(raw)
		if err == nil && (e.version == "" || e.kind == "" || e.kind == "ERROR") {
			t.Errorf("event %+v", e)
		}
		if err == nil {
			// What it holds is read, or refused, and nothing worse.
			if _, s, err := e.object.read(); err != nil && len(s.entries) > 0 {
				t.Error("entries and an error")
			}
		}
	})
}
