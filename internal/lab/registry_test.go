package lab

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// registryPrograms runs test against the real registry and the one in this
// process.
func registryPrograms(t *testing.T, test func(t *testing.T, opts RegistryOptions)) {
	t.Run("docker-registry", func(t *testing.T) {
		path, err := exec.LookPath("docker-registry")
		if err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip("NOT TESTED: docker-registry is not installed")
		}
		test(t, RegistryOptions{Program: path})
	})
	t.Run("embedded", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		test(t, RegistryOptions{})
	})
}

func startRegistry(t *testing.T, opts RegistryOptions) *Registry {
	t.Helper()
	r, err := StartRegistry(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// push puts an image with random layers into r.
func push(t *testing.T, r *Registry, layers int64) (name.Reference, v1.Image) {
	t.Helper()
	img, err := random.Image(100_000, layers)
	must(t, err)
	ref, err := name.ParseReference(r.Host() + "/some/where/image:v1")
	must(t, err)
	must(t, remote.Write(ref, img, remote.WithContext(t.Context())))
	return ref, img
}

func TestRegistryCountsWhatItServes(t *testing.T) {
	registryPrograms(t, func(t *testing.T, opts RegistryOptions) {
		r := startRegistry(t, opts)
		ref, img := push(t, r, 2)
		if c := r.Counts(); c.Requests[RequestPush] == 0 || c.TotalBytes() != c.Bytes[RequestOther]+c.Bytes[RequestPush]+c.Bytes[RequestBlob]+c.Bytes[RequestManifest] {
			t.Errorf("after a push: %+v", c)
		}
		r.Reset()

		layers, err := img.Layers()
		must(t, err)
		d0, err := layers[0].Digest()
		must(t, err)
		d1, err := layers[1].Digest()
		must(t, err)
		size, err := layers[0].Size()
		must(t, err)
		blobURL := func(d v1.Hash) string { return "http://" + r.Host() + "/v2/some/where/image/blobs/" + d.String() }
		get(t, blobURL(d0), "", http.StatusOK, size)
		get(t, blobURL(d1), "bytes=10-109", http.StatusPartialContent, 100)
		get(t, blobURL(d1), "bytes=0-0", http.StatusPartialContent, 1)
		_, err = remote.Head(ref, remote.WithContext(t.Context()))
		must(t, err)

		got := r.Reset()
		want := Counts{
			Requests:     map[RequestKind]int64{RequestBlob: 3, RequestManifest: 1},
			Bytes:        map[RequestKind]int64{RequestBlob: size + 101},
			BlobBytes:    map[digest.Digest]int64{digest.Digest(d0.String()): size, digest.Digest(d1.String()): 101},
			BlobRequests: map[digest.Digest]int64{digest.Digest(d0.String()): 1, digest.Digest(d1.String()): 2},
		}
		// The client asks for the version before the manifest.
		delete(got.Requests, RequestOther)
		delete(got.Bytes, RequestOther)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		if c := r.Counts(); c.TotalRequests() != 0 || c.TotalBytes() != 0 {
			t.Errorf("counts after Reset: %+v", c)
		}

		pulled, err := remote.Image(ref, remote.WithContext(t.Context()))
		must(t, err)
		if a, b := digestOf(t, img), digestOf(t, pulled); a != b {
			t.Errorf("pulled %v, pushed %v", b, a)
		}
	})
}

func digestOf(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	d, err := img.Digest()
	must(t, err)
	return d
}

func get(t *testing.T, url, byteRange string, status int, size int64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	must(t, err)
	if resp.StatusCode != status || n != size {
		t.Errorf("get %s %s: status %d with %d bytes, want %d with %d", url, byteRange, resp.StatusCode, n, status, size)
	}
}

func TestRegistryLeavesNothingBehind(t *testing.T) {
	tmp := t.TempDir()
	registryPrograms(t, func(t *testing.T, opts RegistryOptions) {
		t.Setenv("TMPDIR", tmp)
		r, err := StartRegistry(t.Context(), opts)
		must(t, err)
		push(t, r, 1)
		must(t, r.Close(), r.Close())
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("left in the temporary directory: %v, %v", left, err)
		}
		if r.process != nil {
			if err := syscall.Kill(r.process.PID(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the registry's process is still there: %v", err)
			}
		}
		if _, err := http.Get("http://" + r.Host() + "/v2/"); err == nil {
			t.Error("a closed registry answers")
		}
	})
}

func TestRegistryKeepsAGivenDirectory(t *testing.T) {
	registryPrograms(t, func(t *testing.T, opts RegistryOptions) {
		opts.Dir = filepath.Join(t.TempDir(), "data")
		r, err := StartRegistry(t.Context(), opts)
		must(t, err)
		_, img := push(t, r, 1)
		must(t, r.Close())
		if opts.Program == "" {
			// The embedded registry keeps manifests in memory only.
			if _, err := os.Stat(opts.Dir); err != nil {
				t.Error(err)
			}
			return
		}
		again := startRegistry(t, opts)
		ref, err := name.ParseReference(again.Host() + "/some/where/image@" + digestOf(t, img).String())
		must(t, err)
		if _, err := remote.Image(ref, remote.WithContext(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

func TestRegistryThatDoesNotStart(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	script := filepath.Join(t.TempDir(), "registry")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho disk on fire >&2\nexit 3\n"), 0o755))
	_, err := StartRegistry(t.Context(), RegistryOptions{Program: script})
	if err == nil || !strings.Contains(err.Error(), "disk on fire") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("err = %v", err)
	}
	if _, err := StartRegistry(t.Context(), RegistryOptions{Program: "/nonexistent/registry"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a registry that does not exist: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartRegistry(ctx, RegistryOptions{Program: script}); err == nil {
		t.Error("a registry started in a cancelled context")
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

func TestClassify(t *testing.T) {
	const d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, c := range []struct {
		method, path string
		kind         RequestKind
		d            digest.Digest
	}{
		{"GET", "/v2/", RequestOther, ""},
		{"GET", "/v2/a/manifests/latest", RequestManifest, ""},
		{"HEAD", "/v2/a/b/c/manifests/" + d, RequestManifest, ""},
		{"GET", "/v2/a/blobs/" + d, RequestBlob, d},
		{"HEAD", "/v2/blobs/blobs/" + d, RequestBlob, d},
		{"GET", "/v2/a/blobs/sha256:12", RequestOther, ""},
		{"PUT", "/v2/a/manifests/latest", RequestPush, ""},
		{"POST", "/v2/a/blobs/uploads/", RequestPush, ""},
		{"GET", "/v2/a/blobs/uploads/123", RequestPush, ""},
		{"GET", "/v2/a/tags/list", RequestOther, ""},
		{"GET", "/token", RequestToken, ""},
		{"GET", "/service/token", RequestToken, ""},
		{"GET", "", RequestOther, ""},
	} {
		if kind, d := classify(c.method, c.path); kind != c.kind || d != c.d {
			t.Errorf("classify(%s %s) = %s, %q, want %s, %q", c.method, c.path, kind, d, c.kind, c.d)
		}
	}
}

func TestShape(t *testing.T) {
	const latency, rate, size = 40 * time.Millisecond, 10_000, 25_000
	synctest.Test(t, func(t *testing.T) {
		var s shaper
		h := s.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, size))
		}))
		// Two requests on one connection, to see that its rate is not granted
		// afresh to each.
		ctx := s.connContext(t.Context(), nil)
		elapsed := func() time.Duration {
			start := time.Now()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/v2/", nil).WithContext(ctx))
			if w.Body.Len() != size {
				t.Errorf("body of %d bytes, want %d", w.Body.Len(), size)
			}
			return time.Since(start)
		}
		if got := elapsed(); got != 0 {
			t.Errorf("without a shape a request took %v", got)
		}
		s.shape.Store(&Shape{Latency: latency, Rate: rate})
		for range 2 {
			if got, want := elapsed(), latency+size*time.Second/rate; got != want {
				t.Errorf("a request took %v, want %v", got, want)
			}
		}
		s.shape.Store(&Shape{})
		if got := elapsed(); got != 0 {
			t.Errorf("with an empty shape a request took %v", got)
		}

		// A client that goes does not hold the connection until the end.
		s.shape.Store(&Shape{Rate: 1})
		gone, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		start := time.Now()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v2/", nil).WithContext(gone))
		if got := time.Since(start); got != time.Second {
			t.Errorf("a client left after 1s, its request ended after %v", got)
		}
	})
}

func TestCountsAreCopies(t *testing.T) {
	var c counter
	c.request(RequestManifest, "")
	before := c.snapshot(false)
	saved := maps.Clone(before.Requests)
	c.request(RequestManifest, "")
	if !maps.Equal(saved, before.Requests) {
		t.Error("a snapshot changed with the counter")
	}
}
