package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/origin"
	"skimmer/internal/testkit"
)

// get makes a request with header lines "Name: value".
func (w *world) get(t *testing.T, path string, header ...string) answered {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, w.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range header {
		k, v, _ := strings.Cut(line, ": ")
		req.Header.Add(k, v)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answered{resp, body, err}
}

// flawed is a Source with a flaw: reads fail, or bring wrong bytes, from an
// offset on.
type flawed struct {
	blob.Source
	open error
	at   int64
	fail error // nil: bytes are wrong
}

type flawedBlob struct {
	blob.Blob
	f *flawed
}

func (f *flawed) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if f.open != nil {
		return nil, f.open
	}
	b, err := f.Source.Open(ctx, ref)
	return struct{ blob.Blob }{flawedBlob{b, f}}, err // no MultiReader: ranges are read one by one
}

func (b flawedBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := b.Blob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	return &flawedReader{rc, b.f, r.Off}, nil
}

type flawedReader struct {
	io.ReadCloser
	f   *flawed
	off int64
}

func (r *flawedReader) Read(p []byte) (int, error) {
	if r.f.fail != nil {
		if r.off >= r.f.at {
			return 0, r.f.fail
		}
		p = p[:min(int64(len(p)), r.f.at-r.off)]
	}
	n, err := r.ReadCloser.Read(p)
	if i := r.f.at - r.off; r.f.fail == nil && i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	r.off += int64(n)
	return n, err
}

// TestSourceFails has the node's path of a byte fail in each way: clients get
// the right bytes, or a broken connection.
func TestSourceFails(t *testing.T) {
	const size = 300_000
	content := blobtest.Bytes(7, size)
	broken := blob.Errorf(blob.Unavailable, "the swarm is gone")
	for _, c := range []struct {
		name  string
		flaw  flawed
		rng   string
		want  []byte // nil: the answer breaks off
		count func(*Stats) int64
	}{
		{"open, whole", flawed{open: broken}, "", content, fallbacks},
		{"open, part", flawed{open: broken}, "bytes=10-19", content[10:20], fallbacks},
		{"open, invalid", flawed{open: blob.Errorf(blob.Invalid, "no")}, "bytes=10-19", content[10:20], fallbacks},
		{"first byte, whole", flawed{fail: broken}, "", content, fallbacks},
		{"first byte, part", flawed{fail: broken}, "bytes=10-", content[10:], fallbacks},
		{"canceled by somebody else", flawed{fail: context.Canceled}, "bytes=10-", content[10:], fallbacks},
		{"middle, whole", flawed{at: 200_000, fail: broken}, "", content, resumed},
		{"middle, part", flawed{at: 200_000, fail: broken}, "bytes=10-", content[10:], resumed},
		{"early end", flawed{at: 200_000, fail: io.EOF}, "bytes=10-", content[10:], resumed},
		{"middle of several", flawed{at: 200_000, fail: broken}, "bytes=0-9,100-109,199990-200009,250000-250009", content[250_000:250_010], resumed},
		{"wrong, whole", flawed{at: 200_000}, "", nil, failures},
		{"wrong in the first byte, whole", flawed{at: 0}, "", nil, failures},
		{"wrong in the last byte, whole", flawed{at: size - 1}, "", nil, failures},
		{"wrong, whole as a range", flawed{at: 5}, "bytes=0-", nil, failures},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := testkit.NewRegistry(t, testkit.Options{Redirect: true})
			ref := reg.AddBlob("some/repo", content)
			w := newWorld(t, reg, func(cfg *Config) {
				c.flaw.Source = cfg.Origin
				cfg.Source = &c.flaw
			})
			var header []string
			if c.rng != "" {
				header = []string{"Range: " + c.rng, `If-Range: "` + ref.Digest.String() + `"`}
			}
			got := w.get(t, "/v2/some/repo/blobs/"+ref.Digest.String(), header...)
			switch {
			case c.want == nil:
				if got.err == nil || len(got.body) >= size {
					t.Errorf("wrong bytes were completed: %d bytes, %v", len(got.body), got.err)
				}
			case got.err != nil:
				t.Errorf("body ended with %v after %d bytes", got.err, len(got.body))
			case strings.Contains(c.rng, ","):
				if !bytes.Contains(got.body, c.want) || !bytes.Contains(got.body, content[199_990:200_010]) {
					t.Error("parts are missing")
				}
			case !bytes.Equal(got.body, c.want):
				t.Errorf("%s, %d bytes, want %d", got.Status, len(got.body), len(c.want))
			}
			if n := c.count(w.Stats()); n != 1 {
				t.Errorf("counted %d times, want once: failed %d, fallbacks %d, resumed %d", n, failures(w.Stats()), fallbacks(w.Stats()), resumed(w.Stats()))
			}
		})
	}
}

