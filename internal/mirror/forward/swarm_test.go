package forward

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/origin/exchange"
	"skimmer/internal/origin/web"
)

// webFiles is Files over a real Source of URLs whose connections g makes.
func webFiles(t *testing.T, g *Guard) Files {
	t.Helper()
	client, err := exchange.New(exchange.Config{Dial: g.DialContext, Retries: -1}, new(exchange.Stats))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	src := web.New(web.Config{Client: client, TempDir: t.TempDir()})
	return func(ctx context.Context, req FileRequest) (context.Context, File, error) {
		if err := web.CheckHeader(req.Header); err != nil {
			t.Errorf("a header that cannot be sent along: %v", err)
			return ctx, File{}, err
		}
		ctx = web.WithHeader(ctx, req.Header)
		ref, meta, err := src.Resolve(ctx, req.URL, web.Options{Tag: req.Tag})
		if err != nil {
			return ctx, File{}, err
		}
		b, err := src.Open(ctx, ref)
		return ctx, File{Blob: b, ETag: meta.ETag, ContentType: meta.ContentType, LastModified: meta.LastModified}, err
	}
}

// TestFiles has a real server and a real Source of what it has.
func TestFiles(t *testing.T) {
	content := blobtest.Bytes(1, 300<<10)
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for name := range req.Header {
			if forUs(name) {
				t.Errorf("the server was sent %s", name)
			}
		}
		if req.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", "Bearer realm=x")
			http.Error(w, "show a token", http.StatusUnauthorized)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Type", "text/x-test")
		http.ServeContent(w, req, "", modified, strings.NewReader(string(content)))
	}))
	defer up.Close()
	g := newGuard(t, GuardConfig{Allow: []string{"127.0.0.1"}})
	w := newWorld(t, Config{Guard: g, Files: webFiles(t, g), Rules: []Rule{{Regex: `\.bin$`}}})
	good := []string{"Authorization", "Bearer good"}
	for _, c := range []struct {
		header     []string
		status     int
		body       string
		rangeFirst string
	}{
		{nil, 200, string(content), ""},
		{[]string{"Range", "bytes=100-199"}, 206, string(content[100:200]), "bytes 100-199/307200"},
		{[]string{"Range", "bytes=-5"}, 206, string(content[len(content)-5:]), "bytes 307195-307199/307200"},
		{[]string{"Range", "bytes=307200-"}, 416, "", "bytes */307200"},
		{[]string{"Range", "bytes=0-0", "If-Range", `"v1"`}, 206, string(content[:1]), "bytes 0-0/307200"},
		{[]string{"Range", "bytes=0-0", "If-Range", `"v0"`}, 200, string(content), ""},
		{[]string{"If-None-Match", `"v1"`}, 304, "", ""},
		{[]string{"If-Match", `"v0"`}, 412, "", ""},
	} {
		resp, body := w.get(up.URL+"/a.bin?sig=1", slices.Concat(good, c.header)...)
		if resp.StatusCode != c.status || c.status < 300 && body != c.body || resp.Header.Get("Content-Range") != c.rangeFirst {
			t.Errorf("%v: %s, %d bytes, %q", c.header, resp.Status, len(body), resp.Header.Get("Content-Range"))
		}
		if c.status < 300 {
			for name, want := range map[string]string{"Etag": `"v1"`, "Content-Type": "text/x-test", "Last-Modified": "Thu, 02 Jan 2020 03:04:05 GMT", "Via": "1.1 " + w.proxy.name} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%v: %s is %q, want %q", c.header, name, got, want)
				}
			}
		}
	}
	// Who may not have it hears that from the server itself.
	resp, body := w.get(up.URL+"/a.bin", "Authorization", "Bearer bad")
	if resp.StatusCode != http.StatusUnauthorized || body != "show a token\n" || resp.Header.Get("WWW-Authenticate") != "Bearer realm=x" {
		t.Errorf("%v %q", resp, body)
	}
	// All but a GET without a body is passed on.
	for _, req := range []*http.Request{
		w.request(http.MethodHead, up.URL+"/a.bin", nil, good...),
		w.request(http.MethodPut, up.URL+"/a.bin", strings.NewReader("x"), good...),
		w.request(http.MethodGet, up.URL+"/a.bin", strings.NewReader("x"), good...),
		w.request(http.MethodGet, up.URL+"/a.txt", nil, good...),
	} {
		_, _ = w.do(w.client(nil), req)
	}
	_ = w.proxy.Close() // requests are counted when they end
	if s := w.proxy.Stats(); s.Files.Load() != 8 || s.Passed.Load() != 5 || s.FellBack.Load() != 1 {
		t.Errorf("%d from Files, %d passed on, %d fell back", s.Files.Load(), s.Passed.Load(), s.FellBack.Load())
	}
}

