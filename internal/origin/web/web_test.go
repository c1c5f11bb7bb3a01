package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// byDigest gives references the URL that the server has their digest at.
type byDigest struct {
	*Source
	base string
}

func (s byDigest) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	ref.URL = s.base + "/" + ref.Digest.String()
	return s.Source.Open(ctx, ref)
}

func TestConforms(t *testing.T) {
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, habit := range map[string]file{
		"etag":            {etag: `"v1"`},
		"modified":        {modified: modified},
		"no ranges":       {etag: `"v1"`, noRanges: true},
		"no length":       {etag: `"v1"`, noLength: true},
		"nothing at all":  {noLength: true},
		"no version":      {},
		"weak and whole":  {etag: `W/"v1"`, noRanges: true},
		"short, in parts": {etag: `"v1"`, cut: 3 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "etag" && name != "no ranges" {
				t.Skip("one server of each sort")
			}
			blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				srv := newServer(t)
				var refs []blob.Ref
				for _, p := range contents {
					f := habit
					f.content = p
					d := digest.FromBytes(p)
					srv.put("/"+d.String(), f)
					refs = append(refs, blob.Ref{Digest: d, Size: int64(len(p))})
				}
				return byDigest{newSource(t), srv.URL}, refs
			})
		})
	}
}

func TestIdentityFollowsTheVersion(t *testing.T) {
	srv, s := newServer(t), newSource(t)
	content := blobtest.Bytes(1, 5000)
	url := srv.put("/dir/file?x=1", file{})
	srv.put("/dir/file", file{content: content, etag: `"v1"`})

	first, meta := mustResolve(t, s, url, Options{})
	if first.Size != 5000 || first.Digest.Algorithm() != blob.AlgorithmURL || !meta.Ranges || meta.Unique || meta.ETag != `"v1"` {
		t.Errorf("resolved to %v of %d bytes, %+v", first, first.Size, meta)
	}
	again, _ := mustResolve(t, newSource(t), url, Options{})
	if again != first {
		t.Errorf("the same version is %v, then %v", first, again)
	}
	if got, err := readAll(t.Context(), s, first); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read: %d bytes, %v", len(got), err)
	}
	if strings.Contains(first.String(), "x=1") {
		t.Errorf("%v shows the query", first)
	}

	tagged, _ := mustResolve(t, s, url, Options{Tag: "a b&c"})
	if tagged.Digest == first.Digest {
		t.Error("a tag makes no difference")
	}
	if got, err := readAll(t.Context(), s, tagged); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read with a tag: %d bytes, %v", len(got), err)
	}
	known, _ := mustResolve(t, s, url, Options{Tag: "x", Digest: digest.FromBytes(content)})
	if known.Digest != digest.FromBytes(content) {
		t.Errorf("with a digest: %v", known)
	}
	if got, err := readAll(t.Context(), s, known); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read with a digest: %d bytes, %v", len(got), err)
	}
	wrong, _ := mustResolve(t, s, url, Options{Digest: digest.FromString("something else")})
	_, err := readAll(t.Context(), s, wrong)
	wantErr(t, err, blob.Corrupt, "does not have the digest")

	srv.put("/dir/file", file{content: content, etag: `"v2"`})
	if next, _ := mustResolve(t, s, url, Options{}); next.Digest == first.Digest {
		t.Error("another version has the same identity")
	}
}

