package transfer

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

const benchSize = 64 << 20

// cpu returns the seconds of processor this process, both ends, has used.
func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Seconds()
}

// drain is a client without us: it reads a range of a URL, 256 KiB at a time.
func drain(b *testing.B, c *http.Client, url string, r blob.Range, buf []byte) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Range", "bytes="+r.String())
	resp, err := c.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	// Hidden, so that the buffer is used.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
	if err != nil || n != r.Len {
		b.Fatal(n, err)
	}
}

// fileServer is what we compare with.
func fileServer(b *testing.B, h http.Handler) string {
	l := listen(b)
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	b.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String() + "/"
}

func plainClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true}}
}

// hidden serves a file without letting net/http see that it is one.
func hidden(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.FileServer(http.Dir(dir)).ServeHTTP(struct{ http.ResponseWriter }{w}, req)
	})
}

func BenchmarkWhole(b *testing.B) {
	dir := newFolder(b)
	ref := dir.add(b, blobtest.Bytes(1, benchSize))
	_, addr := serve(b, ServerConfig{Source: dir})
	name := filepath.Base(dir.path(ref.Digest))
	sendfile, copied := fileServer(b, http.FileServer(http.Dir(dir.dir))), fileServer(b, hidden(dir.dir))
	plain, ours := plainClient(), open(b, connect(b, ClientConfig{}), addr, ref)
	buf := make([]byte, bufferSize)
	all := blob.Range{Len: benchSize}

	run := func(name string, once func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			before := cpu(b)
			for b.Loop() {
				once(b)
			}
			b.ReportMetric((cpu(b)-before)/(float64(b.N)*benchSize/1e9), "cpu-s/GB")
		})
	}
	run("skimmer", func(b *testing.B) {
		rc, err := ours.ReadRange(b.Context(), all)
		if err != nil {
			b.Fatal(err)
		}
		defer rc.Close()
		if n, err := io.Copy(io.Discard, rc); n != benchSize || err != nil {
			b.Fatal(n, err)
		}
	})
	run("skimmer server, plain client", func(b *testing.B) {
		drain(b, plain, "http://"+addr+blobPath(ref.Digest), all, buf)
	})
	run("net-http sendfile", func(b *testing.B) { drain(b, plain, sendfile+name, all, buf) })
	run("net-http copy", func(b *testing.B) { drain(b, plain, copied+name, all, buf) })
}

func BenchmarkRanges64KiB(b *testing.B) {
	const size = 64 << 10
	dir := newFolder(b)
	ref := dir.add(b, blobtest.Bytes(1, benchSize))
	_, addr := serve(b, ServerConfig{Source: dir, Slots: 256})
	base := fileServer(b, http.FileServer(http.Dir(dir.dir)))
	name := filepath.Base(dir.path(ref.Digest))
	plain, ours := plainClient(), open(b, connect(b, ClientConfig{IdleConns: 100}), addr, ref)

	run := func(name string, once func(r blob.Range, buf []byte) error) {
		b.Run(name, func(b *testing.B) {
			before := cpu(b)
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, size)
				for pb.Next() {
					if err := once(blob.Range{Off: rand.Int64N(benchSize - size), Len: size}, buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
			b.ReportMetric((cpu(b)-before)/float64(b.N)*1e6, "cpu-µs/req")
		})
	}
	run("skimmer", func(r blob.Range, buf []byte) error {
		return blob.ReadFull(b.Context(), ours, buf, r.Off)
	})
	get := func(url string) func(r blob.Range, buf []byte) error {
		return func(r blob.Range, buf []byte) error {
			req, err := http.NewRequest(http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			req.Header.Set("Range", "bytes="+r.String())
			resp, err := plain.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if n, err := io.ReadFull(resp.Body, buf); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		}
	}
	run("skimmer server, plain client", get("http://"+addr+blobPath(ref.Digest)))
	run("net-http", get(base+name))
}
