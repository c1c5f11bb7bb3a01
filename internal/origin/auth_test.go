package origin

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

func TestAuthentication(t *testing.T) {
	users := map[string]string{alice.Username: alice.Password}
	wrong := Credential{Username: "alice", Password: secret + "!"}
	identity := map[string]string{"identity-" + secret: "alice"}
	for _, c := range []struct {
		name   string
		auth   testkit.Auth
		repo   string
		cred   Credential
		tokens int
		want   error
		text   string
	}{
		{"nobody asks", testkit.NoAuth, "public", alice, 0, nil, ""},
		{"anonymous token", testkit.TokenAuth, "public", Credential{}, 1, nil, ""},
		{"anonymous, private", testkit.TokenAuth, "private", Credential{}, 1, blob.Unauthorized, "authentication required (UNAUTHORIZED)"},
		{"user, private", testkit.TokenAuth, "private", alice, 1, nil, ""},
		{"wrong password", testkit.TokenAuth, "private", wrong, 1, blob.Unauthorized, "fetch a token for "},
		{"identity token", testkit.TokenAuth, "private", Credential{IdentityToken: "identity-" + secret}, 1, nil, ""},
		{"unknown identity token", testkit.TokenAuth, "private", Credential{IdentityToken: secret}, 1, blob.Unauthorized, "as identity token"},
		{"unknown registry token", testkit.TokenAuth, "private", Credential{RegistryToken: secret}, 0, blob.Unauthorized, "authentication required"},
		{"basic", testkit.BasicAuth, "private", alice, 0, nil, ""},
		{"basic, wrong password", testkit.BasicAuth, "private", wrong, 0, blob.Unauthorized, "401 Unauthorized"},
		{"basic, anonymous", testkit.BasicAuth, "private", Credential{}, 0, blob.Unauthorized, "asks for a user and password, and there are none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := testkit.NewRegistry(t, testkit.Options{Auth: c.auth, Users: users, IdentityTokens: identity, Private: []string{"private"}})
			content := blobtest.Bytes(1, 100)
			ref := reg.AddBlob(c.repo, content)
			for _, how := range []string{"keychain", "context"} {
				reg.ResetStats()
				o := newOrigin(t, func(cfg *Config) { cfg.Keychain = keys(c.cred) })
				ctx := t.Context()
				if how == "context" {
					o = newOrigin(t, func(cfg *Config) { cfg.Keychain = keys{Username: "not", Password: "asked"} })
					ctx = WithCredential(ctx, c.cred)
				}
				b, err := o.Open(ctx, ref)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 100)
				err = blob.ReadFull(t.Context(), b, got, 0)
				if c.want != nil {
					got = nil
				}
				text := c.text
				if err != nil {
					text = `; log in with "docker login ` + reg.Host() + `"`
					if !strings.Contains(err.Error(), c.text) {
						t.Errorf("error does not say %q: %v", c.text, err)
					}
				}
				outcome{got, err, c.want, text}.check(t, ref, content)
				if n := reg.Stats().Requests[testkit.Token]; n != c.tokens {
					t.Errorf("%s: %d requests to the token service, want %d", how, n, c.tokens)
				}
			}
		})
	}
}

// virtual runs f in virtual time, with a registry and an origin on it that
// meet without a network.
func virtual(t *testing.T, opts testkit.Options, f func(t *testing.T, reg *testkit.Registry, o *Origin)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		opts.Offline = true
		reg := testkit.NewRegistry(t, opts)
		o := newOrigin(t, func(cfg *Config) {
			cfg.Keychain = keys(alice)
			cfg.Backoff, cfg.MaxBackoff = 0, 0
			cfg.transport = reg.Transport()
		})
		f(t, reg, o)
	})
}

var tokenAuth = testkit.Options{Auth: testkit.TokenAuth, Users: map[string]string{"alice": secret}, Private: []string{"some/repo"}}