// TestChangesAreNeverMixed changes a file between the requests for its parts.
func TestChangesAreNeverMixed(t *testing.T) {
	old, young := blobtest.Bytes(1, 100_000), blobtest.Bytes(2, 100_000)
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		before, after file
		digest        bool
	}{
		"etag":              {file{content: old, etag: `"v1"`}, file{content: young, etag: `"v2"`}, false},
		"weak etag":         {file{content: old, etag: `W/"v1"`}, file{content: young, etag: `W/"v2"`}, false},
		"time":              {file{content: old, modified: modified}, file{content: young, modified: modified.Add(time.Second)}, false},
		"length":            {file{content: old, modified: modified}, file{content: young[:90_000], modified: modified}, false},
		"etag ends":         {file{content: old, etag: `"v1"`}, file{content: young}, false},
		"smaller":           {file{content: old, etag: `"v1"`}, file{content: young[:5], etag: `"v2"`}, false},
		"with a digest":     {file{content: old, etag: `"v1"`}, file{content: young, etag: `"v2"`}, true},
		"ranges end, too":   {file{content: old, etag: `"v1"`}, file{content: young, etag: `"v2"`, noRanges: true}, false},
		"digest, no ranges": {file{content: old, etag: `"v1"`}, file{content: young, etag: `"v2"`, noRanges: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			srv, s := newServer(t), newSource(t)
			var o Options
			if c.digest {
				o.Digest = digest.FromBytes(old)
			}
			ref, _ := mustResolve(t, s, srv.put("/file", c.before), o)
			b, err := s.Open(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if got, err := readRange(t.Context(), b, blob.Range{Off: 10, Len: 50}); err != nil || !bytes.Equal(got, old[10:60]) {
				t.Fatalf("before: %d bytes, %v", len(got), err)
			}
			srv.put("/file", c.after)
			got, err := readRange(t.Context(), b, blob.Range{Off: 1000, Len: 50_000})
			wantErr(t, err, blob.Corrupt, "changed at the origin")
			if len(got) > 0 {
				t.Errorf("%d bytes were delivered", len(got))
			}
		})
	}
}

// TestChangeInsideARead changes the file when a part of it was delivered and
// the rest is asked for again.
func TestChangeInsideARead(t *testing.T) {
	for _, whole := range []bool{false, true} {
		srv, s := newServer(t), newSource(t)
		old, young := blobtest.Bytes(1, 100_000), blobtest.Bytes(2, 100_000)
		ref, _ := mustResolve(t, s, srv.put("/file", file{content: old, etag: `"v1"`, cut: 40_000, noRanges: whole}), Options{})
		srv.mu.Lock()
		srv.before = func(_ http.ResponseWriter, _ *http.Request, n int) bool {
			if n == 3 {
				srv.put("/file", file{content: young, etag: `"v2"`, noRanges: whole})
			}
			return false
		}
		srv.mu.Unlock()
		got, err := readAll(t.Context(), s, ref)
		wantErr(t, err, blob.Corrupt, "changed at the origin")
		if !bytes.HasPrefix(old, got) {
			t.Errorf("whole %v: bytes of the new version were delivered", whole)
		}
	}
}

