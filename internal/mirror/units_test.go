package mirror

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
)

var someDigest = digest.FromString("x").String()

func TestParseTarget(t *testing.T) {
	for path, want := range map[string]target{
		"/v2":                                    {path: "/v2/"},
		"/v2/":                                   {path: "/v2/"},
		"/v2/a/manifests/v1":                     {what: aManifest, name: "a", tag: "v1"},
		"/v2/a/b/manifests/" + someDigest:        {what: aManifest, name: "a/b", digest: digest.Digest(someDigest)},
		"/v2/a/blobs/" + someDigest:              {what: aBlob, name: "a", digest: digest.Digest(someDigest)},
		"/v2/blobs/manifests/manifests":          {what: aManifest, name: "blobs", tag: "manifests"},
		"/v2/a/tags/list":                        {name: "a"},
		"/v2/tags/list":                          {},
		"/v2/a/tags/list/b":                      {},
		"/v2/_catalog":                           {},
		"/v2/a/referrers/" + someDigest:          {name: "a"},
		"/v2/a__b/c-d/e.f/manifests/V_1.x-y":     {what: aManifest, name: "a__b/c-d/e.f", tag: "V_1.x-y"},
		"/v2/a/blobs/sha256%3A" + someDigest[7:]: {what: aBlob, name: "a", path: "/v2/a/blobs/" + someDigest, digest: digest.Digest(someDigest)},
	} {
		u, err := url.Parse(path)
		if err != nil {
			t.Fatal(err)
		}
		if want.path == "" {
			want.path = path
		}
		got, err := parseTarget(u)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", path, got, err, want)
		}
	}
	for _, path := range []string{
		"/v2/blobs/manifests/blobs/blobs", "", "/", "/v1/", "/v2x/", "//v2/a/manifests/b", "/v2//a/manifests/b", "/v2/a/../b/manifests/c", "/v2/./a/manifests/c", "/v2/a/manifests/..", "/v2/a/manifests/.x",
		"/v2/a%2fb/manifests/c", "/v2/a%2e%2e/manifests/c", "/v2/%61/manifests/c", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/x", "/v2/a/blobs/uploads", "/v2/a/blobs/sha256:ab",
		"/v2/A/manifests/b", "/v2/a-/manifests/b", "/v2/a/manifests/", "/v2/manifests/b", "/v2/a/manifests/b%00", "/v2/a/manifests/b c", "/v2/a\\b/manifests/c",
		"/v2/" + strings.Repeat("a", 256) + "/manifests/b", "/v2/a/manifests/" + strings.Repeat("b", 129), "/v2/" + strings.Repeat("a/", 600) + "manifests/b",
		"/v2/a/referrers/latest", "/v2/a/manifests/md5:0123456789abcdef0123456789abcdef",
	} {
		u := &url.URL{}
		if parsed, err := url.Parse(path); err == nil {
			u = parsed
		}
		if got, err := parseTarget(u); err == nil && got.what != other || err == nil && got.path == "" {
			t.Errorf("%q was accepted as %+v", path, got)
		} else if err != nil && statusOf(err).status < 400 {
			t.Errorf("%q: %v has no status", path, err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/blobs/" + someDigest, "/v2/a/manifests/v1", "/v2/a%2fb/../manifests/x", "/v2/a/tags/list", "/v2/a/blobs/uploads/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		got, err := parseTarget(u)
		if err != nil {
			if s := statusOf(err); s.status < 400 || s.status >= 500 || s.code == "" {
				t.Errorf("%q: %v is answered with %v", path, err, s)
			}
			return
		}
		// What goes upstream means there what it means here.
		up := upstream{scheme: "https", host: "registry.example", name: got.name}.url(got.path, "")
		if strings.ContainsAny(got.path, "%?#\\") || strings.Contains(got.path, "..") && dotted(got.path) || !strings.HasPrefix(got.path, "/v2/") {
			t.Errorf("%q goes upstream as %q", path, got.path)
		}
		if again, err := url.Parse(up.String()); err != nil || again.Path != got.path || again.Host != "registry.example" {
			t.Errorf("%q goes upstream as %s: %v", path, up, err)
		}
		if got.what != other && got.path != "/v2/"+got.name+map[what]string{aBlob: "/blobs/", aManifest: "/manifests/"}[got.what]+got.reference() {
			t.Errorf("%q: %+v", path, got)
		}
		if strings.Contains(got.path+"/", "/blobs/uploads/") {
			t.Errorf("%q: an upload passes", path)
		}
	})
}