func fallbacks(s *Stats) int64 { return s.Fallbacks.Load() }
func resumed(s *Stats) int64   { return s.Resumed.Load() }
func failures(s *Stats) int64  { return s.Failed.Load() }

// TestUpstreamFails: both ways are closed. What comes is the upstream's answer,
// or an error of the specification.
func TestUpstreamFails(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100_000))
	path := "/v2/some/repo/blobs/" + ref.Digest.String()
	w := newWorld(t, reg, nil)
	reg.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.Reset})
	if got := w.get(t, path); got.StatusCode != http.StatusBadGateway || !strings.Contains(string(got.body), `"code":"UNAVAILABLE"`) {
		t.Errorf("%s, %d bytes", got.Status, len(got.body))
	}
	reg.ClearFaults()
	if got := w.get(t, path, "Range: bytes=0-0"); got.StatusCode != http.StatusPartialContent {
		t.Fatal(got.Status)
	}
	// Its beginning is held now, and sent before anything is known of the rest.
	for _, fault := range []testkit.Fault{{Do: testkit.Reset}, {Do: testkit.ShortBody, After: 20_000}, {Do: testkit.Status, Status: 500}} {
		fault.On = testkit.BlobGet
		reg.ClearFaults()
		reg.Inject(fault)
		if got := w.get(t, path); got.err == nil || len(got.body) >= 100_000 {
			t.Errorf("%+v: a body that ends early was completed: %s, %d bytes", fault, got.Status, len(got.body))
		}
	}
}

// TestWrongPassed: neither the node nor the upstream has the right bytes.
func TestWrongPassed(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 200_000))
	w := newWorld(t, reg, func(cfg *Config) { cfg.Source = &flawed{open: blob.Errorf(blob.Full, "no room")} })
	for _, at := range []int64{0, 100_000, 199_999} {
		reg.ClearFaults()
		reg.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.CorruptBody, After: at})
		if got := w.get(t, "/v2/some/repo/blobs/"+ref.Digest.String()); got.err == nil || len(got.body) >= 200_000 {
			t.Errorf("byte %d is wrong, and the body was completed: %d bytes", at, len(got.body))
		}
	}
}

// TestUpstreamLies has an upstream say of itself what is not so.
func TestUpstreamLies(t *testing.T) {
	content := blobtest.Bytes(1, 1000)
	d := digest.FromBytes(content)
	head := make(http.Header)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.Contains(req.URL.Path, "/tags/"):
			_, _ = io.WriteString(w, `{"tags":[`+strings.Repeat(" ", 200_000))
			_ = http.NewResponseController(w).Flush() // its length is not known
			panic(http.ErrAbortHandler)
		case req.Method == http.MethodHead:
			for k, v := range head {
				w.Header()[k] = v
			}
		case req.Header.Get("Range") == "bytes=5-9":
			w.Header().Set("Content-Range", "bytes 5-9/*")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(content[5:10])
		default:
			_, _ = w.Write(content)
		}
	}))
	defer upstream.Close()
	path := "/v2/some/repo/blobs/" + d.String()
	for _, c := range []struct {
		name, value string
		status      int
	}{
		{"Docker-Content-Digest", digest.FromString("other").String(), http.StatusBadGateway},
		{"Docker-Content-Digest", "nonsense", http.StatusOK},
		{"Content-Length", "0", http.StatusOK},
		{"Content-Length", "999", http.StatusOK},
		{"Content-Length", "9223372036854775807", http.StatusOK},
		{"Content-Encoding", "gzip", http.StatusOK},
	} {
		clear(head)
		head.Set("Content-Length", "1000")
		head.Set(c.name, c.value)
		w := newWorld(t, nil, nil)
		got := w.get(t, path, "X-Dragonfly-Registry: "+upstream.URL)
		if got.StatusCode != c.status || got.err != nil || c.status == http.StatusOK && !bytes.Equal(got.body, content) {
			t.Errorf("%s: %s: %s, %d bytes, %v", c.name, c.value, got.Status, len(got.body), got.err)
		}
	}
	clear(head)
	head.Set("Content-Length", "1000")
	w := newWorld(t, nil, func(cfg *Config) { cfg.Source = &flawed{open: blob.Errorf(blob.Full, "no room")} })
	got := w.get(t, path, "X-Dragonfly-Registry: "+upstream.URL, "Range: bytes=5-9")
	if v := got.Header.Get("Content-Range"); v != "bytes 5-9/1000" || !bytes.Equal(got.body, content[5:10]) {
		t.Errorf("%s, Content-Range %q", got.Status, v)
	}
	if got := w.get(t, "/v2/some/repo/tags/list", "X-Dragonfly-Registry: "+upstream.URL); got.err == nil {
		t.Errorf("a list that breaks off was completed: %s %s", got.Status, got.body)
	}
}

