//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

const (
	rangeSize = 64 << 10
	rangesOf  = 256 << 20 // bytes of the file
	clients   = 16        // connections at a time
)

// BenchmarkMirrorRanges asks for random ranges of 64 KiB of a blob that is here,
// at the mirror of the built binary and at nginx, in turns: requests per second
// and the 99th percentile of the time one takes, as ratios. It needs nginx,
// which nothing else does (apt-get install nginx-light).
func BenchmarkMirrorRanges(b *testing.B) {
	if _, err := exec.LookPath("nginx"); err != nil {
		b.Fatal("find nginx to compare with: apt-get install nginx-light")
	}
	content := blobtest.Bytes(64, rangesOf)
	r := testkit.NewRegistry(b, testkit.Options{})
	d := r.AddBlob("bench/ranges", content).Digest
	dir, err := os.MkdirTemp("", "skb")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), content, 0o644); err != nil {
		b.Fatal(err)
	}
	nginx, mirror := unused(b), unused(b)
	config := fmt.Sprintf(`daemon off; worker_processes auto; pid %[1]s/pid; error_log %[1]s/log; user root;
events { worker_connections 1024; }
http { access_log off; sendfile on; keepalive_requests 1000000000; client_body_temp_path %[1]s/1; proxy_temp_path %[1]s/2;
  fastcgi_temp_path %[1]s/3; uwsgi_temp_path %[1]s/4; scgi_temp_path %[1]s/5; server { listen 127.0.0.1:%[2]d; root %[1]s; } }
`, dir, nginx)
	peer := fmt.Sprintf("dataDir: %[1]s/data\nrunDir: %[1]s/run\nmetrics: {server: {port: 0}}\nhealth: {server: {port: 0}}\nproxy: {server: {port: %[2]d}}\nsnapshotter: {enable: false}\n", dir, mirror)
	for name, text := range map[string]string{"nginx.conf": config, "peer.yaml": peer} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	start(b, "nginx", "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "log"))
	start(b, binary, "peer", "--config", filepath.Join(dir, "peer.yaml"))
	urls := []string{
		fmt.Sprintf("http://127.0.0.1:%d/file", nginx),
		fmt.Sprintf("http://127.0.0.1:%d/v2/bench/ranges/blobs/%s", mirror, d),
	}
	for _, url := range urls {
		testkit.Eventually(b, time.Minute, "get all of "+url, func() error { return ask(http.DefaultClient, r.URL(), url, 0, rangesOf) })
	}
	var took [2]time.Duration
	var each [2][]time.Duration
	b.ResetTimer()
	for range b.N {
		for i, url := range urls {
			begin := time.Now()
			each[i] = append(each[i], askMany(b, r.URL(), url)...)
			took[i] += time.Since(begin)
		}
	}
	b.StopTimer()
	p99 := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)*99/100])
	}
	b.ReportMetric(float64(took[0])/float64(took[1]), "rate/nginx")
	b.ReportMetric(p99(each[1])/p99(each[0]), "p99/nginx")
	b.ReportMetric(float64(len(each[1]))/took[1].Seconds(), "req/s")
	b.ReportMetric(p99(each[1])/1e6, "p99-ms")
}

// askMany asks for 4096 ranges by several connections, and returns how long each
// took.
func askMany(b *testing.B, registry, url string) (all []time.Duration) {
	transport := &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			var mine []time.Duration
			for range 4096 / clients {
				begin := time.Now()
				if err := ask(c, registry, url, rand.Int64N(rangesOf-rangeSize), rangeSize); err != nil {
					b.Error(err)
					return
				}
				mine = append(mine, time.Since(begin))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	wg.Wait()
	return all
}

func ask(c *http.Client, registry, url string, off, n int64) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Dragonfly-Registry", registry)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusPartialContent || got != n) {
		err = fmt.Errorf("%s: %s, %d bytes", url, resp.Status, got)
	}
	return err
}

// start runs a program until the benchmark ends.
func start(b *testing.B, name string, args ...string) {
	b.Helper()
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := cmd.Wait(); err != nil {
			b.Logf("%s: %v\n%s", name, err, out.String())
		}
	})
}

// unused returns a port that nobody listens on.
func unused(b *testing.B) int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