func newMirror(t *testing.T, cfg origin.Config) *Mirror {
	t.Helper()
	o, err := origin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Source: o, Origin: o, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func TestUpstreams(t *testing.T) {
	m := newMirror(t, origin.Config{Insecure: []string{"plain.example:5000", "word"}})
	for _, c := range []struct{ base, name, url, repository string }{
		{"https://index.docker.io", "library/x", "https://registry-1.docker.io", "docker.io/library/x"},
		{"docker.io", "library/x", "https://registry-1.docker.io", "docker.io/library/x"},
		{"https://registry-1.docker.io/", "a/b/c", "https://registry-1.docker.io", "docker.io/a/b/c"},
		{"https://registry-1.docker.io:443/v2/", "a/b", "https://registry-1.docker.io", "docker.io/a/b"},
		{"docker.io", "x", "https://registry-1.docker.io", "registry-1.docker.io/x"},
		{"docker.io", "", "https://registry-1.docker.io", ""},
		{"ghcr.io", "a/b", "https://ghcr.io", "ghcr.io/a/b"},
		{"https://GHCR.io", "a/b", "https://ghcr.io", "ghcr.io/a/b"},
		{"http://plain.example:5000", "a", "http://plain.example:5000", "plain.example:5000/a"},
		{"plain.example:5000", "a", "http://plain.example:5000", "plain.example:5000/a"},
		{"http://127.0.0.1:5000", "a", "http://127.0.0.1:5000", "127.0.0.1:5000/a"},
		{"http://[::1]:5000", "a", "http://[::1]:5000", "[::1]:5000/a"},
		{"word", "a/b", "http://word:80", "word:80/a/b"},
		{"other", "a/b", "https://other:443", "other:443/a/b"},
		{"localhost", "a", "http://localhost:80", "localhost:80/a"},
	} {
		base, err := parseUpstream(c.base)
		if err != nil {
			t.Errorf("%s: %v", c.base, err)
			continue
		}
		u, err := m.checkUpstream(base, c.name)
		if got := u.scheme + "://" + u.host; err != nil || got != c.url || u.repository != c.repository {
			t.Errorf("%s %s: %s, %s, %v; want %s, %s", c.base, c.name, got, u.repository, err, c.url, c.repository)
		}
	}
	for _, s := range []string{"", "https://", "http://tls.example", "https://plain.example:5000", "ftp://x.example", "https://u:p@x.example", "https://x.example/path",
		"https://x.example?a=b", "a b", "https://x.example:port", "x.example/a", "bad_host.example", "https://:5000", "%zz"} {
		base, err := parseUpstream(s)
		if err == nil {
			_, err = m.checkUpstream(base, "some/repo")
		}
		if err == nil || statusOf(err).status != http.StatusBadRequest {
			t.Errorf("%q was accepted: %v", s, err)
		}
	}
}

func FuzzParseUpstream(f *testing.F) {
	for _, s := range []string{"docker.io", "http://127.0.0.1:5000", "https://x.example/v2/", "u@x", "//x", "[::1"} {
		f.Add(s)
	}
	o, err := origin.New(origin.Config{})
	if err != nil {
		f.Fatal(err)
	}
	m := &Mirror{cfg: Config{Origin: o}}
	f.Fuzz(func(t *testing.T, s string) {
		base, err := parseUpstream(s)
		if err != nil {
			return
		}
		u, err := m.checkUpstream(base, "some/repo")
		if err != nil {
			return
		}
		if got := (origin.Reference{Repository: u.repository}).Host(); got != u.host {
			t.Errorf("%q: requests go to %s, reads to %s", s, u.host, got)
		}
		if again, err := url.Parse(u.url("/v2/", "").String()); err != nil || again.Host != u.host || again.User != nil {
			t.Errorf("%q: %s: %v", s, u.url("/v2/", ""), err)
		}
	})
}

// TestAccessEnds: what is remembered ends when it should.
func TestAccessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccess(5*time.Minute, time.Hour)
		alice, bob := who("a"), who("b")
		x, y := item{digest: "x"}, item{digest: "y"}
		a.accepted(alice, x, 10)
		is := func(what string, r reader, i item, fresh, graced bool) {
			t.Helper()
			_, f := a.within(a.ttl, r, i)
			_, g := a.within(a.grace, r, i)
			if f != fresh || g != graced {
				t.Errorf("%s: fresh %v, within the grace %v", what, f, g)
			}
		}
		is("at once", alice, x, true, true)
		is("somebody else", bob, x, false, false)
		is("something else", alice, y, false, false)
		time.Sleep(5*time.Minute - 1)
		is("just in time", alice, x, true, true)
		time.Sleep(time.Nanosecond)
		is("after its time", alice, x, false, true)
		a.accepted(bob, x, 10)
		is("confirmed for somebody else", alice, x, false, true)
		a.accepted(alice, y, 10)
		is("confirmed in two parts", alice, x, true, true)
		time.Sleep(5 * time.Minute)
		a.accepted(alice, y, 10)
		is("whose time is over, for a reader whose is not", alice, x, false, true)
		time.Sleep(time.Hour)
		is("after the grace", alice, x, false, false)
		a.accepted(alice, x, 10)
		a.refused(alice, x, http.StatusInternalServerError)
		is("a failure is no refusal", alice, x, true, true)
		a.refused(alice, x, http.StatusNotFound)
		is("gone", alice, x, false, false)
		a.accepted(alice, x, 10)
		a.accepted(alice, y, 10)
		a.refused(alice, y, http.StatusForbidden)
		is("refused", alice, x, false, false)

		a.noteAway("h", blob.Errorf(blob.Unavailable, "gone"))
		time.Sleep(restful - 1)
		if !a.isAway("h") || a.isAway("other") {
			t.Error("an upstream that is away is asked again at once")
		}
		time.Sleep(time.Nanosecond)
		if a.isAway("h") {
			t.Error("an upstream stays away for ever")
		}
		a.noteAway("h", blob.Errorf(blob.NotFound, "no"))
		if a.isAway("h") {
			t.Error("an upstream that answers is not away")
		}
	})
}

