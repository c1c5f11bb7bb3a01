package image_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/image"
	"skimmer/internal/testkit"
)

// many are so many files that their table of contents does not fit into the
// manifest.
func many(prefix string) (files []*tar.Header) {
	for i := range 200 {
		files = append(files, file(fmt.Sprintf("%s%d", prefix, i), 10+i))
	}
	return files
}

// What is read ahead of a pull is not read again by it, whether it has come or is
// on its way; what could not be read is read then.
func TestAnticipate(t *testing.T) {
	testkit.NeedMount(t)
	for name, away := range map[string]bool{"the registry answers": false, "the registry is away at first": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.push(t, "v1", nil, many("a"), many("b"))
			layers := w.layersOf(t, "v1")
			var reads atomic.Int64
			asked := make(chan struct{}, 100)
			w.Before = func(context.Context, blob.Ref, blob.Range) error {
				reads.Add(1)
				asked <- struct{}{}
				return w.check()
			}
			var looked atomic.Int64
			l := open(t, w, t.TempDir(), func(c *image.Config) {
				c.Profiles = true
				c.Referrer = func(context.Context, string, digest.Digest) ([]byte, error) {
					looked.Add(1)
					return nil, blob.Errorf(blob.NotFound, "there is none")
				}
			})
			w.away.Store(away)
			l.Anticipate(t.Context(), repo, w.manifests[repo+" v1"])
			l.Anticipate(t.Context(), repo, w.manifests[repo+" v1"]) // does no more
			for range layers {
				<-asked
			}
			if away {
				w.away.Store(false)
			}
			pull(t, w, l, "v1")
			want := int64(len(layers))
			if got := reads.Load(); !away && got != want || away && (got < want || got > 2*want) {
				t.Errorf("tables of contents were read %d times, want %d, twice at most where the first failed", got, want)
			}
			// Known layers are nobody's to read ahead of.
			before := reads.Load()
			l.Anticipate(t.Context(), repo, w.manifests[repo+" v1"])
			l.Anticipate(t.Context(), repo, []byte("no manifest"))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got := looked.Load(); !away && got != 1 || got > 2 {
				t.Errorf("a profile was looked for %d times, want once, and again where the first attempt failed", got)
			}
			if got := reads.Load(); got != before {
				t.Errorf("%d reads ahead of what is known already", got-before)
			}
		})
	}
}

// What a profile names is fetched before anybody asks for a layer, and nothing else
// is but the tables of contents.
func TestAnticipateFetchesWhatAProfileNames(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	name := w.program(t, "v1")
	cluster := &exchange{kept: make(map[digest.Digest][]byte)}
	starting{w: w, name: name, cfg: func(c *image.Config) { c.Exchange = cluster }}.start(t, 1, 2, 7)

	var bytes atomic.Int64
	w.Before = func(_ context.Context, _ blob.Ref, r blob.Range) error {
		bytes.Add(r.Len)
		return nil
	}
	l := open(t, w, t.TempDir(), func(c *image.Config) { c.Profiles, c.Exchange = true, cluster })
	l.Anticipate(t.Context(), repo, w.manifests[repo+" v1"])
	const least, most = 3 * fileSize, 3*fileSize + fileSize/4 // content does not compress
	testkit.Eventually(t, time.Minute, "what the profile names was read", func() error {
		if n := bytes.Load(); n < least {
			return fmt.Errorf("%d bytes of %d", n, least)
		}
		return nil
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Load(); n > most {
		t.Errorf("%d bytes were read, want %d at most", n, most)
	}
}

// What the image's command reads is fetched before anybody asks for a layer, with the
// configuration that the manifest brings or names.
func TestAnticipateFetchesTheCommand(t *testing.T) {
	testkit.NeedMount(t)
	const size = 1 << 20
	for name, embedded := range map[string]bool{"the manifest brings the configuration": true, "it names it": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.bodies = map[string][]byte{"bin/tool": blobtest.Bytes(1, size)}
			config, err := json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"/bin/tool"}}})
			if err != nil {
				t.Fatal(err)
			}
			configured := w.Add(config)
			w.push(t, "v1", func(m *ocispec.Manifest) {
				m.Config = ocispec.Descriptor{Digest: configured.Digest, Size: configured.Size}
				if embedded {
					m.Config.Data = config
				}
			}, []*tar.Header{dir("bin"), file("bin/tool", size), file("bin/other", size)})
			var reads atomic.Int64
			w.Before = func(_ context.Context, ref blob.Ref, _ blob.Range) error {
				if ref.Digest == configured.Digest {
					reads.Add(1)
				}
				return nil
			}
			l := open(t, w, t.TempDir(), nil)
			l.Anticipate(t.Context(), repo, w.manifests[repo+" v1"])
			testkit.Eventually(t, time.Minute, "the program is here", func() error {
				if n := l.Stats().Inflated; n != size {
					return fmt.Errorf("%d bytes are, want %d", n, size)
				}
				return nil
			})
			pull(t, w, l, "v1")
			if got, want := l.Traces()[0].Image, repo+":v1"; got != want {
				t.Errorf("the start is of %s, want the name that was pulled, %s", got, want)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if want := map[bool]int64{true: 0, false: 1}[embedded]; reads.Load() != want {
				t.Errorf("the configuration was read %d times, want %d", reads.Load(), want)
			}
		})
	}
}

// Who reads manifests and pulls nothing has no more than some images indexed; what is
// pulled makes room.
func TestAnticipateIsBounded(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	const most, images = 16, 20
	l := open(t, w, t.TempDir(), nil)
	for i := range images {
		tag := fmt.Sprintf("v%d", i)
		w.push(t, tag, nil, []*tar.Header{file(fmt.Sprintf("f%d", i), 10)})
		l.Anticipate(t.Context(), repo, w.manifests[repo+" "+tag])
	}
	if n := len(l.Traces()); n != most {
		t.Errorf("%d images were indexed, want %d", n, most)
	}
	pull(t, w, l, "v0")
	l.Anticipate(t.Context(), repo, w.manifests[repo+" v19"])
	l.Anticipate(t.Context(), repo, w.manifests[repo+" v18"])
	if n := len(l.Traces()); n != most+1 {
		t.Errorf("%d images are indexed after one was pulled, want %d", n, most+1)
	}
}
