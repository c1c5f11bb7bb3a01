//go:build e2e

package swarm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/estargz"
	"skimmer/internal/image/convert"
	"skimmer/internal/lab/cluster"
)

// lazily is what peers are told so that they fetch what is read and no more.
const lazily = "lazy: {background: false, ioTimeout: 30s}"

// picture is an image at the origin: files of random bytes in two layers.
type picture struct {
	ref   string
	repo  string
	files map[string]entry // by path in the image
	size  int64            // of both layers
}

// entry is a file of an image.
type entry struct {
	size int64
	sum  string // hex SHA-256
}

// image builds an image, converts it with our converter, and puts it into the
// origin's registry.
func (s *swarm) image(repo string) picture {
	s.t.Helper()
	img := picture{ref: s.host + "/" + repo + ":v1", repo: repo, files: map[string]entry{}}
	low, top := map[string]int64{"data/big": 24 * mib, "data/mid": 4 * mib}, map[string]int64{"app/main": 6 * mib}
	for i := range 40 {
		low[fmt.Sprintf("lib/small-%02d", i)] = int64(9000 + 1777*i)
		top[fmt.Sprintf("app/part-%02d", i)] = int64(20_000 + 3333*i)
	}
	plain, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, files := range []map[string]int64{low, top} {
		if plain, err = mutate.AppendLayers(plain, s.layer(repo, files, img.files)); err != nil {
			s.t.Fatal(err)
		}
	}
	plain = mutate.ConfigMediaType(mutate.MediaType(plain, types.OCIManifestSchema1), types.OCIConfigJSON)
	dir := filepath.Join(s.t.TempDir(), "layout")
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := l.AppendImage(plain, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "v1"})); err != nil {
		s.t.Fatal(err)
	}
	src, err1 := convert.ParseLayout(dir)
	dst, err2 := convert.ParseRegistry(s.registry.Repo(repo) + ":v1")
	if err1 != nil || err2 != nil {
		s.t.Fatal(err1, err2)
	}
	if _, err := convert.Convert(s.t.Context(), src, dst, convert.ConvertOptions{Layer: estargz.BuildOptions{Level: 1}}); err != nil {
		s.t.Fatal(err)
	}
	for _, l := range s.manifest(repo).Layers {
		img.size += l.Size
	}
	return img
}