func TestHashIsSalted(t *testing.T) {
	a, b := newAccess(0, 0), newAccess(0, 0)
	if one := a.hash("x"); one == b.hash("x") || one != a.hash("x") || one == a.hash("") {
		t.Error("hashes are not keyed by process")
	}
}

func TestTableIsBounded(t *testing.T) {
	table := newTable[int, int](3)
	for i := range 5 {
		table.put(i, i)
	}
	table.put(2, 20) // is the newest now
	table.put(5, 5)
	got := ""
	for i := range 6 {
		if v, ok := table.get(i); ok {
			got += fmt.Sprint(i, "=", v, " ")
		}
	}
	if got != "2=20 4=4 5=5 " || len(table.byKey) != table.order.Len() {
		t.Errorf("%s, %d, %d", got, len(table.byKey), table.order.Len())
	}
	table.remove(4)
	if table.add(2, 0) || !table.add(4, 0) {
		t.Error("add changes what is there, or not what is not")
	}
}

func manifestOf(data string) manifest {
	return manifest{digest.FromString(data), ocispec.MediaTypeImageManifest, []byte(data)}
}

func TestShelf(t *testing.T) {
	dir := t.TempDir()
	s, err := openShelf(dir)
	if err != nil {
		t.Fatal(err)
	}
	one, two := manifestOf(`{"config":{},"layers":[]}`), manifestOf(`{"config":{},"layers":[{}]}`)
	for _, m := range []manifest{one, two, one} {
		if err := s.put(m); err != nil {
			t.Fatal(err)
		}
	}
	// Damage, a file that was not finished, and one with another's type.
	damaged := s.path(two.digest)
	if err := os.WriteFile(damaged, []byte("x\n{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{".new-1": "x", "sha256-ab": "x", strings.Replace(digest.FromString("{}").String(), ":", "-", 1): "text/html\n{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = openShelf(dir); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.get(one.digest); !ok || !bytes.Equal(got.data, one.data) || got.mediaType != one.mediaType {
		t.Errorf("%+v, %v", got, ok)
	}
	for _, d := range []digest.Digest{two.digest, digest.FromString("{}"), digest.FromString("other")} {
		if got, ok := s.get(d); ok {
			t.Errorf("%+v", got)
		}
	}
	if err := s.put(two); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.get(two.digest); !ok || !bytes.Equal(got.data, two.data) {
		t.Errorf("what was damaged is not kept again: %+v, %v", got, ok)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
	// Too much: the oldest goes.
	s.note(one.digest, maxKept)
	s.note(digest.FromString("more"), 1)
	if _, ok := s.get(two.digest); ok {
		t.Error("two is still there")
	}
	if _, err := os.Stat(s.path(two.digest)); !os.IsNotExist(err) {
		t.Errorf("its file: %v", err)
	}
	if s.bytes != 1 || len(s.files) != 1 {
		t.Errorf("%d bytes in %d files are known", s.bytes, len(s.files))
	}
}

func TestTyped(t *testing.T) {
	const manifestType, indexType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	for _, c := range []struct {
		data, mediaType string
		want            bool
	}{
		{`{"mediaType":"a/b"}`, "a/b", true},
		{`{"mediaType":"a/b"}`, "a/c", false},
		{`{"mediaType":"` + indexType + `","config":{}}`, indexType, true},
		{`{"config":{}}`, manifestType, true},
		{`{"config":{}}`, indexType, false},
		{`{"config":{},"manifests":[]}`, manifestType, false},
		{`{"manifests":[]}`, indexType, true},
		{`{}`, manifestType, false},
		{`x`, manifestType, false},
		{`{"mediaType":"text/html\r\nX: y"}`, "text/html", false},
	} {
		if got := (manifest{mediaType: c.mediaType, data: []byte(c.data)}).typed(); got != c.want {
			t.Errorf("%s as %s: %v", c.data, c.mediaType, got)
		}
	}
}

func FuzzListed(f *testing.F) {
	f.Add([]byte(`{"config":{"digest":"` + someDigest + `","size":1},"layers":[{"digest":"x","size":-1}],"manifests":[{}]}`))
	m := &Mirror{access: newAccess(time.Hour, time.Hour)}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &request{m: m, to: upstream{host: "h", name: "n"}}
		r.vouch(data, time.Now())
		_ = manifest{data: data}.typed()
		for _, d := range listed(data) {
			if d.what == other {
				t.Errorf("%+v is nothing", d)
			}
			got, ok := m.access.members.get(item{r.to.repo(), d.what, d.Digest})
			if ok && (d.Digest.Validate() != nil || got.size < blob.SizeUnknown) {
				t.Errorf("%+v was believed", d)
			}
		}
	})
}

// TestVouchedSize: a manifest's word counts less than the upstream's.
func TestVouchedSize(t *testing.T) {
	m := &Mirror{access: newAccess(time.Hour, time.Hour)}
	r := &request{m: m, to: upstream{host: "h", name: "n"}}
	i := item{r.to.repo(), aBlob, digest.Digest(someDigest)}
	size := func(want int64) {
		t.Helper()
		got, ok := m.access.members.get(i)
		if !ok || got.size != want {
			t.Errorf("%d bytes, %v; want %d", got.size, ok, want)
		}
	}
	m.access.accepted(who("a"), i, blob.SizeUnknown)
	r.vouch([]byte(`{"layers":[{"digest":"`+someDigest+`","size":5}]}`), time.Now())
	size(5)
	m.access.accepted(who("a"), i, 6)
	r.vouch([]byte(`{"layers":[{"digest":"`+someDigest+`","size":7}]}`), time.Now())
	size(6)
	m.access.accepted(who("a"), i, blob.SizeUnknown)
	size(6)
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct {
		accept []string
		typ    string
		want   bool
	}{
		{nil, "a/b", true}, {[]string{"a/b"}, "a/b", true}, {[]string{"a/b"}, "a/b; charset=x", true}, {[]string{"A/B;q=0.1"}, "a/b", true},
		{[]string{"x/y", "c/d, a/b"}, "a/b", true}, {[]string{"a/*"}, "a/b", true}, {[]string{"*/*"}, "a/b", true}, {[]string{"*/*"}, "", true},
		{[]string{"a/c"}, "a/b", false}, {[]string{"b/*"}, "a/b", false}, {[]string{""}, "a/b", false}, {[]string{"a/bc"}, "a/b", false},
	} {
		if got := accepts(http.Header{"Accept": c.accept}, c.typ); got != c.want {
			t.Errorf("%q accepts %q: %v", c.accept, c.typ, got)
		}
	}
}

func TestEndToEnd(t *testing.T) {
	in := http.Header{}
	for _, line := range []string{"Accept: a", "Connection: X-Named, close", "X-Named: 1", "Keep-Alive: 1", "Te: trailers", "Proxy-Authorization: x", "Upgrade: h2c",
		"X-Dragonfly-Tag: x", "Authorization: y", "X-Other: z", "Transfer-Encoding: chunked"} {
		k, v, _ := strings.Cut(line, ": ")
		in.Set(k, v)
	}
	if got := fmt.Sprint(endToEnd(in, notAsked)); got != "map[Accept:[a] X-Other:[z]]" {
		t.Error(got)
	}
}

func TestLinks(t *testing.T) {
	for in, want := range map[string]string{
		`</v2/a/tags/list?last=b&n=1>; rel="next"`:                     `</v2/a/tags/list?last=b&n=1&ns=r.example>; rel="next"`,
		`<list?last=b>; rel="next"`:                                    `</v2/a/tags/list?last=b&ns=r.example>; rel="next"`,
		`<https://registry.example/v2/a/tags/list?last=b>; rel="next"`: `</v2/a/tags/list?last=b&ns=r.example>; rel="next"`,
		`<https://elsewhere.example/v2/>; rel="next"`:                  `<https://elsewhere.example/v2/>; rel="next"`,
		`no link`: `no link`, `<`: `<`, `<%zz>`: `<%zz>`,
	} {
		r := &request{req: httptest.NewRequest(http.MethodGet, "/v2/a/tags/list?ns=r.example", nil), to: upstream{scheme: "https", host: "registry.example"}, target: target{path: "/v2/a/tags/list"}}
		if got := r.link(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
