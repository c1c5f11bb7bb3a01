package forward

import (
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func mustCompile(t testing.TB, list ...Rule) rules {
	t.Helper()
	rs, err := compile(list)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func mustTarget(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	target, err := targetOf(u)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestRulesDecide(t *testing.T) {
	rs := mustCompile(t,
		Rule{Regex: `^https?://direct\.test/`, Direct: true},
		Rule{Regex: `blobs/sha256.*`},
		Rule{Regex: `\.bin$`, FilteredQueryParams: []string{"sig"}},
		Rule{Regex: `^http://tls\.test/`, UseTLS: true},
		Rule{Regex: `^http://away\.test/`, Redirect: "there.test:81"},
		Rule{Regex: `^http://both\.test(:\d+)?/`, Redirect: "There.test", UseTLS: true, Direct: true},
		Rule{Regex: `key=secret`, Redirect: "query.test"},
	)
	forced := http.Header{headerUseP2P: {"true"}}
	for _, c := range []struct {
		url    string
		header http.Header
		want   string
		swarm  bool
		filter string
	}{
		{"http://other.test/x", nil, "http://other.test/x", false, ""},
		{"http://other.test/x", forced, "http://other.test/x", true, ""},
		{"http://other.test/x", http.Header{headerUseP2P: {"false"}}, "http://other.test/x", false, ""},
		{"HTTP://Other.test:80", nil, "http://other.test/", false, ""},
		{"https://other.test:443/x", nil, "https://other.test/x", false, ""},
		{"http://direct.test/v2/a/blobs/sha256:1", nil, "http://direct.test/v2/a/blobs/sha256:1", false, ""},
		{"http://direct.test/a", forced, "http://direct.test/a", true, ""},
		{"http://r.test/v2/a/blobs/sha256:1", nil, "http://r.test/v2/a/blobs/sha256:1", true, ""},
		{"http://r.test/a.bin", nil, "http://r.test/a.bin", true, "sig"},
		{"http://r.test/a.bin?sig=1;2&&x", nil, "http://r.test/a.bin?sig=1;2&&x", true, "sig"},
		{"http://r.test/a.bin?", nil, "http://r.test/a.bin?", true, "sig"},
		{"http://r.test/a.bin?x", http.Header{headerFiltered: {"a, b", ",c"}}, "http://r.test/a.bin?x", true, "a b c"},
		{"http://r.test/a.bin?x", http.Header{headerFiltered: {""}}, "http://r.test/a.bin?x", true, ""},
		{"http://tls.test/a%2Fb?c", nil, "https://tls.test/a%2Fb?c", true, ""},
		{"http://tls.test:80/", nil, "https://tls.test/", true, ""},
		{"http://away.test/a", nil, "http://there.test:81/a", true, ""},
		{"http://both.test:82/a", nil, "https://there.test/a", false, ""},
		{"http://r.test/?key=secret", nil, "http://query.test/?key=secret", true, ""},
	} {
		d := rs.decide(mustTarget(t, c.url), c.header)
		if d.target.String() != c.want || d.swarm != c.swarm || strings.Join(d.filtered, " ") != c.filter {
			t.Errorf("%s %v: %v swarm=%v %v, want %s %v %s", c.url, c.header, d.target, d.swarm, d.filtered, c.want, c.swarm, c.filter)
		}
	}
}

func TestRulesRefused(t *testing.T) {
	for _, r := range []Rule{{Regex: `(`}, {Regex: `a`, Redirect: "http://b"}, {Regex: `a`, Redirect: "b:0"}, {Regex: `a`, Redirect: "b/c"}} {
		if _, err := compile([]Rule{r}); !errors.Is(err, blob.Invalid) {
			t.Errorf("%+v: %v, want Invalid", r, err)
		}
	}
}

// TestRulesNameHosts says which tunnels are opened.
func TestRulesNameHosts(t *testing.T) {
	direct := Rule{Regex: `^https://pinned\.test/`, Direct: true}
	for _, c := range []struct {
		regex, names, others string
	}{
		{`^https://registry\.test/.*`, "registry.test", "other.test registry.test:8443 registry.test.evil"},
		{`https://registry\.test/.*`, "registry.test", "other.test"},
		{`registry\.test`, "registry.test my.registry.test registry.test:8443", "other.test"},
		{`https?://[a-z]+\.registry\.test(:\d+)?/v2/`, "a.registry.test b.registry.test:5000", "registry.test other.test"},
		{`.*\.registry\.test/`, "a.registry.test", "other.test"},
		{`^https://registry\.test/files/.*\.bin$`, "registry.test", "other.test"},
		{`^https://(a|b)\.test/`, "a.test b.test", "c.test pinned.test"},
		{`^http://registry\.test/`, "", "registry.test other.test"},
		{`blobs/sha256.*`, "registry.test other.test:81", "pinned.test"},
		{`.*blobs/sha256.*`, "registry.test", "pinned.test"},
		{`/v2/.*/blobs/`, "registry.test", "pinned.test"},
		{`.*`, "registry.test", "pinned.test"},
		{``, "registry.test", "pinned.test"},
		{`\.tar\.gz$`, "", "registry.test"},
		{`files/.*\.bin`, "", "registry.test"},
		{`(?i)HTTPS://REGISTRY\.TEST/`, "registry.test", "other.test"},
		{`\bregistry\b`, "registry.test", "registrya.test"},
	} {
		rs := mustCompile(t, direct, Rule{Regex: c.regex})
		for host := range strings.FieldsSeq(c.names) {
			if !rs.name(host) {
				t.Errorf("%s does not name %s", c.regex, host)
			}
		}
		for host := range strings.FieldsSeq(c.others) {
			if rs.name(host) {
				t.Errorf("%s names %s", c.regex, host)
			}
		}
	}
}

// FuzzRulesNameHosts compares reaches with searches in whole URLs: what is found
// there and begins in the first part, that part reaches.
func FuzzRulesNameHosts(f *testing.F) {
	f.Add(`^https://a\.test/.*b$`, "a.test", "x/b")
	f.Add(`a.*?b|\bc+`, "c", "")
	f.Add(`(?i)[^x]{2,3}\B$`, "a", "zz")
	f.Fuzz(func(t *testing.T, expr, host, path string) {
		if len(expr) > 60 || strings.Count(expr, "{") > 1 {
			return // repeated, they take seconds to compile
		}
		regex, err := regexp.Compile(expr)
		if err != nil {
			return
		}
		parsed, err := syntax.Parse(expr, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		prog, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		base := "https://" + host + "/"
		at := regex.FindStringIndex(base + path)
		if at != nil && at[0] < len(base) && at[1] > at[0] && !reaches(prog, base) {
			t.Errorf("%q is found at %v of %q and does not reach", expr, at, base+path)
		}
		rs, err := compile([]Rule{{Regex: expr}})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(expr, ".*") && at != nil && at[0] < len(base) && at[1] > at[0] && !rs.name(host) {
			t.Errorf("%q is found in %q and does not name %q", expr, base+path, host)
		}
	})
}

func TestTargets(t *testing.T) {
	for raw, want := range map[string]string{
		"http://a.test":                      "http://a.test/",
		"HTTP://A.Test:80/%2f?a=;b&c#d":      "http://a.test/%2f?a=;b&c",
		"https://u:p@a.test:443/":            "https://a.test/",
		"https://[::1]:443/":                 "https://[::1]/",
		"http://[::ffff:7F00:1]:81/":         "http://[::ffff:7f00:1]:81/",
		"http://a_b.test:/":                  "http://a_b.test/",
		"http://1.2.3.4/":                    "http://1.2.3.4/",
		"ftp://a.test/":                      "",
		"http:a":                             "",
		"http:///x":                          "",
		"http://a.test:0/":                   "",
		"http://a.test:99999/":               "",
		"http://[fe80::1%25lo]/":             "",
		"http://a*b/":                        "",
		"http://ä.test/":                     "",
		"//a.test/":                          "",
		"http://" + strings.Repeat("a", 254): "",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		got, err := targetOf(u)
		switch {
		case want == "" && !errors.Is(err, blob.Invalid):
			t.Errorf("%s: %v, %v, want Invalid", raw, got, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%s: %v, %v, want %s", raw, got, err, want)
		}
	}
}

// FuzzTargets checks that there is one way to write a URL, and that applying
// rules to it is safe.
func FuzzTargets(f *testing.F) {
	for _, s := range []string{"http://a.test:80/x?y", "https://[::1]:443", "http://A/%2f#x", "http://u@b", "http://1.2.3.4:99/a/blobs/sha256:0"} {
		f.Add(s)
	}
	rs := mustCompile(f, Rule{Regex: `blobs/`, UseTLS: true, Redirect: "r.test:80"}, Rule{Regex: `x$`, Direct: true})
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil {
			return
		}
		target, err := targetOf(u)
		if err != nil {
			return
		}
		if target.User != nil || target.Fragment != "" || target.Host == "" {
			t.Errorf("%q: %v", raw, target)
		}
		again, err := targetOf(target)
		if err != nil || again.String() != target.String() {
			t.Errorf("%q: %v becomes %v, %v", raw, target, again, err)
		}
		parsed, err := url.Parse(target.String())
		if err != nil || parsed.Host != target.Host || parsed.RawQuery != target.RawQuery {
			t.Errorf("%q: %v is read as %v, %v", raw, target, parsed, err)
		}
		d := rs.decide(target, http.Header{})
		if !slices.Contains([]string{target.Host, "r.test", "r.test:80"}, d.target.Host) {
			t.Errorf("%q: host %s", raw, d.target.Host)
		}
	})
}