// TestFilesReachNothingHere asks through the swarm for what must not be reached,
// at once and by way of a redirect.
func TestFilesReachNothingHere(t *testing.T) {
	var secret atomic.Int64
	hidden := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { secret.Add(1) }))
	defer hidden.Close()
	up := httptest.NewServer(http.RedirectHandler(hidden.URL+"/x", http.StatusFound))
	defer up.Close()
	g := newGuard(t, GuardConfig{Allow: []string{up.Listener.Addr().String()}})
	mirrored := func(http.ResponseWriter, *http.Request, *url.URL) { secret.Add(1) }
	w := newWorld(t, Config{Guard: g, Files: webFiles(t, g), Mirror: mirrored, Rules: []Rule{{Regex: `.*`}}})
	local := strings.Replace(hidden.URL, "127.0.0.1", "localhost", 1)
	for _, u := range []string{hidden.URL, local, "http://169.254.169.254/latest/meta-data", hidden.URL + "/v2/a/manifests/latest", local + "/v2/a/blobs/sha256:00"} {
		if resp, body := w.get(u); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "proxy.allowHosts") {
			t.Errorf("%s: %s %q", u, resp.Status, body)
		}
	}
	if resp, _ := w.get(up.URL); resp.StatusCode != http.StatusFound {
		t.Errorf("a redirect is for the client to follow: %s", resp.Status)
	}
	if n := secret.Load(); n != 0 {
		t.Errorf("%d requests reached what they must not", n)
	}
}

// TestWhatFilesAreAskedFor has headers of clients of Dragonfly.
func TestWhatFilesAreAskedFor(t *testing.T) {
	var mu sync.Mutex
	var asked []FileRequest
	up := httptest.NewServer(http.HandlerFunc(echo))
	defer up.Close()
	w := newWorld(t, Config{
		Rules: []Rule{{Regex: `\.bin`, FilteredQueryParams: []string{"sig", "exp"}}},
		Files: func(ctx context.Context, req FileRequest) (context.Context, File, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, req)
			return ctx, File{}, blob.Errorf(blob.Unavailable, "open: no swarm")
		},
	})
	for _, header := range [][]string{
		{"Accept-Encoding", "gzip", "Range", "bytes=0-1", "If-Match", "x", "X-Mine", "1", "Authorization", "Basic eA==", "X-Dragonfly-Priority", "3", "X-Dragonfly-Piece-Length", "4mib",
			"Connection", "X-Hop", "X-Hop", "1", "X-Dragonfly-Application", "app", "Proxy-Foo", "1", "Via", "1.1 a"},
		{"X-Dragonfly-Tag", "t", "X-Dragonfly-Filtered-Query-Params", "a"},
	} {
		resp, body := w.get(up.URL+"/a.bin?sig=1;2", header...)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, "GET /a.bin?sig=1;2 ") || strings.Contains(body, "Dragonfly") {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	_, _ = w.get(up.URL+"/other", "X-Dragonfly-Use-P2P", "true")
	_, _ = w.get(up.URL + "/other")
	if len(asked) != 3 {
		t.Fatalf("asked for %d files", len(asked))
	}
	first, second := asked[0], asked[1]
	if first.URL != up.URL+"/a.bin?sig=1;2" || first.Tag != "" || strings.Join(first.FilteredQueryParams, ",") != "sig,exp" {
		t.Errorf("%+v", first)
	}
	first.Header.Del("User-Agent")
	if len(first.Header) != 2 || first.Header.Get("X-Mine") != "1" || first.Header.Get("Authorization") != "Basic eA==" {
		t.Errorf("header %v", first.Header)
	}
	if second.Tag != "t" || strings.Join(second.FilteredQueryParams, ",") != "a" {
		t.Errorf("%+v", second)
	}
	if asked[2].URL != up.URL+"/other" {
		t.Errorf("%+v", asked[2])
	}
}