func (s *swarm) manifest(repo string) (m ocispec.Manifest) {
	s.t.Helper()
	p, _ := s.registry.Manifest(repo, "v1")
	if err := json.Unmarshal(p, &m); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// layer makes a layer of files and notes what is in them.
func (s *swarm) layer(seed string, files map[string]int64, noted map[string]entry) v1.Layer {
	s.t.Helper()
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for name, size := range files {
		p, sum := random(seed+name, size)
		noted[name] = entry{size, sum}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(1234567890, 0), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			s.t.Fatal(err)
		}
		if _, err := tw.Write(p); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		s.t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// mount mounts the image on a node and returns where.
func (s *swarm) mount(ctx context.Context, p *cluster.Peer, img picture) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir := filepath.Join(p.Node().Dir(), "mnt")
	_, err := p.Run(ctx, "mount", img.ref, dir)
	return dir, err
}

// read reads files of a mounted image, in a process of its own, and checks
// them.
func (s *swarm) read(ctx context.Context, p *cluster.Peer, img picture, dir string, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	args := make([]string, len(names))
	for i, name := range names {
		args[i] = filepath.Join(dir, name)
	}
	defer s.suspect()()
	out, err := p.Node().Run(ctx, "sha256sum", args...)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(names) {
		return fmt.Errorf("node %s read %d files of %d", p.Node().Name(), len(lines), len(names))
	}
	for i, name := range names {
		if sum, _, _ := strings.Cut(lines[i], " "); sum != img.files[name].sum {
			return fmt.Errorf("node %s read the wrong bytes of %s", p.Node().Name(), name)
		}
	}
	return nil
}

// some are the files that a program reads when it starts: a part of all bytes.
func (img picture) some() (names []string, size int64) {
	for i := range 40 {
		names = append(names, fmt.Sprintf("lib/small-%02d", i), fmt.Sprintf("app/part-%02d", i))
	}
	names = append(names, "data/mid")
	for _, name := range names {
		size += img.files[name].size
	}
	return names, size
}

// TestLazyMounts mounts an image on 8 nodes at once, which read the same files.
func TestLazyMounts(t *testing.T) {
	for _, c := range []struct {
		name  string
		seeds int
		delay time.Duration
	}{{"2 seeds", 2, 0}, {"0 seeds", 0, 0}, {"2 seeds, 5 ms away", 2, 5 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			f := lazyFormation(8, c.seeds)
			f.delay = c.delay
			s := newSwarm(t, f)
			img := s.image("library/app")
			names, size := img.some()
			s.origin.Reset()
			var wg sync.WaitGroup
			for _, p := range s.peers {
				wg.Go(func() {
					dir, err := s.mount(t.Context(), p, img)
					if err == nil {
						err = s.read(t.Context(), p, img, dir, names)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			sent := s.origin.Sent("/v2/" + img.repo + "/blobs/*")
			t.Logf("%d bytes left the origin in %d requests, %d again; %d were read, the layers have %d", sent.Bytes, sent.Requests, sent.Again, size, img.size)
			if float64(sent.Again) > (once-1)*float64(sent.Bytes) {
				t.Errorf("%d of %d bytes left the origin again", sent.Again, sent.Bytes)
			}
			if sent.Bytes < size/2 {
				t.Errorf("%d bytes left the origin, %d were read", sent.Bytes, size)
			}
			// Nobody has read the big file.
			if most := img.size - 16*mib; sent.Bytes > most {
				t.Errorf("%d bytes left the origin, want at most %d: only what is read, and a little ahead", sent.Bytes, most)
			}
		})
	}
}

func lazyFormation(nodes, seeds int) formation {
	return formation{nodes: nodes, seeds: seeds, rate: 200 * mbit, more: lazily}
}

// TestRangeOfANeighbour reads a little of what a neighbour has, at any offset:
// the origin hears nothing of it.
func TestRangeOfANeighbour(t *testing.T) {
	s := newSwarm(t, lazyFormation(2, 0))
	img := s.image("library/app")
	a, b := s.peers[0], s.peers[1]
	atA, err := s.mount(t.Context(), a, img)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.read(t.Context(), a, img, atA, []string{"data/big"}); err != nil {
		t.Fatal(err)
	}
	atB, err := s.mount(t.Context(), b, img)
	if err != nil {
		t.Fatal(err)
	}
	layers := "/v2/" + img.repo + "/blobs/*"
	before := s.origin.Sent(layers)
	content, _ := random(img.repo+"data/big", img.files["data/big"].size)
	read := func(off int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		got, err := b.Node().Run(ctx, "dd", "if="+filepath.Join(atB, "data/big"), "bs=30720", "count=1",
			fmt.Sprintf("skip=%d", off), "iflag=skip_bytes,fullblock", "status=none")
		if err != nil {
			t.Fatal(err)
		}
		if want := string(content[off : off+30720]); got != want {
			t.Errorf("offset %d: wrong bytes, %d of them", off, len(got))
		}
	}
	for _, off := range []int{0, 1, 4095, 16384, 1_000_003, 5_555_555} {
		read(off)
	}
	if after := s.origin.Sent(layers); after != before {
		t.Errorf("the origin sent %+v, before the reads it was %+v", after, before)
	}
	// At the end of the file, what is read ahead is none of what A has.
	read(len(content) - 30720)
	if after := s.origin.Sent(layers); after.Again != before.Again {
		t.Errorf("the origin sent %+v, before the reads it was %+v", after, before)
	}
}

// TestRangeOfAFile gets a range of a file that a neighbour has.
func TestRangeOfAFile(t *testing.T) {
	s := newSwarm(t, lazyFormation(2, 0))
	f := s.file("file", 32*mib)
	s.start(f, s.peers[0]).wait()
	before := s.origin.Sent(f.path)
	content, _ := random("file", f.size)
	for _, off := range []int{0, 1, 4095, 16384, 1_000_003, len(content) - 30720} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		to := filepath.Join(s.peers[1].Node().Dir(), fmt.Sprintf("part-%d", off))
		err := s.peers[1].Get(ctx, f.url, to, "--range", fmt.Sprintf("%d-%d", off, off+30719))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		checkFile(t, to, content[off:off+30720])
	}
	// Asking which version of the file there is may bring a byte each time.
	if after := s.origin.Sent(f.path); after.Bytes-before.Bytes > 64 {
		t.Errorf("the origin sent %+v, before the ranges it was %+v", after, before)
	}
}