func TestTokenIsFetchedOnceAndRenewedAhead(t *testing.T) {
	opts := tokenAuth
	opts.Latency = time.Second // so that all are refused before any has a token
	virtual(t, opts, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		var refs []blob.Ref
		for i := range 8 {
			refs = append(refs, reg.AddBlob("some/repo", blobtest.Bytes(uint64(i), 100)))
		}
		var wg sync.WaitGroup
		for _, ref := range refs {
			wg.Go(func() {
				if _, err := read(t, o, ref, blob.Range{Len: 100}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := reg.Stats().Requests[testkit.Token]; n != 1 {
			t.Errorf("8 blobs at once took %d tokens, want 1", n)
		}
		// The token lives 5 minutes. Until four fifths of that it is used, then
		// renewed before the registry has to refuse it.
		before := reg.Stats().Unauthorized
		for _, step := range []struct {
			after time.Duration
			want  int
		}{{3*time.Minute + 50*time.Second, 1}, {20 * time.Second, 2}, {time.Hour, 3}} {
			<-time.After(step.after)
			if _, err := read(t, o, refs[0], blob.Range{Len: 5}); err != nil {
				t.Fatal(err)
			}
			if n := reg.Stats().Requests[testkit.Token]; n != step.want {
				t.Errorf("%v later: %d tokens, want %d", step.after, n, step.want)
			}
		}
		if n := reg.Stats().Unauthorized - before; n != 0 {
			t.Errorf("the registry had to refuse %d expired tokens", n)
		}
	})
}

func TestTokenServiceFailsWhileTokenLasts(t *testing.T) {
	virtual(t, tokenAuth, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
		if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
			t.Fatal(err)
		}
		reg.Inject(testkit.Fault{On: testkit.Token, Do: testkit.Status, Status: 503})
		<-time.After(4*time.Minute + 10*time.Second)
		if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
			t.Errorf("read with a token that lasts: %v", err)
		}
		<-time.After(time.Minute)
		_, err := read(t, o, ref, blob.Range{Len: 5})
		if blob.KindOf(err) != blob.Unavailable || !strings.Contains(err.Error(), "503 Service Unavailable") {
			t.Errorf("read with an expired token: %v, want what the token service said", err)
		}
		// Its failures are not multiplied by those who wait for it.
		if n := reg.Stats().Requests[testkit.Token]; n != 1+5+5 {
			t.Errorf("%d requests to the token service, want 11", n)
		}
	})
}

func TestTokenServiceForbids(t *testing.T) {
	virtual(t, tokenAuth, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
		reg.Inject(testkit.Fault{On: testkit.Token, Do: testkit.Status, Status: 403})
		for cred, want := range map[Credential]blob.Kind{{}: blob.Unauthorized, alice: blob.Forbidden} {
			_, err := o.Open(WithCredential(t.Context(), cred), blob.Ref{Digest: ref.Digest, Size: blob.SizeUnknown, Repository: ref.Repository})
			if blob.KindOf(err) != want || !strings.Contains(err.Error(), "403 Forbidden") {
				t.Errorf("%v: %v, want kind %v", cred, err, want)
			}
		}
	})
}

func TestRevokedTokenCostsOneRefresh(t *testing.T) {
	virtual(t, tokenAuth, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
		for range 2 {
			if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
				t.Fatal(err)
			}
		}
		reg.ResetStats()
		reg.RevokeTokens()
		if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
			t.Fatal(err)
		}
		s := reg.Stats()
		if s.Unauthorized != 1 || s.Requests[testkit.Token] != 1 || s.Requests[testkit.BlobGet] != 2 {
			t.Errorf("unauthorized %d, requests %v; want one refusal, one token, one repetition", s.Unauthorized, s.Requests)
		}
	})
}

