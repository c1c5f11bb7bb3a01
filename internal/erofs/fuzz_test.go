package erofs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// source makes layers out of arbitrary bytes. Names come from a small
// alphabet, so that entries meet each other; what must be refused is rare, so
// that something comes out.
type source struct {
	bytes []byte
	names []string // so far, for hard links
}

func (s *source) next() byte {
	if len(s.bytes) == 0 {
		return 0
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return b
}

// one reports true once in n times, for n up to 256.
func (s *source) one(n int) bool { return int(s.next())%n == n-1 }

func pick[T any](s *source, from ...T) T { return from[int(s.next())%len(from)] }

// dir makes the name of a directory, or of a symlink to one.
func (s *source) dir() string {
	var elems []string
	for range s.next() % 3 {
		elems = append(elems, pick(s, "a", "b", "lib", "!", "usr", "long-"+strings.Repeat("d", 200)))
	}
	return strings.Join(elems, "/")
}

func (s *source) leaf() string {
	switch {
	case s.one(8):
		return ".wh." + pick(s, "f", "g", "a", "b", "lib", ".wh..opq", ".wh..opq", ".wh.plnk")
	case s.one(16):
		return strings.Repeat("n", int(s.next())+1)
	case s.one(256):
		return pick(s, "", ".", "..", ".wh.", ".wh..", ".wh...", "zero\x00", ".wh..wh.")
	case s.one(64):
		return pick(s, "a", "b", "lib", "!") // a file where a directory may be
	}
	return pick(s, "f", "g", "h", "x.y", "-", "~", "+++")
}

func (s *source) symlink() string {
	return pick(s, "", "", "/", "../", "a/../", "./", "//") + pick(s, "a", "usr", "b/lib", "f", "lib", strings.Repeat("./", 1000)+"a", strings.Repeat("b/../", 800), strings.Repeat("y", 240))
}

func (s *source) file() file {
	f := reg("", 0)
	switch up := s.dir(); s.next() % 8 {
	case 0, 1:
		f.Name, f.Type = up, estargz.Dir
	case 2:
		if f.Name, f.Type = up, estargz.Symlink; up == "" {
			f.Type = estargz.Dir
		}
		f.Link = s.symlink()
	default:
		size := 0
		if s.one(4) {
			size = int(s.next()) * 64
		}
		f = reg(strings.TrimPrefix(up+"/"+s.leaf(), "/"), size)
		f.Type = pick(s, estargz.Regular, estargz.Regular, estargz.Regular, estargz.Dir, estargz.Symlink, estargz.Hardlink, estargz.Hardlink, estargz.Char, estargz.Block, estargz.Fifo)
		if s.one(256) {
			f.Type = 77
		}
	}
	if f.Type != estargz.Regular {
		f.Size, f.data = 0, nil
	}
	switch f.Type {
	case estargz.Symlink:
		f.Link = s.symlink()
	case estargz.Hardlink:
		if f.Link = "f"; len(s.names) > 0 {
			f.Link = s.names[len(s.names)-1-int(s.next())%len(s.names)%4]
		}
	case estargz.Char, estargz.Block:
		f.DevMajor, f.DevMinor = uint32(s.next())<<4, uint32(s.next())<<12
	case estargz.Regular:
		s.names = append(s.names, f.Name)
	}
	if s.one(4) {
		names := []string{"security.s", "trusted.s", "trusted.t", "trusted.u", "user.a", "user.b", "user." + strings.Repeat("n", 250)}
		for _, n := range names[:int(s.next())%len(names)] {
			f.Xattrs = append(f.Xattrs, xattrOf(n, strings.Repeat("v", int(s.next())%5*int(s.next()))))
		}
		if f.Type != estargz.Regular && f.Type != estargz.Dir {
			f.Xattrs = slices.DeleteFunc(f.Xattrs, func(x estargz.Xattr) bool { return strings.HasPrefix(x.Name, "user.") })
		}
	}
	f.Mode, f.UID, f.GID = uint32(s.next())<<4|uint32(s.next())>>4, uint32(s.next())<<24, uint32(s.next())
	return f
}

func (s *source) layers() []layer {
	var layers []layer
	for range s.next()%4 + 1 {
		var files []file
		s.names = s.names[:min(len(s.names), 3)]
		for range s.next() % 24 {
			files = append(files, s.file())
		}
		layers = append(layers, makeLayer(files...))
	}
	return layers
}

// fuzzOnce builds an image of what data says and compares it with the
// reference unpacker, as go-erofs sees it. It returns nil where Build refused.
func fuzzOnce(t *testing.T, data []byte) []byte {
	layers := (&source{bytes: data}).layers()
	var img bytes.Buffer
	info, err := Build(&img, tocs(layers), Options{})
	if err != nil {
		if !errors.Is(err, blob.Invalid) {
			t.Fatalf("a failure without a kind: %v", err)
		}
		return nil
	}
	want, err := unpack(layers)
	if err != nil {
		t.Fatalf("Build merged what cannot be unpacked: %v", err)
	}
	var devices [][]byte
	for _, i := range info.Devices {
		devices = append(devices, layers[i].data)
	}
	got, err := seeWithReader(img.Bytes(), devices)
	if err != nil {
		t.Fatalf("read with go-erofs: %v", err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	// An image for overlayfs must come out of each layer that can be merged
	// alone.
	img.Reset()
	if _, err := Build(&img, tocs(layers[:1]), Options{KeepWhiteouts: true}); err != nil && !errors.Is(err, blob.Invalid) {
		t.Fatalf("keep whiteouts: %v", err)
	}
	return img.Bytes()
}

func FuzzBuild(f *testing.F) {
	for i := range 40 {
		f.Add(randomBytes(i))
	}
	f.Fuzz(func(t *testing.T, data []byte) { fuzzOnce(t, data) })
}

func randomBytes(i int) []byte { return reg("seed", 100+40*i).data }

// TestRandomLayers runs more of what FuzzBuild runs, and has fsck.erofs and
// the kernel look at some of the images.
func TestRandomLayers(t *testing.T) {
	built, looked, step := 0, 0, 1
	if testing.Short() {
		step = 5 // small ones and large ones, fewer of them
	}
	for i := 0; i < 500; i += step {
		data := randomBytes(i)
		if fuzzOnce(t, data) == nil {
			continue
		}
		built++
		if looked++; looked > 25 {
			continue
		}
		layers := (&source{bytes: data}).layers()
		check(t, layers...)
		build(t, Options{KeepWhiteouts: true}, layers[0])
	}
	if built < 150/step {
		t.Errorf("of %d random images only %d could be built: the generator is no good", 500/step, built)
	}
}

// FuzzInspect feeds Inspect damaged images.
func FuzzInspect(f *testing.F) {
	var img bytes.Buffer
	if _, err := Build(&img, tocs([]layer{everything(), makeLayer(reg("x", 1))}), Options{}); err != nil {
		f.Fatal(err)
	}
	f.Add(img.Bytes())
	f.Add(img.Bytes()[:2000])
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := Inspect(path)
		if err == nil && info.Size != int64(len(data)) {
			t.Errorf("size %d of an image of %d bytes", info.Size, len(data))
		}
	})
}