// TestAskedOnce: who ask the same at the same time have it asked once.
func TestAskedOnce(t *testing.T) {
	a := newAccess(0, 0)
	q := question{who("x"), item{digest: digest.FromString("x")}}
	const n = 20
	var asks atomic.Int64
	begun, answer := make(chan struct{}), make(chan struct{})
	ask := func() (member, error) {
		asks.Add(1)
		close(begun)
		<-answer
		return member{size: 5}, nil
	}
	var wg sync.WaitGroup
	join := func() {
		if m, err := a.once(t.Context(), q, ask); m.size != 5 || err != nil {
			t.Errorf("%v, %v", m, err)
		}
	}
	wg.Go(join)
	<-begun
	// Who waits is seen by nobody: an answer that is there is not asked for again.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.once(gone, q, ask); blob.KindOf(err) != blob.Canceled {
		t.Errorf("a waiter that went away got %v", err)
	}
	for range n {
		wg.Go(join2(t, a, q))
	}
	close(answer)
	wg.Wait()
	if asks.Load() != 1 {
		t.Errorf("asked %d times", asks.Load())
	}
}

// join2 asks what may have been answered already.
func join2(t *testing.T, a *access, q question) func() {
	return func() {
		m, err := a.once(t.Context(), q, func() (member, error) { return member{size: 5}, nil })
		if m.size != 5 || err != nil {
			t.Errorf("%v, %v", m, err)
		}
	}
}

// TestAskedAgain: the one who asked went away, so the next one asks.
func TestAskedAgain(t *testing.T) {
	a := newAccess(0, 0)
	q := question{item: item{digest: digest.FromString("x")}}
	begun, answer := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := a.once(t.Context(), q, func() (member, error) {
			close(begun)
			<-answer
			return member{}, blob.Errorf(blob.Canceled, "gone")
		})
		if blob.KindOf(err) != blob.Canceled {
			t.Error(err)
		}
	})
	<-begun
	wg.Go(func() {
		m, err := a.once(t.Context(), q, func() (member, error) { return member{size: 7}, nil })
		if m.size != 7 || err != nil {
			t.Errorf("%v, %v", m, err)
		}
	})
	close(answer)
	wg.Wait()
}

func who(name string) reader { return reader{who: hash([]byte(strings.Repeat(name, 32)))} }