func TestTokenWaiterSurvivesCancelledLeader(t *testing.T) {
	virtual(t, tokenAuth, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
		reg.Inject(testkit.Fault{On: testkit.Token, Do: testkit.HangHeaders, Times: 1})
		b, err := o.Open(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := blob.ReadFull(ctx, b, make([]byte, 5), 0); blob.KindOf(err) != blob.Canceled {
				t.Errorf("cancelled leader: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if err := blob.ReadFull(t.Context(), b, make([]byte, 5), 0); err != nil {
				t.Errorf("waiter: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

func TestRetryAfterAndBackoffAreWaited(t *testing.T) {
	for _, c := range []struct {
		fault    testkit.Fault
		min, max time.Duration
	}{
		{testkit.Fault{Do: testkit.Status, Status: 429, RetryAfter: "7", Times: 2}, 14 * time.Second, 14 * time.Second},
		{testkit.Fault{Do: testkit.Status, Status: 503, RetryAfter: "Sat, 01 Jan 2000 00:00:30 GMT", Times: 1}, 30 * time.Second, 30 * time.Second},
		{testkit.Fault{Do: testkit.Status, Status: 503, Times: 4}, 1500 * time.Millisecond, 3 * time.Second},
		{testkit.Fault{Do: testkit.HangHeaders, Times: 1}, 30 * time.Second, 30*time.Second + 200*time.Millisecond},
	} {
		virtual(t, testkit.Options{}, func(t *testing.T, reg *testkit.Registry, o *Origin) {
			ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
			c.fault.On = testkit.BlobGet
			reg.Inject(c.fault)
			start := time.Now()
			if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
				t.Error(err)
			}
			// Virtual time is exact: these bounds are the contract, not a guess.
			if d := time.Since(start); d < c.min || d > c.max {
				t.Errorf("%+v: read took %v, want %v to %v", c.fault, d, c.min, c.max)
			}
		})
	}
}

func TestHangEndsWithinTheStatedTime(t *testing.T) {
	virtual(t, testkit.Options{}, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
		reg.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.HangHeaders})
		start := time.Now()
		_, err := read(t, o, ref, blob.Range{Len: 5})
		const limit = 5*(2*5+20)*time.Second + 4*10*time.Second // what the defaults come to
		if d := time.Since(start); blob.KindOf(err) != blob.Timeout || d > limit {
			t.Errorf("read ended after %v with %v, want timed out within %v", d, err, limit)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b, err := o.Open(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		_, err = b.ReadRange(ctx, blob.Range{Len: 5})
		if d := time.Since(start); blob.KindOf(err) != blob.Timeout || d != time.Second {
			t.Errorf("read with a deadline in 1s ended after %v with %v", d, err)
		}
	})
}

func TestSlowConsumerIsNotAnIdleServer(t *testing.T) {
	virtual(t, testkit.Options{}, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		content := blobtest.Bytes(1, 100_000)
		ref := reg.AddBlob("some/repo", content)
		b, err := o.Open(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := b.ReadRange(t.Context(), blob.Range{Len: 100_000})
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		got := make([]byte, 0, len(content))
		for len(got) < cap(got) {
			n, err := io.ReadFull(rc, got[len(got):len(got)+10_000])
			if err != nil {
				t.Fatal(err)
			}
			got = got[:len(got)+n]
			<-time.After(time.Hour)
		}
		if n := o.Stats().Requests.Load(); !bytes.Equal(got, content) || n != 1 {
			t.Errorf("%d requests, want 1 and the right bytes", n)
		}
	})
}

func TestRedirectIsRememberedUntilItExpires(t *testing.T) {
	virtual(t, testkit.Options{Redirect: true, URLTTL: time.Minute}, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
		for _, step := range []struct {
			after             time.Duration
			registry, storage int
		}{{0, 1, 1}, {49 * time.Second, 1, 2}, {2 * time.Second, 2, 3}, {20 * time.Second, 2, 4}, {time.Hour, 3, 5}} {
			<-time.After(step.after)
			if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
				t.Fatal(err)
			}
			s := reg.Stats()
			if s.Requests[testkit.BlobGet] != step.registry || s.Requests[testkit.StorageGet] != step.storage {
				t.Errorf("%v later: requests %v, want %d to the registry and %d to the storage server",
					step.after, s.Requests, step.registry, step.storage)
			}
		}
	})
}

func TestRefusedRedirectIsAskedForAgain(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 410} {
		opts := tokenAuth
		opts.Redirect = true
		virtual(t, opts, func(t *testing.T, reg *testkit.Registry, o *Origin) {
			content := blobtest.Bytes(1, 100)
			ref := reg.AddBlob("some/repo", content)
			for range 2 {
				if _, err := read(t, o, ref, blob.Range{Len: 5}); err != nil {
					t.Fatal(err)
				}
			}
			reg.Inject(testkit.Fault{On: testkit.StorageGet, Do: testkit.Status, Status: status, Times: 1})
			got, err := read(t, o, ref, blob.Range{Len: 100})
			outcome{got: got, err: err}.check(t, ref, content)
			s := reg.Stats()
			if s.Requests[testkit.BlobGet] != 1+2 || s.Leaks != 0 || s.Requests[testkit.Token] != 1 {
				t.Errorf("%d: requests %v, leaks %d; want the registry asked twice (and once without a token)", status, s.Requests, s.Leaks)
			}
		})
	}
}

func TestRevokedURLs(t *testing.T) {
	virtual(t, testkit.Options{Redirect: true}, func(t *testing.T, reg *testkit.Registry, o *Origin) {
		content := blobtest.Bytes(1, 100)
		ref := reg.AddBlob("some/repo", content)
		for range 3 {
			got, err := read(t, o, ref, blob.Range{Len: 100})
			outcome{got: got, err: err}.check(t, ref, content)
			reg.RevokeURLs()
		}
		// A storage server that refuses even a fresh URL is an error, which
		// names it and keeps the signature to itself.
		reg.Inject(testkit.Fault{On: testkit.StorageGet, Do: testkit.Status, Status: 403})
		_, err := read(t, o, ref, blob.Range{Len: 100})
		outcome{err: err, kind: blob.Forbidden, text: "GET " + reg.StorageHost() + ": 403 Forbidden"}.check(t, ref, content)
	})
}

// TestSecretsStayWithTheRegistry has a hostile registry redirect to another
// host, and to a token service in the clear.
func TestSecretsStayWithTheRegistry(t *testing.T) {
	var seen []string
	var mu sync.Mutex
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		seen = append(seen, fmt.Sprint(req.URL, req.Header))
		mu.Unlock()
		w.WriteHeader(http.StatusNotFound)
	}))
	defer thief.Close()
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, req, thief.URL+"/x?Signature="+secret, http.StatusTemporaryRedirect)
	}))
	defer hostile.Close()
	o := newOrigin(t, func(cfg *Config) { cfg.Keychain = keys(alice) })
	repo := strings.TrimPrefix(hostile.URL, "http://") + "/some/repo"
	ref := blob.Ref{Repository: repo, Size: 5, Digest: "sha256:" + blobDigest}
	_, err := read(t, o, ref, blob.Range{Len: 5})
	checkSecrets(t, fmt.Sprint(err))
	_, _, _, err = o.Manifest(t.Context(), repo, "latest")
	checkSecrets(t, fmt.Sprint(err))
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 2 {
		t.Errorf("the other host saw %d requests, want 2", len(seen))
	}
	for _, s := range seen {
		if strings.Contains(s, "Authorization") {
			t.Errorf("credentials went to another host: %s", s)
		}
	}

	a := authorizer{o: o, repo: repository{registry: "registry.example", host: "registry.example", path: "x"}}
	clear := challenge{"bearer", map[string]string{"realm": "http://auth.example/token"}}
	if _, err := a.realm(clear, alice); blob.KindOf(err) != blob.Unauthorized || !strings.Contains(err.Error(), "list that host as insecure") {
		t.Errorf("credentials over plain HTTP: %v, want a refusal", err)
	}
	if _, err := a.realm(clear, Credential{}); err != nil {
		t.Errorf("anonymous token over plain HTTP: %v", err)
	}
}

