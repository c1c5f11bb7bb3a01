package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/peer"
	"skimmer/internal/testkit"
)

// fileServer serves one file at /dir/file.
type fileServer struct {
	*httptest.Server

	mu       sync.Mutex // guards the rest
	content  []byte
	etag     string
	requests []http.Header
	// break off: after so many bytes of a body, run then, and end the answer.
	after int
	then  func()
}

func newFileServer(t *testing.T, content []byte, etag string) *fileServer {
	s := &fileServer{content: content, etag: etag}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// set says what the server has and how it serves it from now on.
func (s *fileServer) set(content []byte, etag string, after int, then func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content, s.etag, s.after, s.then, s.requests = content, etag, after, then, nil
}

func (s *fileServer) asked() []http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *fileServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, req.Header)
	content, etag, after, then := s.content, s.etag, s.after, s.then
	s.mu.Unlock()
	if req.URL.Path != "/dir/file" || content == nil {
		http.NotFound(w, req)
		return
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	if after > 0 && req.Header.Get("Range") != "bytes=0-0" {
		w = &breaker{w, after, then}
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(content))
}

type breaker struct {
	http.ResponseWriter
	left int
	then func()
}

func (b *breaker) Write(p []byte) (int, error) {
	if len(p) < b.left {
		b.left -= len(p)
		return b.ResponseWriter.Write(p)
	}
	_, _ = b.ResponseWriter.Write(p[:b.left])
	b.ResponseWriter.(http.Flusher).Flush()
	if b.then != nil {
		b.then()
	}
	panic(http.ErrAbortHandler)
}

// get runs skimmer get in dir without a peer.
func getIn(t *testing.T, dir string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return getWith(t.Context(), t, dir, args...)
}

func getWith(ctx context.Context, t *testing.T, dir string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	t.Chdir(dir)
	return runImage(ctx, "", append([]string{"get", "--no-peer"}, args...)...)
}

func wantFiles(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		p, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if content, ok := want[e.Name()]; !ok || err != nil || content != nil && !bytes.Equal(p, content) {
			t.Errorf("%s: %d bytes, want %d (expected at all: %v): %v", e.Name(), len(p), len(content), ok, err)
		}
	}
	if len(list) != len(want) {
		t.Errorf("%d files, want %d", len(list), len(want))
	}
}

