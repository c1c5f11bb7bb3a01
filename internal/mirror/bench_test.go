package mirror

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/origin"
	"skimmer/internal/store"
	"skimmer/internal/testkit"
)

// BenchmarkWarm reads what is held, over HTTP/1.1 on one connection: ranges of
// 64 KiB and the whole, beside http.ServeContent on the same bytes.
func BenchmarkWarm(b *testing.B) {
	const size = 64 << 20
	content := blobtest.Bytes(1, size)
	reg := testkit.NewRegistry(b, testkit.Options{})
	ref := reg.AddBlob("some/repo", content)
	path := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", time.Time{}, io.NewSectionReader(f, 0, size))
	}))
	defer files.Close()
	o, err := origin.New(origin.Config{})
	if err != nil {
		b.Fatal(err)
	}
	st, err := store.Open(store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	m, err := New(Config{Source: st.Through(o), Origin: o, Dir: b.TempDir(), Upstream: reg.URL(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	mirror := httptest.NewServer(m)
	defer mirror.Close()
	for _, c := range []struct{ name, url string }{{"mirror", mirror.URL + "/v2/some/repo/blobs/" + ref.Digest.String()}, {"file", files.URL}} {
		get := func(b *testing.B, rng string) {
			req, err := http.NewRequest(http.MethodGet, c.url, nil)
			if err != nil {
				b.Fatal(err)
			}
			if rng != "" {
				req.Header.Set("Range", rng)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || n == 0 {
				b.Fatal(n, err)
			}
			b.SetBytes(n)
		}
		get(b, "") // brings it
		b.Run("range/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				off := i * 7 % 1000 * 65536
				get(b, fmt.Sprintf("bytes=%d-%d", off, off+65535))
			}
		})
		b.Run("whole/"+c.name, func(b *testing.B) {
			for b.Loop() {
				get(b, "")
			}
		})
	}
}