const blobDigest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestCredentialsDoNotPrint(t *testing.T) {
	for _, c := range []Credential{{Username: "u", Password: secret}, {IdentityToken: secret}, {RegistryToken: secret}, {Password: secret}} {
		checkSecrets(t, fmt.Sprintf("%v %+v %#v %s", c, c, c, c))
		checkSecrets(t, fmt.Sprintf("%v %+v", struct{ C Credential }{c}, &c))
	}
}

// TestDockerKeychain reads a docker configuration with a password and one
// with a credential helper.
func TestDockerKeychain(t *testing.T) {
	dir := t.TempDir()
	helper := "#!/bin/sh\nread host\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"helped\",\"Secret\":\"" + secret + "\"}' \"$host\"\n"
	config := `{"auths":{"registry.example:5000":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("alice:"+secret)) + `"},` +
		`"https://index.docker.io/v1/":{"identitytoken":"hub-` + secret + `"}},"credHelpers":{"helped.example":"skimmertest"}}`
	for name, text := range map[string]string{"config.json": config, "docker-credential-skimmertest": helper} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for repo, want := range map[string]Credential{
		"registry.example:5000/some/repo": alice,
		"docker.io/library/python":        {IdentityToken: "hub-" + secret},
		"helped.example/app":              {Username: "helped", Password: secret},
		"other.example/app":               {},
	} {
		got, err := DockerKeychain().Credential(t.Context(), repo)
		if err != nil || got != want {
			t.Errorf("%s: got %v, want %v: %v", repo, got, want, err)
		}
	}
}

