package estargz

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestUnpack says which tables of contents are decompressed the fast way: what
// we and the stock tools build.
func TestUnpack(t *testing.T) {
	src := makeTar(t, stockFiles())
	ours, built := buildBytes(t, src, BuildOptions{})
	theirs, toc := stockBuild(t, src)
	for name, c := range map[string]struct {
		layer []byte
		toc   digest.Digest
	}{"ours": {ours, built.TOCDigest}, "stock": {theirs, toc}} {
		loc, err := parseFooter(c.layer, int64(len(c.layer)))
		if err != nil {
			t.Fatal(err)
		}
		buf := new(tocBuffer)
		packed := c.layer[loc.off:][:loc.size]
		p, ok := buf.unpack(packed, loc.limit())
		if !ok || digest.FromBytes(p) != c.toc {
			t.Errorf("%s: %v, %d bytes with digest %v, want %v", name, ok, len(p), digest.FromBytes(p), c.toc)
		}
		if _, ok := buf.unpack(packed, int64(len(p))-1); ok {
			t.Errorf("%s: a table longer than the limit was taken", name)
		}
	}
}

// TestUnpackLeaves says that what is not decompressed the fast way is read all
// the same, as long as it is what the manifest promises.
func TestUnpackLeaves(t *testing.T) {
	const toc = `{"version":1,"entries":[]}`
	good := layerOf(t, tocName, []byte(toc))
	loc, err := parseFooter(good, int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	end := int(loc.off + loc.size)
	for name, at := range map[string]int{"another length": end - 4, "another checksum": end - 8} {
		layer := bytes.Clone(good)
		layer[at] ^= 1
		if _, ok := new(tocBuffer).unpack(layer[loc.off:end], loc.limit()); ok {
			t.Errorf("%s: was taken", name)
		}
		got, err := ReadTOC(t.Context(), openBlob(t, layer), digest.FromString(toc), ReadOptions{})
		if err != nil || len(got.Entries) != 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
