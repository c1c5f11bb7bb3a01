package erofs

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/estargz"
)

// distribution makes a layer of n entries shaped like a distribution's root
// file system: 8 % directories of very different size, 12 % symlinks, long
// names of packages and modules, few attributes.
func distribution(n int) *estargz.TOC {
	rng := rand.New(rand.NewPCG(uint64(n), 3))
	toc := &estargz.TOC{Digest: digest.FromString(fmt.Sprint(n))}
	d := "usr"
	var off int64
	for i := range n {
		e := estargz.Entry{Mode: 0o644, MTime: 1700000000 + int64(i), Name: path.Join(d, fmt.Sprintf("python3-module-%d.cpython-311.pyc", i))}
		switch {
		case rng.IntN(100) < 8:
			for up := rng.IntN(4); up > 0 || strings.Count(d, "/") > 7; up-- {
				d = path.Dir(d)
			}
			d = path.Join(d, fmt.Sprintf("package-%d", i))
			e.Name, e.Type, e.Mode = d, estargz.Dir, 0o755
		case rng.IntN(100) < 12:
			e.Type, e.Link, e.Mode = estargz.Symlink, "../share/doc/package/changelog.gz", 0o777
		default:
			e.Type, e.Size = estargz.Regular, rng.Int64N(1<<16)
			if rng.IntN(1000) == 0 {
				e.Xattrs = []estargz.Xattr{{Name: "security.capability", Value: make([]byte, 20)}}
			}
			if e.Size > 0 {
				e.DataOff = off
				off += alignUp(e.Size, blockSize)
			}
		}
		toc.Entries = append(toc.Entries, e)
	}
	toc.Index.DataSize = off
	return toc
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{5_000, 20_000, 200_000} {
		toc := distribution(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			var info Info
			for b.Loop() {
				var err error
				if info, err = Build(io.Discard, []*estargz.TOC{toc}, Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(info.Size)/float64(n), "image-bytes/entry")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
		})
	}
}

// BenchmarkBuildLayers merges the same 20,000 entries from 20 layers, each of
// which also replaces a tenth of the one below.
func BenchmarkBuildLayers(b *testing.B) {
	all := distribution(20_000)
	var layers []*estargz.TOC
	for i := range 20 {
		l := &estargz.TOC{Digest: all.Digest, Index: all.Index, Entries: all.Entries[max(i*1000-100, 0) : (i+1)*1000]}
		layers = append(layers, l)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(io.Discard, layers, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHugeDirectory builds one directory of 100,000 entries that come in
// no order.
func BenchmarkHugeDirectory(b *testing.B) {
	toc := &estargz.TOC{Digest: digest.FromString("huge")}
	for i := range 100_000 {
		toc.Entries = append(toc.Entries, estargz.Entry{Name: fmt.Sprintf("d/entry-%07d", i*7919%100_000), Type: estargz.Regular})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(io.Discard, []*estargz.TOC{toc}, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkJSON is what Build is measured against: encoding/json decoding a
// TOC of the same 20,000 entries.
func BenchmarkJSON(b *testing.B) {
	var j stargz.JTOC
	j.Version = 1
	types := map[estargz.EntryType]string{estargz.Dir: "dir", estargz.Regular: "reg", estargz.Symlink: "symlink"}
	for i, e := range distribution(20_000).Entries {
		s := digest.FromString(e.Name).String()
		t := &stargz.TOCEntry{Name: e.Name, Type: types[e.Type], Mode: int64(e.Mode), Size: e.Size, LinkName: e.Link,
			ModTime3339: time.Unix(e.MTime, 0).UTC().Format(time.RFC3339)}
		if e.Size > 0 {
			t.Offset, t.Digest, t.ChunkDigest = int64(i)*20_000, s, s
		}
		j.Entries = append(j.Entries, t)
	}
	p, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		var into stargz.JTOC
		if err := json.Unmarshal(p, &into); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMount mounts and unmounts a ready image of 20,000 entries.
func BenchmarkMount(b *testing.B) {
	toc := distribution(20_000)
	toc.Index.DataSize = 0
	for i := range toc.Entries {
		toc.Entries[i].Size, toc.Entries[i].DataOff = 0, 0
	}
	im := build(b, Options{}, layer{toc: toc})
	target := b.TempDir()
	for b.Loop() {
		if err := Mount(MountOptions{Metadata: im.path, Devices: im.devices, Target: target}); err != nil {
			b.Fatal(err)
		}
		if err := Unmount(target, false); err != nil {
			b.Fatal(err)
		}
	}
}