// TestSecrets pulls with a token and looks for it wherever the mirror writes.
func TestSecrets(t *testing.T) {
	for _, redirect := range []bool{false, true} {
		reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth, Users: map[string]string{"alice": "secret"}, Private: []string{"team/app"}, Redirect: redirect})
		image := reg.AddImage("team/app", "v1", blobtest.Bytes(1, 50_000))
		secret := token(t, reg, "team/app", "alice")
		var log bytes.Buffer
		dir := t.TempDir()
		w := newWorld(t, reg, func(cfg *Config) {
			cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			cfg.Dir = dir
			cfg.Prefetch = true
		})
		layer := digest.FromBytes(blobtest.Bytes(1, 50_000)).String()
		for _, path := range []string{"manifests/v1", "manifests/" + image.Digest.String(), "blobs/" + layer, "tags/list", "manifests/none"} {
			w.get(t, "/v2/team/app/"+path+"?signature="+secret, "Authorization: Bearer "+secret, "Range: bytes=1-5")
		}
		reg.Inject(testkit.Fault{On: testkit.BlobHead, Do: testkit.Reset})
		reg.Inject(testkit.Fault{On: testkit.ManifestGet, Do: testkit.Reset})
		w.get(t, "/v2/team/app/manifests/v2", "Authorization: Bearer "+secret)
		w.get(t, "/v2/team/app/blobs/"+image.Digest.String(), "Authorization: Bearer "+secret)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if text := log.String(); strings.Contains(text, secret) || strings.Contains(text, "X-Amz-Signature") || !strings.Contains(text, "mirror request failed") {
			t.Errorf("log: %s", text)
		}
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			p, err := os.ReadFile(path)
			if bytes.Contains(p, []byte(secret)) {
				t.Errorf("%s holds the token", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if n := reg.Stats().Leaks; n > 0 {
			t.Errorf("%d requests took the token to the storage server", n)
		}
	}
}

// TestLoop: a mirror that is named as its own upstream says so.
func TestLoop(t *testing.T) {
	w := newWorld(t, nil, nil)
	got := w.get(t, "/v2/some/repo/manifests/v1", "X-Dragonfly-Registry: "+w.url)
	if got.StatusCode != http.StatusLoopDetected {
		t.Errorf("%s %s", got.Status, got.body)
	}
	got = w.get(t, "/v2/some/repo/manifests/v1")
	if got.StatusCode != http.StatusBadRequest || !strings.Contains(string(got.body), "proxy.registryMirror.addr") {
		t.Errorf("%s %s", got.Status, got.body)
	}
}

// TestTwoMirrors: a mirror may be the upstream of another one.
func TestTwoMirrors(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 50_000))
	near, far := newWorld(t, nil, nil), newWorld(t, reg, nil)
	got := near.get(t, "/v2/some/repo/blobs/"+ref.Digest.String(), "X-Dragonfly-Registry: "+far.url)
	if got.StatusCode != http.StatusOK || digest.FromBytes(got.body) != ref.Digest {
		t.Errorf("%s, %d bytes", got.Status, len(got.body))
	}
}

// TestClientGoesAway: what nobody else wants is not read any more.
func TestClientGoesAway(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Faults: []testkit.Fault{{On: testkit.BlobGet, Do: testkit.HangBody, After: 20_000}}})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 1_000_000))
	ended := make(chan error, 1)
	w := newWorld(t, reg, func(cfg *Config) { cfg.Source = watched{cfg.Source, ended} })
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/v2/some/repo/blobs/"+ref.Digest.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 16<<10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the read ended with %v", err)
	}
	if n := w.Stats().Failed.Load(); n != 0 {
		t.Errorf("%d requests failed: that a client goes away is no failure", n)
	}
}

// watched tells how a read ended that does not end by itself.
type watched struct {
	blob.Source
	ended chan error
}

type watchedBlob struct {
	blob.Blob
	w watched
}

func (w watched) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := w.Source.Open(ctx, ref)
	return watchedBlob{b, w}, err
}

func (b watchedBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := b.Blob.ReadRange(ctx, r)
	return watchedReader{rc, b.w}, err
}

type watchedReader struct {
	io.ReadCloser
	w watched
}

func (r watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		select {
		case r.w.ended <- err:
		default:
		}
	}
	return n, err
}

func TestStatusesAreComplete(t *testing.T) {
	for _, k := range blob.Kinds() {
		s, ok := statuses[k]
		if !ok || s.status < 400 || s.code == "" {
			t.Errorf("%v has no answer", k)
		}
		w := &answer{ResponseWriter: httptest.NewRecorder()}
		writeError(w, httptest.NewRequest(http.MethodGet, "/", nil), blob.Errorf(k, "some error"))
		if w.status != s.status {
			t.Errorf("%v is answered with %d", k, w.status)
		}
	}
	if len(statuses) != len(blob.Kinds()) {
		t.Error("the table has kinds that there are not")
	}
}

