package origin

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

func TestParseReference(t *testing.T) {
	const sum = "sha256:" + blobDigest
	for _, c := range []struct{ in, want, host string }{
		{"python", "docker.io/library/python:latest", "registry-1.docker.io"},
		{"python:3.12", "docker.io/library/python:3.12", "registry-1.docker.io"},
		{"docker.io/python", "docker.io/library/python:latest", "registry-1.docker.io"},
		{"index.docker.io/library/python", "docker.io/library/python:latest", "registry-1.docker.io"},
		{"user/app", "docker.io/user/app:latest", "registry-1.docker.io"},
		{"ghcr.io/user/app:v1", "ghcr.io/user/app:v1", "ghcr.io"},
		{"localhost:5000/app", "localhost:5000/app:latest", "localhost:5000"},
		{"localhost/app", "localhost/app:latest", "localhost"},
		{"[::1]:5000/app:v1", "[::1]:5000/app:v1", "[::1]:5000"},
		{"r.example/a/b/c__d-e.f", "r.example/a/b/c__d-e.f:latest", "r.example"},
		{"python@" + sum, "docker.io/library/python@" + sum, "registry-1.docker.io"},
		{"r.example:5000/app:v1@" + sum, "r.example:5000/app:v1@" + sum, "r.example:5000"},
	} {
		r, err := ParseReference(c.in)
		if err != nil || r.String() != c.want || r.Host() != c.host {
			t.Errorf("ParseReference(%q) = %q on %q, want %q on %q: %v", c.in, r, r.Host(), c.want, c.host, err)
		}
	}
	for _, in := range []string{
		"", ":", "@", "python:", "python@", "python@sha256:12", "python@" + sum + "@" + sum, "Python", "r.example/", "r.example/../x",
		"r.example//x", "r.example/x/", "https://r.example/x", "http://r.example/x:v1", "r.example/x:a b", "r.example:port/x", "user@r.example/x",
		"r.example/x:" + strings.Repeat("a", 129), "r.example/%2e%2e/x", "r_.example/x", strings.Repeat("a/", 2000), "r.example/x?y", "r.example/x#y", "python:-a", "r..example/x", "r-.example/x",
	} {
		if r, err := ParseReference(in); !errors.Is(err, blob.Invalid) {
			t.Errorf("ParseReference(%q) = %q, %v, want invalid", in, r, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"python", "localhost:5000/app:v1", "r.example/a/b@sha256:" + blobDigest, "docker.io/x", "index.docker.io/x", "registry-1.docker.io/x", "[::1]/x", "a:b:c", "a@b", "0..0/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			if blob.KindOf(err) != blob.Invalid {
				t.Errorf("%q: kind %v", s, blob.KindOf(err))
			}
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %q, which is %q: %v", s, r, again, err)
		}
		if u, err := url.Parse("https://" + r.Host() + "/v2/x"); err != nil || u.Host != r.Host() || u.User != nil {
			t.Errorf("%q: host %q does not make a URL", s, r.Host())
		}
		if strings.Contains(r.Repository, "..") || checkIdentifier(r.Identifier()) != nil {
			t.Errorf("%q: %q cannot be asked for", s, r)
		}
	})
}

func TestParseChallenges(t *testing.T) {
	p := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, c := range []struct {
		in   []string
		want []challenge
	}{
		{nil, nil},
		{[]string{"Basic"}, []challenge{{"basic", p()}}},
		{[]string{`Basic realm="a, b"`}, []challenge{{"basic", p("realm", "a, b")}}},
		{[]string{`Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"`},
			[]challenge{{"bearer", p("realm", "https://a/token", "service", "s", "scope", "repository:x:pull,push")}}},
		{[]string{`bearer  Realm = "a" , service=s`}, []challenge{{"bearer", p("realm", "a", "service", "s")}}},
		{[]string{`Basic realm="x", Bearer realm="y"`, "Negotiate"}, []challenge{{"basic", p("realm", "x")}, {"bearer", p("realm", "y")}, {"negotiate", p()}}},
		{[]string{`Negotiate YII/abc==, Basic realm=x`}, []challenge{{"negotiate", p()}, {"basic", p("realm", "x")}}},
		{[]string{`Bearer realm="a\"b\\c"`}, []challenge{{"bearer", p("realm", `a"b\c`)}}},
		{[]string{`Bearer realm="open`}, []challenge{{"bearer", p("realm", "open")}}},
		{[]string{`,,Basic,,realm=x,`}, []challenge{{"basic", p("realm", "x")}}},
		{[]string{`="x" ? Basic`}, []challenge{{"basic", p()}}},
	} {
		if got := parseChallenges(c.in); cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})) != "" {
			t.Errorf("%q: got %v, want %v", c.in, got, c.want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/token",service="s",scope="x"`, `Basic`, `Negotiate abc==, Basic realm=x`, `a="\`, `a b c d`, "a=\"\x00\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s}) {
			// What was understood means the same when it is written plainly.
			again := parseChallenges([]string{c.String()})
			if len(c.String()) < maxChallenge && cmp.Diff([]challenge{c}, again, cmp.AllowUnexported(challenge{})) != "" {
				t.Errorf("%q: %v is read back as %v", s, c, again)
			}
		}
	})
}

func TestTargetExpiry(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for query, want := range map[string]time.Duration{
		"":                        targetLife,
		"Expires=junk&se=junk":    targetLife,
		"X-Amz-Expires=60":        targetLife,
		"Expires=1767323105":      time.Minute - targetMargin,
		"se=2026-01-02T03:05:05Z": time.Minute - targetMargin,
		"X-Amz-Date=20260102T030405Z&X-Amz-Expires=60":             time.Minute - targetMargin,
		"X-Goog-Date=20260102T030305Z&X-Goog-Expires=60":           -targetMargin,
		"X-Amz-Date=20260102T030405Z&X-Amz-Expires=604800":         targetLife,
		"X-Amz-Date=20260102T030405Z&X-Amz-Expires=-1":             targetLife,
		"X-Amz-Date=20260102T030405Z&X-Amz-Expires=99999999999999": targetLife,
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if got := targetExpiry(q, now).Sub(now); got != want {
			t.Errorf("%q: remembered for %v, want %v", query, got, want)
		}
	}
}

func TestParseToken(t *testing.T) {
	for _, c := range []struct {
		in, token string
		life      time.Duration
	}{
		{`{"token":"a"}`, "a", time.Minute},
		{`{"access_token":"b","expires_in":300}`, "b", 5 * time.Minute},
		{`{"token":"a","access_token":"b","expires_in":0.5}`, "a", 500 * time.Millisecond},
		{`{"token":"a","expires_in":1e300}`, "a", exchange.MaxWait},
		{`{"token":"a","expires_in":-1}`, "a", time.Minute},
		{`{}`, "", 0}, {`{"token":"a\r\nX: y"}`, "", 0}, {`secret`, "", 0}, {`{"token":5}`, "", 0}, {"", "", 0},
	} {
		token, life, err := parseToken([]byte(c.in))
		if token != c.token || life != c.life || (err == nil) != (c.token != "") {
			t.Errorf("%s: %q, %v, %v; want %q, %v", c.in, token, life, err, c.token, c.life)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the answer is quoted: %v", err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"token":"a","access_token":"b","expires_in":300}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		token, life, err := parseToken(body)
		if err == nil && (token == "" || strings.ContainsAny(token, "\r\n ") || life <= 0) {
			t.Errorf("%q: %q, %v", body, token, life)
		}
	})
}
