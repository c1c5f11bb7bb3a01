package ranges_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/mirror/ranges"
	"skimmer/internal/store"
)

const benchSize = 64 << 20

// held returns content that a store has on disk.
func held(b testing.TB, content []byte) (blob.Source, blob.Ref) {
	var m blobtest.Memory
	ref := m.Add(content)
	s, err := store.Open(store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	src := s.Through(&m)
	bl, err := src.Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	defer bl.Close()
	rc, err := bl.ReadRange(b.Context(), blob.Range{Len: ref.Size})
	if err != nil {
		b.Fatal(err)
	}
	defer rc.Close()
	if n, err := io.Copy(io.Discard, rc); n != ref.Size || err != nil {
		b.Fatal(n, err)
	}
	return src, ref
}

// rawClient asks over one connection, and costs little itself.
type rawClient struct {
	conn net.Conn
	r    *bufio.Reader
}

// get asks for the ranges and drops what it gets.
func (c *rawClient) get(ranges string) error {
	if _, err := fmt.Fprintf(c.conn, "GET /v2/x HTTP/1.1\r\nHost: x\r\nRange: bytes=%s\r\n\r\n", ranges); err != nil {
		return err
	}
	length := 0
	for first := true; ; first = false {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 206 ")) {
			return fmt.Errorf("got %q", line)
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
		if len(line) == 2 {
			break
		}
	}
	_, err := c.r.Discard(length)
	return err
}

// BenchmarkServe compares with http.ServeContent on a file that is opened for
// each request: "open" serves a blob that is open, "source" opens one for each
// request. All are asked in turn, so that they have the same machine.
func BenchmarkServe(b *testing.B) {
	handlers := benchHandlers(b, blobtest.Bytes(1, benchSize))
	for _, c := range []struct {
		name string
		n    int64
		size int64
	}{{"64KiB", 1, 64 << 10}, {"1MiB", 1, 1 << 20}, {"8MiB", 1, 8 << 20}, {"100x32KiB", 100, 32 << 10}} {
		b.Run(c.name, func(b *testing.B) { benchRanges(b, handlers, c.n, c.size) })
	}
}

// benchHandlers returns handlers by name, that of http.ServeContent first.
func benchHandlers(b *testing.B, content []byte) []namedHandler {
	src, ref := held(b, content)
	opened := openRef(b, src, ref)
	src, ref = held(b, content) // of which nothing stays open
	path := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	serve := func(w http.ResponseWriter, req *http.Request, bl blob.Blob) {
		if _, err := ranges.Serve(w, req, ranges.Content{Blob: bl, ETag: `"x"`}); err != nil && blob.KindOf(err) != blob.Canceled {
			b.Error(err)
		}
	}
	return []namedHandler{
		{"file", func(w http.ResponseWriter, req *http.Request) {
			f, err := os.Open(path)
			if err != nil {
				b.Error(err)
				return
			}
			defer f.Close()
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Etag", `"x"`)
			http.ServeContent(w, req, "", time.Time{}, f)
		}},
		{"open", func(w http.ResponseWriter, req *http.Request) { serve(w, req, opened) }},
		{"source", func(w http.ResponseWriter, req *http.Request) {
			bl, err := src.Open(req.Context(), ref)
			if err != nil {
				b.Error(err)
				return
			}
			defer bl.Close()
			serve(w, req, bl)
		}},
	}
}

type namedHandler struct {
	name string
	http.HandlerFunc
}

// benchRanges asks for n ranges of size bytes at a time.
func benchRanges(b *testing.B, handlers []namedHandler, n, size int64) {
	clients := make([]*rawClient, len(handlers))
	for i, h := range handlers {
		srv := httptest.NewServer(h)
		defer srv.Close()
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		clients[i] = &rawClient{conn, bufio.NewReaderSize(conn, 64<<10)}
	}
	b.SetBytes(int64(len(handlers)) * n * size)
	took := make([]time.Duration, len(handlers))
	var off int64
	for b.Loop() {
		var set []string
		for i := range n {
			set = append(set, blob.Range{Off: (off + 2*i*size) % benchSize, Len: size}.String())
		}
		off = (off + size) % (benchSize / 2)
		for i, c := range clients {
			begun := time.Now()
			if err := c.get(strings.Join(set, ",")); err != nil {
				b.Fatal(err)
			}
			took[i] += time.Since(begun)
		}
	}
	for i, h := range handlers {
		b.ReportMetric(float64(b.N)/took[i].Seconds(), h.name+"/s")
		b.ReportMetric(took[0].Seconds()/took[i].Seconds(), h.name+"/file")
	}
}
