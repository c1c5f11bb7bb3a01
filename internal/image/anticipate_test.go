package image_test

import (
	"archive/tar"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
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
			if got := looked.Load(); got != 1 {
				t.Errorf("a profile was looked for %d times", got)
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