// TestManyClients: however many ask at the same time, the registry is asked
// once whether each of them may, and sends each byte once; those who may not
// get nothing meanwhile.
func TestManyClients(t *testing.T) {
	const size, clients = 500_000, 20
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth, Users: map[string]string{"alice": "secret"}, Private: []string{"team/app"}})
	content := blobtest.Bytes(1, size)
	ref := reg.AddBlob("team/app", content)
	tokens := []string{token(t, reg, "team/app", "alice"), token(t, reg, "team/app", "alice"), token(t, reg, "team/app", ""), "wrong"}
	w := newWorld(t, reg, nil)
	reg.ResetStats()
	var wg sync.WaitGroup
	for i := range clients * len(tokens) {
		wg.Go(func() {
			who, off := i%len(tokens), int64(i*1000)
			got := w.get(t, "/v2/team/app/blobs/"+ref.Digest.String(), "Authorization: Bearer "+tokens[who], fmt.Sprintf("Range: bytes=%d-%d", off, off+99_999))
			switch {
			case who < 2 && !bytes.Equal(got.body, content[off:off+100_000]):
				t.Errorf("a client who may read got %s, %d bytes", got.Status, len(got.body))
			case who >= 2 && got.StatusCode != http.StatusUnauthorized:
				t.Errorf("a client who may not got %s", got.Status)
			}
		})
	}
	wg.Wait()
	s := reg.Stats()
	refused := s.Requests[testkit.BlobHead] - 2
	if sent := s.Bytes[ref.Digest]; sent > size || refused < 2 || refused > 2*clients || w.Stats().Fallbacks.Load() != 0 {
		t.Errorf("the registry sent %d bytes of %d, and was asked %d times by those who may not; fallbacks %d", sent, size, refused, w.Stats().Fallbacks.Load())
	}
}

// TestServeUpstream: the forward proxy says which registry is meant.
func TestServeUpstream(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 1000))
	w := newWorld(t, nil, nil)
	base, err := parseUpstream(reg.URL())
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, "http://"+reg.Host()+"/v2/some/repo/blobs/"+ref.Digest.String()+"?ns=elsewhere.example", nil)
	w.ServeUpstream(rec, req, base)
	if rec.Code != http.StatusOK || digest.FromBytes(rec.Body.Bytes()) != ref.Digest {
		t.Errorf("%d, %d bytes", rec.Code, rec.Body.Len())
	}
}

// TestServeUpstreamOtherwise has a client of the forward proxy that speaks plain
// HTTP with a registry of which the node was not told so.
func TestServeUpstreamOtherwise(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.BasicAuth, Users: map[string]string{"alice": "secret"}})
	content := blobtest.Bytes(1, 1000)
	ref := reg.AddBlob("some/repo", content)
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, reg.Host())
	}
	o, err := origin.New(origin.Config{Keychain: nobody{t}, Retries: -1, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close() }) // idle connections alone
	w := newWorld(t, nil, func(cfg *Config) { cfg.Origin, cfg.Source = o, o })
	base := &url.URL{Scheme: "http", Host: "registry.example"}
	for user, want := range map[string]int{"alice": http.StatusOK, "": http.StatusUnauthorized} {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, base.String()+"/v2/some/repo/blobs/"+ref.Digest.String(), nil)
		if user != "" {
			req.SetBasicAuth(user, "secret")
		}
		w.ServeUpstream(rec, req, base)
		if rec.Code != want || want == http.StatusOK && !bytes.Equal(rec.Body.Bytes(), content) {
			t.Errorf("as %q: %d, %d bytes, want %d", user, rec.Code, rec.Body.Len(), want)
		}
	}
	if w.Stats().Passed.Load() != 2 || len(w.access.members.byKey) != 0 {
		t.Errorf("%d requests were passed on, and %d blobs learned of", w.Stats().Passed.Load(), len(w.access.members.byKey))
	}
	// Paths that mean nothing are refused as ever.
	rec := httptest.NewRecorder()
	w.ServeUpstream(rec, httptest.NewRequest(http.MethodGet, base.String()+"/v2/some/repo/blobs/sha256:12", nil), base)
	if rec.Code != http.StatusBadRequest {
		t.Errorf("no digest: %d", rec.Code)
	}
}