func TestKeychainFailureIsExplained(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.BasicAuth})
	ref := reg.AddBlob("some/repo", []byte("12345"))
	o := newOrigin(t, func(cfg *Config) { cfg.Keychain = brokenKeychain{} })
	_, err := read(t, o, ref, blob.Range{Len: 5})
	outcome{err: err, kind: blob.Unauthorized, text: "find credentials for " + reg.Host() + ": the helper is not there"}.check(t, ref, nil)
}

type brokenKeychain struct{}

func (brokenKeychain) Credential(context.Context, string) (Credential, error) {
	return Credential{}, errors.New("the helper is not there")
}

// TestGivenAuthorization: who acts for another uses that one's header, as it
// is, and nothing else: no keychain, no token, no second try.
func TestGivenAuthorization(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth, Users: map[string]string{"alice": secret}, Private: []string{"private"}, Redirect: true})
	content := blobtest.Bytes(1, 100)
	ref := reg.AddBlob("private", content)
	o := newOrigin(t, func(cfg *Config) { cfg.Keychain = keys(alice) })
	if _, err := read(t, o, ref, blob.Range{Len: 100}); err != nil {
		t.Fatal(err) // the node itself may
	}
	// Whoever has a token may use it.
	c, err := o.client(t.Context(), ref.Repository)
	if err != nil {
		t.Fatal(err)
	}
	good, err := c.auth.authorization(t.Context())
	if err != nil || good == "" {
		t.Fatal(good, err)
	}
	reg.ResetStats()
	for _, header := range []string{"", "Bearer wrong", "Basic " + secret, good} {
		ctx := WithAuthorization(WithCredential(t.Context(), alice), header)
		b, err := o.Open(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100)
		// What the blob was opened with counts, not the context of the read.
		err = blob.ReadFull(t.Context(), b, got, 0)
		switch {
		case header == good && (err != nil || !bytes.Equal(got, content)):
			t.Errorf("the good header: %v", err)
		case header != good && blob.KindOf(err) != blob.Unauthorized:
			t.Errorf("%q: %v", header, err)
		case err != nil && strings.Contains(err.Error(), secret):
			t.Errorf("error shows the header: %v", err)
		}
	}
	s := reg.Stats()
	if s.Requests[testkit.Token] != 0 || s.Unauthorized != 3 || s.Leaks != 0 {
		t.Errorf("%d tokens, %d refusals, %d leaks; want 0, 3, 0", s.Requests[testkit.Token], s.Unauthorized, s.Leaks)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", given(secret), given(secret), given(secret), given(secret)); strings.Contains(text, secret) {
		t.Errorf("prints as %s", text)
	}
}
