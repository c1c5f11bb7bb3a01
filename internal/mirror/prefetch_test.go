package mirror

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// TestPrefetch: a request for a part brings the rest, once.
func TestPrefetch(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.BasicAuth, Users: map[string]string{"alice": "secret"}})
	content := blobtest.Bytes(3, 3_000_000)
	ref := reg.AddBlob("some/repo", content)
	path := "/v2/some/repo/blobs/" + ref.Digest.String()
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req.SetBasicAuth("alice", "secret")
	alice := "Authorization: " + req.Header.Get("Authorization")

	brought := make(chan blob.Priority, 10)
	w := newWorld(t, reg, func(cfg *Config) {
		source := cfg.Source
		cfg.Prefetch = true
		cfg.Fetch = func(ctx context.Context, ref blob.Ref) error {
			b, err := source.Open(ctx, ref)
			if err != nil {
				return err
			}
			defer b.Close()
			err = drain(ctx, b, blob.Range{Len: b.Size()})
			brought <- blob.PriorityOf(ctx)
			return err
		}
	})
	w.get(t, path, "Range: bytes=0-9") // refused: nothing is brought for who may not read
	w.get(t, path, alice)              // whole: nothing is left
	w.get(t, path, alice, "Range: bytes=0-9", "X-Dragonfly-Prefetch: false")
	w.get(t, path, alice, "Range: bytes=9999999-")
	if n := len(w.queue) + len(brought); n != 0 {
		t.Errorf("%d blobs are brought for nothing", n)
	}
	for range 3 {
		w.get(t, path, alice, "Range: bytes=0-9")
	}
	if p := <-brought; p != blob.Background {
		t.Errorf("priority %v", p)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.stats.Prefetched.Load() != 1 || len(brought) != 0 {
		t.Errorf("brought %d times, and %d more", w.stats.Prefetched.Load(), len(brought))
	}
	// After Close nothing is begun.
	w.get(t, path, alice, "Range: bytes=0-9")
	if len(w.queue) != 0 {
		t.Error("a prefetch waits for a mirror that is closed")
	}

	// Without Fetch, the source is read.
	done := make(chan int64, 10)
	w = newWorld(t, reg, func(cfg *Config) { cfg.Source = counted{cfg.Source, done, ref.Size} })
	w.get(t, path, alice, "Range: bytes=0-9", "X-Dragonfly-Prefetch: true")
	<-done
}

// counted tells when the last byte of a blob was asked for in the background.
type counted struct {
	blob.Source
	done chan int64
	size int64
}

type countedBlob struct {
	blob.Blob
	c counted
}

func (c counted) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := c.Source.Open(ctx, ref)
	return countedBlob{b, c}, err
}

func (b countedBlob) ReadRange(ctx context.Context, r blob.Range) (rc io.ReadCloser, err error) {
	if r.End() == b.c.size && blob.PriorityOf(ctx) == blob.Background {
		b.c.done <- r.End()
	}
	return b.Blob.ReadRange(ctx, r)
}

// TestPrefetchRate: no more bytes come per second than may, whatever is here
// already.
func TestPrefetchRate(t *testing.T) {
	const size = 10 << 20
	content := blobtest.Bytes(3, size)
	synctest.Test(t, func(t *testing.T) {
		src := &blobtest.Memory{}
		ref := src.Add(content)
		m := &Mirror{cfg: Config{Source: src, PrefetchRate: 1 << 20, Fetch: func(context.Context, blob.Ref) error { return blob.Errorf(blob.Internal, "has no rate") }}}
		begun := time.Now()
		if err := m.bringAll(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 10*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		m.cfg.Source = local{src}
		begun = time.Now()
		if err := m.bringAll(t.Context(), ref); err != nil || time.Since(begun) != 0 {
			t.Errorf("what was here took %v: %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		m.cfg.Source = src
		if err := m.bringAll(ctx, ref); blob.KindOf(err) != blob.Timeout {
			t.Errorf("ended with %v", err)
		}
	})
}

// local says that everything is here.
type local struct{ blob.Source }

type localBlob struct{ blob.Blob }

func (l local) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := l.Source.Open(ctx, ref)
	return localBlob{b}, err
}

func (b localBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	blob.TrafficOf(ctx).Local.Add(r.Len)
	return b.Blob.ReadRange(ctx, r)
}