func TestGetWritesAFile(t *testing.T) {
	content := blobtest.Bytes(1, 1<<20+7)
	srv := newFileServer(t, content, `"v1"`)
	url, dir := srv.URL+"/dir/file", t.TempDir()

	stdout, _, err := getIn(t, dir, url)
	if err != nil || !strings.Contains(stdout, "file: 1.0 MiB in ") {
		t.Errorf("get: %q, %v", stdout, err)
	}
	wantFiles(t, dir, map[string][]byte{"file": content})

	if _, _, err := getIn(t, dir, url); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("over a file that exists: %v", err)
	}
	other := blobtest.Bytes(2, 1000)
	srv.set(other, `"v2"`, 0, nil)
	if _, _, err := getIn(t, dir, "-f", "-q", url); err != nil {
		t.Errorf("with --force: %v", err)
	}
	wantFiles(t, dir, map[string][]byte{"file": other})

	dir = t.TempDir()
	for _, args := range [][]string{
		{"-o", "name"}, {"--output", "ranged", "--range", "10-19"}, {"-o", "rest", "--range", "900-"},
		{"-o", "known", "--digest", digest.FromBytes(other).String(), "--header", "X-Thing: 1", "--tag", "t"},
	} {
		if _, _, err := getIn(t, dir, append(args, url)...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	if h := srv.asked(); h[len(h)-1].Get("X-Thing") != "1" {
		t.Errorf("the header was not sent: %v", h)
	}
	wantFiles(t, dir, map[string][]byte{"name": other, "ranged": other[10:20], "rest": other[900:], "known": other})

	dir = t.TempDir()
	if _, _, err := getIn(t, t.TempDir(), "-o", dir, url); err != nil {
		t.Error(err)
	}
	wantFiles(t, dir, map[string][]byte{"file": other})

	stdout, stderr, err := getIn(t, t.TempDir(), "-o", "-", url)
	if err != nil || stdout != string(other) || !strings.Contains(stderr, "standard output: 1000 B") {
		t.Errorf("to standard output: %d bytes, %q, %v", len(stdout), stderr, err)
	}
	if _, _, err := getIn(t, t.TempDir(), "-o", "/dev/null", url); err != nil {
		t.Errorf("to a device: %v", err)
	}
}

func TestGetPrintsJSON(t *testing.T) {
	content := blobtest.Bytes(1, 1000)
	srv := newFileServer(t, content, `"v1"`)
	address := strings.TrimPrefix(srv.URL, "http://")
	d := digest.FromBytes(content)
	dir := t.TempDir()
	stdout, stderr, err := getIn(t, dir, "--json", "--digest", d.String(), "http://me:secret@"+address+"/dir/file?x=secret")
	var got gotten
	if err == nil {
		err = json.Unmarshal([]byte(stdout), &got)
	}
	if err != nil || got.Seconds <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
	got.Seconds = 0
	want := gotten{URL: srv.URL + "/dir/file", Output: "file", Blob: d, Size: 1000, Bytes: 1000, Verified: true, Origin: 1000}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if strings.Contains(stdout+stderr, "secret") {
		t.Errorf("a password is shown: %s%s", stdout, stderr)
	}
	if h := srv.asked(); h[0].Get("Authorization") == "" {
		t.Error("user and password of the URL were not sent")
	}
}

func TestGetErrors(t *testing.T) {
	content := blobtest.Bytes(1, 1000)
	srv := newFileServer(t, content, `"v1"`)
	url := srv.URL + "/dir/file"
	for want, args := range map[string][]string{
		"404":                    {srv.URL + "/none"},
		"what to call the file":  {srv.URL + "/"},
		"scheme":                 {"-o", "x", "dir/file"},
		"must be like sha256":    {"--digest", "abc", url},
		"must be FIRST-LAST":     {"--range", "9-8", url},
		"not in its 1000 bytes":  {"--range", "1000-", url},
		"cannot be chosen":       {"-H", "Range: bytes=0-1", url},
		"not like":               {"-H", "secret", url},
		"together with the file": {"--json", "-o", "-", url},
		"does not have":          {"--digest", digest.FromString("else").String(), url},
		"has no digest":          {"-o", "x", "oci://registry.example/app"},
		"arg":                    {},
	} {
		dir := t.TempDir()
		_, stderr, err := getIn(t, dir, args...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error()+stderr, "secret") {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
		wantFiles(t, dir, nil)
	}
}

func TestGetBlobOfARegistry(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	content := blobtest.Bytes(1, 100_000)
	ref := reg.AddBlob("some/repo", content)
	dir := t.TempDir()
	if _, _, err := getIn(t, dir, "oci://"+ref.String()); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, map[string][]byte{ref.Digest.Encoded(): content})
}

// TestGetResumes breaks downloads off and runs the same command again.
func TestGetResumes(t *testing.T) {
	content, other := blobtest.Bytes(1, 1<<20), blobtest.Bytes(2, 1<<20)
	for name, c := range map[string]struct {
		etag, next string
		content    []byte
		args       []string
		want       []byte
		ranges     string // of the last request
		say        string
	}{
		"unchanged":       {`"v1"`, `"v1"`, content, nil, content, "bytes=499999-1048575", ""},
		"changed":         {`"v1"`, `"v2"`, other, nil, other, "", "has changed"},
		"with a digest":   {`"v1"`, `"v1"`, content, []string{"--digest", digest.FromBytes(content).String()}, content, "bytes=499999-1048575", ""},
		"part":            {`"v1"`, `"v1"`, content, []string{"--range", "100-999999"}, content[100:1000_000], "bytes=500099-999999", ""},
		"changed part":    {`"v1"`, `"v2"`, other, []string{"--range", "100-999999"}, other[100:1000_000], "bytes=100-999999", "has changed"},
		"not wanted":      {`"v1"`, `"v1"`, content, []string{"--resume=false"}, content, "", ""},
		"without version": {"", "", content, nil, content, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newFileServer(t, content, c.etag)
			dir, args := t.TempDir(), append(c.args, srv.URL+"/dir/file")
			// What is broken off is not there any more when it is asked for again.
			srv.set(content, c.etag, 500_000, func() { srv.set(nil, "", 0, nil) })
			_, stderr, err := getIn(t, dir, args...)
			if err == nil {
				t.Fatal("a download that broke off succeeded")
			}
			if c.etag == "" {
				wantFiles(t, dir, nil)
			} else {
				wantFiles(t, dir, map[string][]byte{"file.part": nil, "file.part.id": nil})
				if !strings.Contains(stderr, "488.3 KiB is kept in file.part") {
					t.Errorf("said %q", stderr)
				}
			}
			srv.set(c.content, c.next, 0, nil)
			_, stderr, err = getIn(t, dir, args...)
			if err != nil || !strings.Contains(stderr, c.say) {
				t.Errorf("again: %v, said %q", err, stderr)
			}
			wantFiles(t, dir, map[string][]byte{"file": c.want})
			if h := srv.asked(); h[len(h)-1].Get("Range") != c.ranges {
				t.Errorf("range %q was asked for, want %q", h[len(h)-1].Get("Range"), c.ranges)
			}
		})
	}
}

