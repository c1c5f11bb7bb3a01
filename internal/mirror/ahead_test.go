package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
	"skimmer/internal/origin"
	"skimmer/internal/testkit"
)

// seen tells what was read of a source.
type seen struct {
	blob.Source
	reads chan string
}

type seenBlob struct {
	blob.Blob
	s   seen
	ref blob.Ref
}

func (s seen) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := s.Source.Open(ctx, ref)
	return seenBlob{b, s, ref}, err
}

func (b seenBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := b.Blob.ReadRange(ctx, r)
	return seenReader{rc, b.s, read(b.ref.Digest, r)}, err
}

type seenReader struct {
	io.ReadCloser
	s    seen
	what string
}

func (r seenReader) Close() error {
	r.s.reads <- r.what
	return r.ReadCloser.Close()
}

func read(d digest.Digest, r blob.Range) string { return d.Encoded()[:8] + " " + r.String() }

// lazyLayer returns a layer with a table of contents at toc.
func lazyLayer(seed uint64, size, toc int) []byte {
	p := blobtest.Bytes(seed, size)
	footer := p[size-51:]
	copy(footer, "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x00")
	copy(footer[16:], fmt.Sprintf("%016xSTARGZ", toc))
	return p
}

// addLazy adds an image whose layers promise a table of contents.
func addLazy(t *testing.T, reg *testkit.Registry, layers ...[]byte) (image blob.Ref, config digest.Digest) {
	t.Helper()
	c := []byte(`{"architecture":"amd64","os":"linux"}`)
	doc := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: reg.AddBlob("some/repo", c).Digest, Size: int64(len(c))},
	}
	for _, p := range layers {
		doc.Layers = append(doc.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: reg.AddBlob("some/repo", p).Digest, Size: int64(len(p)),
			Annotations: map[string]string{estargz.TOCDigestAnnotation: digest.FromString("toc").String()},
		})
	}
	data, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return reg.AddManifest("some/repo", "v1", ocispec.MediaTypeImageManifest, data), doc.Config.Digest
}

// expect waits for reads, in whatever order.
func (s seen) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for range want {
		select {
		case r := <-s.reads:
			got = append(got, r)
		case <-t.Context().Done():
			t.Fatalf("read %q, want %q", got, want)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}

// TestReadAhead: what a lazy client is going to ask for is asked for before, no
// more of it than the client has shown to want, and once.
func TestReadAhead(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.BasicAuth, Users: map[string]string{"alice": "secret"}})
	large, small, none := lazyLayer(1, 300_000, 234_567), lazyLayer(2, 1000, 500), blobtest.Bytes(3, 200_000)
	image, config := addLazy(t, reg, large, small, none)
	s := seen{reads: make(chan string, 100)}
	w := newWorld(t, reg, func(cfg *Config) { s.Source = cfg.Source; cfg.Source = s })
	alice := "Authorization: Basic YWxpY2U6c2VjcmV0"

	// Nothing is read for who may not.
	for _, path := range []string{"v1", image.Digest.String()} {
		if status := w.get(t, "/v2/some/repo/manifests/"+path).StatusCode; status != http.StatusUnauthorized {
			t.Errorf("anybody gets status %d", status)
		}
	}
	if n := len(s.reads); n != 0 {
		t.Errorf("%d reads for nobody", n)
	}
	// Who asks whether there is such an image gets its configuration next.
	whole := func(p []byte) string { return read(digest.FromBytes(p), blob.Range{Len: int64(len(p))}) }
	configured := read(config, blob.Range{Len: 37})
	req, err := http.NewRequest(http.MethodHead, w.url+"/v2/some/repo/manifests/v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("alice", "secret")
	if resp, err := w.client.Do(req); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("HEAD: %v, %v", resp, err)
	}
	s.expect(t, configured)

	ends := func(p []byte) []string {
		d, n := digest.FromBytes(p), int64(len(p))
		return []string{read(d, blob.Range{Len: headBytes}), read(d, blob.Range{Off: n - tailBytes, Len: tailBytes})}
	}
	before := slices.Concat([]string{configured, whole(small)}, ends(large), ends(none))
	w.get(t, "/v2/some/repo/manifests/"+image.Digest.String(), alice)
	s.expect(t, before...)
	w.get(t, "/v2/some/repo/manifests/"+image.Digest.String(), alice) // again is not anew
	if n := len(s.reads); n != 0 {
		t.Errorf("%d more reads before anything is wanted", n)
	}
	// With the first blob comes the table of contents, from where the client's
	// reads of it begin.
	w.get(t, "/v2/some/repo/blobs/"+config.String(), alice)
	s.expect(t, configured, read(digest.FromBytes(large), blob.Range{Off: 200_000, Len: 100_000}))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	reg.ResetStats()
	for _, r := range []string{"0-1", "299900-299999", "200000-249999"} {
		if status := w.get(t, "/v2/some/repo/blobs/"+digest.FromBytes(large).String(), alice, "Range: bytes="+r).StatusCode; status != http.StatusPartialContent {
			t.Errorf("range %s: status %d", r, status)
		}
	}
	if got := reg.Stats().Requests; len(got) != 0 {
		t.Errorf("the registry was asked for what is here: %v", got)
	}
	if n := w.stats.Ahead.Load(); n != 8 {
		t.Errorf("counted %d reads", n)
	}
}

