package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/origin"
	"skimmer/internal/testkit"
)

// webServer serves one file, which may change, and counts what it sent.
type webServer struct {
	*httptest.Server
	sent atomic.Int64

	mu      sync.Mutex // guards the rest
	content []byte
	etag    string
	cut     int64 // bodies end after so many bytes; 0: never
	header  http.Header
}

func newWebServer(t *testing.T, content []byte, etag string) *webServer {
	s := &webServer{content: content, etag: etag}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *webServer) set(content []byte, etag string, cut int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content, s.etag, s.cut = content, etag, cut
}

func (s *webServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	content, etag, cut := s.content, s.etag, s.cut
	s.header = req.Header
	s.mu.Unlock()
	if req.URL.Path != "/dir/file" {
		http.NotFound(w, req)
		return
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	http.ServeContent(countingWriter{w, s, cut}, req, "", time.Time{}, bytes.NewReader(content))
}

type countingWriter struct {
	http.ResponseWriter
	s   *webServer
	cut int64
}

func (c countingWriter) Write(p []byte) (int, error) {
	if c.cut > 0 && int64(len(p)) > c.cut {
		_, _ = c.ResponseWriter.Write(p[:c.cut])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.s.sent.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// fetch reads a part of a file through the peer.
func fetch(t *testing.T, open func(context.Context, FileName, Part) (*File, error), name FileName, part Part) ([]byte, *File, error) {
	t.Helper()
	f, err := open(t.Context(), name, part)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	p, err := io.ReadAll(f)
	return p, f, err
}

func TestFileThroughThePeer(t *testing.T) {
	var log lockedBuffer
	_, c := start(t, func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	content := blobtest.Bytes(1, 3<<20+5)
	srv := newWebServer(t, content, `"v1"`)
	name := FileName{URL: srv.URL + "/dir/file?signature=secret", Header: http.Header{"Authorization": {"Bearer secret"}}}

	got, f, err := fetch(t, c.OpenFile, name, Part{})
	if err != nil || !bytes.Equal(got, content) || f.Size != int64(len(content)) || f.Digest.Algorithm() != blob.AlgorithmURL {
		t.Fatalf("%d bytes, %+v, %v", len(got), f, err)
	}
	if n := f.Traffic.Origin.Load(); n != f.Size || f.Traffic.Local.Load() != 0 {
		t.Errorf("%d bytes are said to come from the origin, %d from here", n, f.Traffic.Local.Load())
	}
	if srv.header.Get("Authorization") != "Bearer secret" {
		t.Error("the header was not sent along")
	}
	// Again: only asked whether it is still the same.
	sent := srv.sent.Load()
	got, f, err = fetch(t, c.OpenFile, name, Part{})
	if err != nil || !bytes.Equal(got, content) || f.Traffic.Local.Load() != f.Size || srv.sent.Load() > sent+1 {
		t.Errorf("again: %d bytes, %d from here, %d from the server, %v", len(got), f.Traffic.Local.Load(), srv.sent.Load()-sent, err)
	}
	got, f, err = fetch(t, c.OpenFile, name, Part{Off: 100, Len: 1000})
	if err != nil || !bytes.Equal(got, content[100:1100]) || f.Range != (blob.Range{Off: 100, Len: 1000}) {
		t.Errorf("range: %d bytes, %+v, %v", len(got), f, err)
	}
	old := f.Digest
	got, _, err = fetch(t, c.OpenFile, name, Part{Off: f.Size - 10, IfDigest: old})
	if err != nil || !bytes.Equal(got, content[len(content)-10:]) {
		t.Errorf("end: %d bytes, %v", len(got), err)
	}
	if _, _, err = fetch(t, c.OpenFile, name, Part{Off: f.Size}); !errors.Is(err, blob.Invalid) {
		t.Errorf("behind the end: %v", err)
	}

	young := blobtest.Bytes(2, 1<<20)
	srv.set(young, `"v2"`, 0)
	got, f, err = fetch(t, c.OpenFile, name, Part{Off: 100, IfDigest: old})
	if err != nil || !bytes.Equal(got, young) || f.Digest == old {
		t.Errorf("after it changed: %d bytes, %+v, %v", len(got), f, err)
	}
	// The same content, known by its digest, with nobody to ask.
	known := FileName{URL: name.URL, Digest: digest.FromBytes(young)}
	if got, _, err = fetch(t, c.OpenFile, known, Part{}); err != nil || !bytes.Equal(got, young) {
		t.Errorf("with a digest: %d bytes, %v", len(got), err)
	}
	srv.Close()
	if got, _, err = fetch(t, c.OpenFile, known, Part{}); err != nil || !bytes.Equal(got, young) {
		t.Errorf("with a digest and no server: %d bytes, %v", len(got), err)
	}
	if text := log.String(); !strings.Contains(text, `msg="download task succeeded"`) || !strings.Contains(text, "task_id="+old.String()) ||
		!strings.Contains(text, "origin=3145733") || strings.Contains(text, "secret") {
		t.Errorf("logged:\n%s", text)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestFileErrors has the same failures with a peer and without.
func TestFileErrors(t *testing.T) {
	p, c := start(t, nil)
	content := blobtest.Bytes(1, 1<<20)
	srv := newWebServer(t, content, `"v1"`)
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", content)
	for i, open := range []func(context.Context, FileName, Part) (*File, error){c.OpenFile, NewFiles(p.origin, t.TempDir(), p.log).OpenFile} {
		url := srv.URL + "/dir/file"
		for _, test := range []struct {
			name FileName
			part Part
			kind blob.Kind
			text string
		}{
			{FileName{URL: srv.URL + "/none"}, Part{}, blob.NotFound, "404"},
			{FileName{URL: "ftp://x/y"}, Part{}, blob.Invalid, "scheme"},
			{FileName{}, Part{}, blob.Invalid, "scheme"},
			{FileName{URL: url}, Part{Off: 1 << 20}, blob.Invalid, "not in its 1048576 bytes"},
			{FileName{URL: url, Digest: digest.FromString("else")}, Part{}, blob.Corrupt, "digest"},
			{FileName{URL: "oci://" + reg.Host() + "/some/repo"}, Part{}, blob.Invalid, "no digest"},
			{FileName{URL: "oci://" + reg.Host() + "/some/repo@" + digest.FromString("none").String()}, Part{}, blob.NotFound, "404"},
			{FileName{URL: "oci://" + ref.String(), Digest: digest.FromString("else")}, Part{}, blob.Invalid, "another"},
		} {
			_, _, err := fetch(t, open, test.name, test.part)
			if blob.KindOf(err) != test.kind || !strings.Contains(fmt.Sprint(err), test.text) {
				t.Errorf("%d: %+v: %v, want kind %v and %q", i, test.name, err, test.kind, test.text)
			}
		}
		got, f, err := fetch(t, open, FileName{URL: "oci://" + ref.String()}, Part{Off: 5, Len: 10})
		if err != nil || !bytes.Equal(got, content[5:15]) || f.Digest != ref.Digest {
			t.Errorf("%d: blob of a registry: %d bytes, %v", i, len(got), err)
		}
		// What fails midway says why.
		srv.set(content, `"v2"`, 1000)
		_, _, err = fetch(t, open, FileName{URL: url, Tag: "cut"}, Part{})
		if blob.KindOf(err) != blob.Unavailable || !strings.Contains(fmt.Sprint(err), "early") {
			t.Errorf("%d: cut short: %v", i, err)
		}
		srv.set(content, `"v1"`, 0)
	}
}

// TestUniqueFilesAreNotKept has a server that names no version.
func TestUniqueFilesAreNotKept(t *testing.T) {
	_, c := start(t, nil)
	content := blobtest.Bytes(1, 1<<20)
	srv := newWebServer(t, content, "")
	for range 2 {
		got, f, err := fetch(t, c.OpenFile, FileName{URL: srv.URL + "/dir/file"}, Part{})
		if err != nil || !bytes.Equal(got, content) || !f.Unique || f.Traffic.Origin.Load() != f.Size {
			t.Errorf("%d bytes, %+v, %v", len(got), f, err)
		}
	}
	if all, err := c.Blobs(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("kept %v, %v", all, err)
	}
}

func TestBlobsOverTheControlSocket(t *testing.T) {
	p, c := start(t, nil)
	content := blobtest.Bytes(1, 1<<20)
	srv := newWebServer(t, content, `"v1"`)
	_, f, err := fetch(t, c.OpenFile, FileName{URL: srv.URL + "/dir/file?x=secret"}, Part{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.Blobs(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	want := BlobStatus{Digest: f.Digest, Size: 1 << 20, Present: 1 << 20, Complete: true, MediaType: "application/octet-stream", URL: srv.URL + "/dir/file"}
	s := all[0]
	s.LastUsed, s.MediaType = time.Time{}, "application/octet-stream"
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s, err := c.Blob(t.Context(), f.Digest); err != nil || s.Digest != f.Digest {
		t.Errorf("stat: %+v, %v", s, err)
	}

	release := p.store.Pin(f.Digest)
	if err := c.RemoveBlob(t.Context(), f.Digest); !errors.Is(err, blob.Busy) || !strings.Contains(err.Error(), "an image") {
		t.Errorf("remove what is pinned: %v", err)
	}
	release()
	b, err := p.store.Local().Open(t.Context(), blob.Ref{Digest: f.Digest, Size: blob.SizeUnknown})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveBlob(t.Context(), f.Digest); !errors.Is(err, blob.Busy) || !strings.Contains(err.Error(), "being read") {
		t.Errorf("remove what is open: %v", err)
	}
	b.Close()
	if err := c.RemoveBlob(t.Context(), f.Digest); err != nil {
		t.Errorf("remove: %v", err)
	}
	for _, err := range []error{c.RemoveBlob(t.Context(), f.Digest), func() error { _, err := c.Blob(t.Context(), f.Digest); return err }()} {
		if !errors.Is(err, blob.NotFound) {
			t.Errorf("when it is gone: %v", err)
		}
	}
	if _, err := c.Blob(t.Context(), "../x"); !errors.Is(err, blob.Invalid) {
		t.Errorf("no digest: %v", err)
	}
}

// TestFileServer asks as any HTTP client does.
func TestFileServer(t *testing.T) {
	p, _ := start(t, nil)
	content := blobtest.Bytes(1, 1000)
	srv := newWebServer(t, content, `"v1"`)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.cfg.Socket)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	ask := func(method, url string, header http.Header) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://peer"+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, body
	}
	url := "/v1/file?url=" + srv.URL + "/dir/file"
	resp, body := ask(http.MethodGet, url, http.Header{})
	etag := resp.Header.Get("ETag")
	if resp.StatusCode != 200 || !bytes.Equal(body, content) || resp.ContentLength != 1000 || resp.Header.Get("Accept-Ranges") != "bytes" || etag == "" {
		t.Errorf("whole: %v, %d bytes", resp, len(body))
	}
	if resp, _ = ask(http.MethodHead, url, http.Header{"Range": {"bytes=1-2"}}); resp.StatusCode != 206 || resp.ContentLength != 2 {
		t.Errorf("head: %v", resp)
	}
	for _, c := range []struct {
		ranges, ifRange string
		status          int
		want            string
	}{
		{"bytes=0-9", "", 206, "bytes 0-9/1000"}, {"bytes=-5", "", 206, "bytes 995-999/1000"}, {"bytes=990-", etag, 206, "bytes 990-999/1000"},
		{"bytes=0-9", `"x"`, 200, ""}, {"bytes=0-1,5-6", "", 200, ""}, {"bytes=1000-", "", 416, "bytes */1000"}, {"lines=1-2", "", 200, ""},
	} {
		h := http.Header{"Range": {c.ranges}}
		if c.ifRange != "" {
			h.Set("If-Range", c.ifRange)
		}
		resp, _ := ask(http.MethodGet, url, h)
		if resp.StatusCode != c.status || resp.Header.Get("Content-Range") != c.want {
			t.Errorf("%+v: %v", c, resp)
		}
	}
	resp, body = ask(http.MethodGet, url, http.Header{headerForward: {"Range: bytes=0-1"}})
	var failure errorBody
	if err := json.Unmarshal(body, &failure); err != nil || resp.StatusCode != 400 || failure.Kind != blob.Invalid.Error() {
		t.Errorf("a header that cannot be chosen: %v, %s", resp, body)
	}
}

func FuzzParseFileRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=-5", "bytes=5-", "bytes=0-1,2-3", "bytes=9-8", "bytes=-0", "bytes=-", "bytes=9223372036854775807-", "bytes=+1-2"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, value string, size int64) {
		if size < 0 {
			size = 0
		}
		r, status := parseFileRange(value, size)
		if err := r.Check(size); err != nil {
			t.Errorf("%q of %d: %v", value, size, err)
		}
		if status == http.StatusPartialContent && r.Len == 0 || status == http.StatusOK && r.Len != size {
			t.Errorf("%q of %d: %v with status %d", value, size, r, status)
		}
	})
}

// TestFilesConform checks that Files is a Source like others where the bytes come
// from a registry.
func TestFilesConform(t *testing.T) {
	if testing.Short() {
		t.Skip("origin's own test is the same but for a hop")
	}
	blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
		reg := testkit.NewRegistry(t, testkit.Options{})
		var refs []blob.Ref
		for _, p := range contents {
			refs = append(refs, reg.AddBlob("some/repo", p))
		}
		o, err := origin.New(origin.Config{Retries: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { o.Close() })
		return NewFiles(o, t.TempDir(), slog.New(slog.DiscardHandler)), refs
	})
}