// TestFilesThatFail has a Source that fails before the first byte, and one that
// fails later.
func TestFilesThatFail(t *testing.T) {
	content := blobtest.Bytes(3, 4<<20)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the server's own") }))
	defer up.Close()
	var memory blobtest.Memory
	ref := memory.Add(content)
	var after atomic.Int64
	w := newWorld(t, Config{Rules: []Rule{{Regex: `.*`}}, Files: func(ctx context.Context, _ FileRequest) (context.Context, File, error) {
		b, err := memory.Open(ctx, ref)
		return ctx, File{Blob: failing{b, after.Load()}}, err
	}})
	if resp, body := w.get(up.URL); resp.StatusCode != http.StatusOK || body != "the server's own" {
		t.Errorf("%s %q", resp.Status, body)
	}
	after.Store(1 << 20)
	resp, err := w.client(nil).Do(w.request(http.MethodGet, up.URL, nil))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != string(content[:len(body)]) {
		t.Errorf("%d bytes, %v, want an unexpected end", len(body), err)
	}
	if n := w.proxy.Stats().FellBack.Load(); n != 1 {
		t.Errorf("%d fell back", n)
	}
}

// failing is a blob whose reads break off.
type failing struct {
	blob.Blob
	after int64
}

func (f failing) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := f.Blob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	return &failingReader{rc, f.after}, nil
}

type failingReader struct {
	io.ReadCloser
	left int64
}

func (r *failingReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, blob.Errorf(blob.Unavailable, "read: it broke off")
	}
	n, err := r.ReadCloser.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

// TestRegistriesGoToTheMirror checks which requests do, and what it is told.
func TestRegistriesGoToTheMirror(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	const host = "registry.example.test"
	g := newGuard(t, GuardConfig{Allow: []string{host, "127.0.0.1"}, Resolver: names(t, nil)})
	type call struct{ method, uri, host, base, authorization, dragonfly string }
	var mu sync.Mutex
	var calls []call
	w := newWorld(t, Config{
		Guard: g, Rules: []Rule{{Regex: `/v2/`, UseTLS: true}, {Regex: `.*`}},
		Mirror: func(w http.ResponseWriter, req *http.Request, base *url.URL) {
			mu.Lock()
			defer mu.Unlock()
			c := call{req.Method, req.RequestURI, req.Host, base.String(), req.Header.Get("Authorization"), req.Header.Get("X-Dragonfly-Registry")}
			if req.URL.String() != req.RequestURI {
				t.Errorf("URL %v, request URI %s", req.URL, req.RequestURI)
			}
			calls = append(calls, c)
			_, _ = io.WriteString(w, "the mirror")
		},
	})
	for path, want := range map[string]bool{
		"/v2/a/b/blobs/" + digest:                        true,
		"/v2/a/b/blobs/sha256%3A" + digest[7:] + "?ns=x": true,
		"/v2/a/manifests/latest":                         true,
		"/v2/a/manifests/" + digest:                      true,
		"/v2/a/blobs/uploads/":                           false,
		"/v2/a/blobs/uploads/1":                          false,
		"/v2/":                                           false,
		"/v2/a/tags/list":                                false,
		"/v2/a%2Fb/manifests/latest":                     false,
		"/x/v2/a/manifests/latest":                       false,
	} {
		calls = nil
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut} {
			_, _ = w.do(w.client(nil), w.request(method, "http://"+host+path, nil, "Authorization", "Bearer x", "X-Dragonfly-Registry", "http://evil"))
		}
		var expected []call
		if want {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				expected = append(expected, call{method, path, host, "https://" + host, "Bearer x", ""})
			}
		}
		if !slices.Equal(calls, expected) {
			t.Errorf("%s: %+v, want %+v", path, calls, expected)
		}
	}
}