// TestOnManifest: the mirror leaves the layers of an image alone that somebody else
// sees to, who is told once.
func TestOnManifest(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	image, config := addLazy(t, reg, lazyLayer(1, 300_000, 234_567))
	s := seen{reads: make(chan string, 100)}
	told := make(chan string, 10)
	w := newWorld(t, reg, func(cfg *Config) {
		s.Source = cfg.Source
		cfg.Source = s
		cfg.OnManifest = func(_ context.Context, repository string, manifest []byte) bool {
			told <- repository + " " + digest.FromBytes(manifest).String()
			return true
		}
	})
	configured := read(config, blob.Range{Len: 37})
	w.get(t, "/v2/some/repo/manifests/"+image.Digest.String())
	if got, want := <-told, reg.Host()+"/some/repo "+image.Digest.String(); got != want {
		t.Errorf("told of %s, want %s", got, want)
	}
	w.get(t, "/v2/some/repo/blobs/"+config.String())
	s.expect(t, configured, configured) // ahead, and by the client
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n, m := len(s.reads), len(told); n != 0 || m != 0 {
		t.Errorf("%d more reads, told %d times more", n, m)
	}
}

// TestReadAheadEnds: nothing more is read for who does not come back, and what
// waits for that ends with the mirror.
func TestReadAheadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &blobtest.Memory{}
		s := seen{src, make(chan string, 100)}
		ref := src.Add(lazyLayer(1, 300_000, 234_567))
		ref.Repository = "registry.example/some/repo"
		ctx, cancel := context.WithCancel(t.Context())
		o, err := origin.New(origin.Config{})
		if err != nil {
			t.Fatal(err)
		}
		m := &Mirror{cfg: Config{Source: s, Origin: o}, opens: newOpens(s)}
		for _, end := range []func(){func() { time.Sleep(wantedWithin) }, cancel} {
			p := &pull{layers: []foreseen{{opening: opening{ref: ref}}}, wanted: make(chan struct{})}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = m.readAhead(ctx, p)
			}()
			synctest.Wait()
			s.expect(t, read(ref.Digest, blob.Range{Len: headBytes}), read(ref.Digest, blob.Range{Off: 300_000 - tailBytes, Len: tailBytes}))
			end()
			<-done
			if n := len(s.reads); n != 0 {
				t.Errorf("%d more reads", n)
			}
		}
		m.opens.close()
	})
}

// TestShare: who is let read one blob of an image is not asked about again for
// the others, which are begun at the same time; who is refused is told for each.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, refused := range []bool{false, true} {
			a := newAccess(time.Minute, time.Hour)
			in := repo{"registry.example", "some/repo"}
			who := reader{in, a.hash("Bearer other")}
			answer := make(chan struct{})
			var mu sync.Mutex
			var asked, got, failed int
			var wg sync.WaitGroup
			for n := range 4 {
				i := item{in, aBlob, digest.FromString(strings.Repeat("x", n))}
				a.members.put(i, member{time.Now(), int64(n)})
				wg.Go(func() {
					m, err := a.share(t.Context(), question{who, i}, func() (member, error) {
						mu.Lock()
						asked++
						mu.Unlock()
						<-answer
						if refused {
							return member{}, blob.Errorf(blob.NotFound, "not this one")
						}
						return a.accepted(who, i, int64(n)), nil
					})
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						failed++
					} else if m.size == int64(n) {
						got++
					}
				})
			}
			synctest.Wait()
			if asked != 1 {
				t.Errorf("asked %d times at once", asked)
			}
			close(answer)
			wg.Wait()
			if !refused && (asked != 1 || got != 4) || refused && (asked != 4 || failed != 4) {
				t.Errorf("refused %v: asked %d times, %d were let, %d not", refused, asked, got, failed)
			}
		}
	})
}

func TestTOCIn(t *testing.T) {
	for _, c := range []struct {
		name, value string
		off         int64
		lazy        bool
	}{
		{estargz.TOCDigestAnnotation, "sha256:ab", 0, true},
		{estargz.ManifestPositionAnnotation, "123:45:678:1", 123, true},
		{"io.github.containers.zstd-chunked.manifest-position", "123:45:678:1", 123, true},
		{estargz.ManifestPositionAnnotation, "-1:2:3:1", 0, false},
		{estargz.ManifestChecksumAnnotation, "sha256:ab", 0, true},
		{"org.opencontainers.image.title", "123:45", 0, false},
	} {
		if off, lazy := tocIn(map[string]string{c.name: c.value}); off != c.off || lazy != c.lazy {
			t.Errorf("%s %q: %d, %v", c.name, c.value, off, lazy)
		}
	}
}

// TestReadAheadNoRanges: a registry that answers ranges with the whole is not
// asked for the ends of layers, which would be all of them; nor is anything more.
func TestReadAheadNoRanges(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	reg.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.NoRanges})
	w := newWorld(t, reg, nil)
	p := lazyLayer(1, 3_000_000, 234_567)
	ref := reg.AddBlob("some/repo", p)
	one := &pull{layers: []foreseen{{opening: opening{ref: ref}}}, wanted: make(chan struct{})}
	close(one.wanted)
	if err := w.readAhead(t.Context(), one); err == nil {
		t.Error("it is read ahead")
	}
	if n := reg.Stats().Requests[testkit.BlobGet]; n > 2 {
		t.Errorf("%d requests", n)
	}
}