// TestGetDoesNotTrustWhatItResumes damages what is there of a file.
func TestGetDoesNotTrustWhatItResumes(t *testing.T) {
	content := blobtest.Bytes(1, 1<<20)
	srv := newFileServer(t, content, `"v1"`)
	dir, args := t.TempDir(), []string{"--digest", digest.FromBytes(content).String(), srv.URL + "/dir/file"}
	srv.set(content, `"v1"`, 500_000, func() { srv.set(nil, "", 0, nil) })
	if _, _, err := getIn(t, dir, args...); err == nil {
		t.Fatal("a download that broke off succeeded")
	}
	part, err := os.OpenFile("file.part", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	if _, err := part.WriteAt([]byte("damage"), 1000); err != nil {
		t.Fatal(err)
	}
	srv.set(content, `"v1"`, 0, nil)
	if _, _, err := getIn(t, dir, args...); err == nil || !strings.Contains(err.Error(), "does not have the digest") {
		t.Errorf("a damaged part: %v", err)
	}
	wantFiles(t, dir, nil)
	if _, _, err := getIn(t, dir, args...); err != nil {
		t.Error(err)
	}
	wantFiles(t, dir, map[string][]byte{"file": content})
}

func TestGetIsInterrupted(t *testing.T) {
	content := blobtest.Bytes(1, 1<<20)
	srv := newFileServer(t, content, `"v1"`)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	srv.set(content, `"v1"`, 500_000, func() {
		// The user interrupts when some of it has arrived.
		testkit.Eventually(t, time.Minute, "bytes are on disk", func() error {
			if st, err := os.Stat(filepath.Join(dir, "file.part")); err != nil || st.Size() == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		cancel()
		select {
		case <-hang:
		case <-t.Context().Done():
		}
	})
	_, stderr, err := getWith(ctx, t, dir, srv.URL+"/dir/file")
	if !errors.Is(err, context.Canceled) || !strings.Contains(stderr, "the same command continues it") {
		t.Errorf("%v, said %q", err, stderr)
	}
	wantFiles(t, dir, map[string][]byte{"file.part": nil, "file.part.id": nil})
}

// TestGetWithoutAPeer looks for one that is not there.
func TestGetWithoutAPeer(t *testing.T) {
	content := blobtest.Bytes(1, 1000)
	srv := newFileServer(t, content, `"v1"`)
	t.Chdir(t.TempDir())
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	cmd := newGetCommand(a)
	g, err := a.newGet(cmd, &getFlags{local: localPeer{socket: filepath.Join(t.TempDir(), "s")}, resume: true}, srv.URL+"/dir/file")
	if err != nil {
		t.Fatal(err)
	}
	g.socket = true
	if err := g.run(t.Context()); !errors.Is(err, peer.ErrNotRunning) {
		t.Errorf("with a socket that was chosen: %v", err)
	}
	wantFiles(t, ".", nil)
	g.socket = false
	if err := g.run(t.Context()); err != nil || !strings.Contains(errs.String(), "no peer is running") {
		t.Errorf("with the usual socket: %v, said %q", err, errs.String())
	}
	wantFiles(t, ".", map[string][]byte{"file": content})
}

// TestGetKeepErrors asks for what --keep cannot do.
func TestGetKeepErrors(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	socket := filepath.Join(t.TempDir(), "s")
	url := "https://example.test/file"
	for want, args := range map[string][]string{
		"no peer is running": {"--socket", socket, url},
		"none of the others": {"-o", "x", url},
		"there are several":  {"--digest", digest.FromString("x").String(), url, url},
		"must be FIRST-LAST": {"--range", "5", url},
		"must be like sha":   {"--digest", "5", url},
	} {
		_, _, err := runImage(t.Context(), "", append([]string{"get", "--keep"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if _, _, err := runImage(t.Context(), "", "get", "--no-peer", url, url); err == nil || !strings.Contains(err.Error(), "arg") {
		t.Errorf("two files without --keep: %v", err)
	}
	wantFiles(t, dir, nil)
}

func TestFileNames(t *testing.T) {
	for url, want := range map[string]string{
		"https://example.test/a/b.tar.gz?x=/y#z": "b.tar.gz", "https://example.test/a%20b": "a b", "http://example.test": "", "http://example.test/": "",
		"https://example.test/a/": "", "https://example.test/..": "", "https://example.test/%2e%2e": "", "https://example.test/a%2Fb": "b", "https://example.test/x%00": "",
		"oci://r.example/x@sha256:" + digest.FromString("x").Encoded(): digest.FromString("x").Encoded(), "%": "",
	} {
		if got, err := fileNameOf(url); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", url, got, err, want)
		}
	}
}

// TestBlobCommands prints what a peer said.
func TestBlobCommands(t *testing.T) {
	hex := digest.FromString("x").Encoded()
	all := []blobReport{
		{peer.BlobStatus{Digest: digest.Digest("sha256:" + hex), Size: 2048, Present: 1024, Pinned: true, LastUsed: time.Now(), Repository: "registry.example/app"}, nil},
		{peer.BlobStatus{Digest: digest.Digest("url:" + hex), Size: 10, Present: 10, Complete: true, LastUsed: time.Now().Add(-50 * time.Hour), URL: "https://example.test/x"}, nil},
	}
	var out bytes.Buffer
	if err := printBlobs(&out, all); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"sha256:" + hex[:12], "50 %", "partial, pinned", "just now", "registry.example/app", "url:" + hex[:12], "100 %", "complete", "2 days ago", "https://example.test/x"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "NODES") {
		t.Errorf("without a swarm nodes are counted:\n%s", out.String())
	}
	if err := errors.Join(printBlob(io.Discard, all[0]), printBlobs(&out, nil)); err != nil || !strings.Contains(out.String(), "no blobs are kept") {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]bool{"sha256:" + hex[:3]: true, hex[:3]: true, "url:": false, "": false, hex + "0": false, "sha": true} {
		if got := beginsWith(all[0].Digest, name); got != want {
			t.Errorf("%q begins %s: %v", name, all[0].Digest, got)
		}
	}
}