// TestNoVersion has a server that says nothing by which versions could be told
// apart.
func TestNoVersion(t *testing.T) {
	srv, s := newServer(t), newSource(t)
	content := blobtest.Bytes(1, 300_000)
	url := srv.put("/file", file{content: content})
	ref, meta := mustResolve(t, s, url, Options{})
	other, _ := mustResolve(t, s, url, Options{})
	if !meta.Unique || ref.Digest == other.Digest {
		t.Errorf("two downloads share an identity: %v, %v", ref, other)
	}
	b, err := s.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	asked := len(srv.asked())
	for off := int64(0); off < 300_000; off += 50_000 {
		got, err := readRange(t.Context(), b, blob.Range{Off: off, Len: 50_000})
		if err != nil || !bytes.Equal(got, content[off:off+50_000]) {
			t.Errorf("at %d: %d bytes, %v", off, len(got), err)
		}
		srv.put("/file", file{content: blobtest.Bytes(uint64(off)+5, 300_000)}) // nobody can notice
	}
	if n := len(srv.asked()); n > asked+1 {
		t.Errorf("%d requests for parts that may be of different versions", n-asked)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	_, err = readAll(t.Context(), s, ref)
	wantErr(t, err, blob.NotFound, "names no version")

	// Nor may an interrupted answer be continued.
	srv.put("/file", file{content: content, cut: 100_000})
	ref, _ = mustResolve(t, s, url, Options{})
	got, err := readAll(t.Context(), s, ref)
	wantErr(t, err, blob.Unavailable, "names no version")
	if !bytes.Equal(got, content[:len(got)]) {
		t.Error("wrong bytes")
	}
	if n := len(s.spools); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
}

// TestNoRangesIsOneDownload reads parts of a file in any order from a server
// that sends it whole.
func TestNoRangesIsOneDownload(t *testing.T) {
	for name, f := range map[string]file{"no ranges": {etag: `"v1"`, noRanges: true}, "no length": {etag: `"v1"`, noLength: true}} {
		t.Run(name, func(t *testing.T) {
			srv, s := newServer(t), newSource(t)
			f.content = blobtest.Bytes(1, 2<<20)
			ref, meta := mustResolve(t, s, srv.put("/file", f), Options{})
			if meta.Ranges || f.noLength != (ref.Size == blob.SizeUnknown) {
				t.Errorf("resolved to %d bytes, %+v", ref.Size, meta)
			}
			b, err := s.Open(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for _, r := range []blob.Range{{Off: 1 << 20, Len: 1000}, {Off: 5, Len: 5}, {Off: 2<<20 - 7, Len: 7}, {Off: 100, Len: 1 << 20}} {
				if got, err := readRange(t.Context(), b, r); err != nil || !bytes.Equal(got, f.content[r.Off:r.End()]) {
					t.Errorf("range %v: %d bytes, %v", r, len(got), err)
				}
			}
			// To resolve, to find out, and to fetch.
			if n := len(srv.asked()); n > 4 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestEmptyFile(t *testing.T) {
	for _, f := range []file{{etag: `"v1"`}, {etag: `"v1"`, noRanges: true}, {}, {noLength: true}} {
		srv, s := newServer(t), newSource(t)
		f.content = []byte{}
		ref, _ := mustResolve(t, s, srv.put("/file", f), Options{})
		if got, err := readAll(t.Context(), s, ref); err != nil || len(got) != 0 {
			t.Errorf("%+v: %q, %v", f, got, err)
		}
	}
}

func TestRetries(t *testing.T) {
	srv, s := newServer(t), newSource(t)
	content := blobtest.Bytes(1, 100_000)
	url := srv.put("/file", file{content: content, etag: `"v1"`})
	srv.before = func(w http.ResponseWriter, _ *http.Request, n int) bool {
		if n%2 == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return n%2 == 1
	}
	ref, _ := mustResolve(t, s, url, Options{})
	if got, err := readAll(t.Context(), s, ref); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	srv.mu.Lock()
	srv.before = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	}
	srv.mu.Unlock()
	_, _, err := s.Resolve(t.Context(), url, Options{})
	wantErr(t, err, blob.Unavailable, "500 Internal Server Error (after 5 attempts)")
}

func TestStatuses(t *testing.T) {
	srv, s := newServer(t), newSource(t)
	for status, kind := range map[int]blob.Kind{404: blob.NotFound, 410: blob.NotFound, 401: blob.Unauthorized, 403: blob.Forbidden, 429: blob.Busy, 400: blob.Invalid, 503: blob.Unavailable} {
		srv.mu.Lock()
		srv.before = func(w http.ResponseWriter, _ *http.Request, _ int) bool { w.WriteHeader(status); return true }
		srv.mu.Unlock()
		_, _, err := s.Resolve(t.Context(), srv.URL+"/x?sig=secret", Options{})
		wantErr(t, err, kind, fmt.Sprint(status))
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("the query is shown: %v", err)
		}
	}
}

// TestHeaders redirects to another host, whom credentials are none of the
// business.
func TestHeaders(t *testing.T) {
	there, here, s := newServer(t), newServer(t), newSource(t)
	content := blobtest.Bytes(1, 100_000)
	// A port of its own is another origin.
	url := there.put("/file", file{content: content, etag: `"v1"`})
	here.before = func(w http.ResponseWriter, req *http.Request, _ int) bool {
		switch {
		case req.Header.Get("Private-Token") != "secret":
			w.WriteHeader(http.StatusForbidden)
		case req.URL.Path == "/start":
			http.Redirect(w, req, "/next", http.StatusFound)
		default:
			http.Redirect(w, req, url, http.StatusTemporaryRedirect)
		}
		return true
	}
	_, _, err := s.Resolve(t.Context(), here.URL+"/start", Options{})
	wantErr(t, err, blob.Forbidden, "403")

	h := http.Header{"Private-Token": {"secret"}, "Authorization": {"Bearer secret"}, "Cookie": {"a=secret"}, "Accept-Language": {"la"}}
	ctx := WithHeader(t.Context(), h)
	ref, _, err := s.Resolve(ctx, here.URL+"/start", Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for off := int64(0); off < 100_000; off += 50_000 {
		// What was given to Open counts.
		if got, err := readRange(t.Context(), b, blob.Range{Off: off, Len: 50_000}); err != nil || !bytes.Equal(got, content[off:off+50_000]) {
			t.Errorf("at %d: %d bytes, %v", off, len(got), err)
		}
	}
	if len(there.asked()) != 3 {
		t.Errorf("%d requests", len(there.asked()))
	}
	for _, req := range there.asked() {
		if text := fmt.Sprint(req.Header); strings.Contains(text, "secret") || req.Header.Get("Accept-Language") != "la" || req.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("the other host was sent %v", text)
		}
	}
	if n := len(here.asked()); n != 1+2+2 {
		t.Errorf("%d requests to who only redirects: it should not be asked for each part", n)
	}

	// When the other host does not have it any more, the first one knows.
	there.mu.Lock()
	delete(there.files, "/file")
	there.mu.Unlock()
	url = there.put("/moved", file{content: content, etag: `"v1"`})
	if got, err := readRange(t.Context(), b, blob.Range{Off: 5, Len: 500}); err != nil || !bytes.Equal(got, content[5:505]) {
		t.Errorf("after it moved: %d bytes, %v", len(got), err)
	}
}

func TestEncodedContentIsNotUnpacked(t *testing.T) {
	srv, s := newServer(t), newSource(t)
	packed := []byte("\x1f\x8b these bytes claim to be gzip")
	url := srv.put("/file.gz", file{content: packed, etag: `"v1"`})
	srv.before = func(w http.ResponseWriter, req *http.Request, _ int) bool {
		if req.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("encodings %q are asked for", req.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Encoding", "gzip")
		return false
	}
	ref, _ := mustResolve(t, s, url, Options{})
	if got, err := readAll(t.Context(), s, ref); err != nil || !bytes.Equal(got, packed) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSpoolEndsWithItsReaders(t *testing.T) {
	srv, s := newServer(t), newSource(t)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	url := srv.put("/file", file{content: blobtest.Bytes(1, 1000)})
	ref, _ := mustResolve(t, s, url, Options{})
	srv.before = func(w http.ResponseWriter, req *http.Request, _ int) bool {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write(blobtest.Bytes(1, 1000)[:10])
		w.(http.Flusher).Flush()
		select {
		case <-hang:
		case <-req.Context().Done():
		}
		return true
	}
	b, err := s.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readRange(t.Context(), b, blob.Range{Off: 3, Len: 7}); err != nil || len(got) != 7 {
		t.Errorf("what has arrived: %d bytes, %v", len(got), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	rc, err := b.ReadRange(ctx, blob.Range{Off: 10, Len: 10})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	cancel()
	if _, err := rc.Read(make([]byte, 1)); !errors.Is(err, blob.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	rc.Close() // returns, so the fetch has ended
	if n := len(s.spools); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
}
