package gunzip

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

// all decompresses everything.
func all(r *Reader, src io.Reader) ([]byte, error) {
	r.Reset(src)
	var out []byte
	for {
		p, err := r.Next()
		out = append(out, p...)
		switch {
		case err == io.EOF:
			return out, nil
		case err != nil:
			return out, err
		case len(p) == 0:
			return out, errors.New("neither bytes nor an error")
		}
	}
}

// contents are of all kinds: what compresses well and badly, with near and far
// matches, long and short codes; more of each unless time is short.
func contents(t testing.TB) map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	times := 4
	if testing.Short() {
		times = 1 // several windows of 32 KiB all the same
	}
	noise := make([]byte, times*175_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	skewed := make([]byte, times*225_000) // codes of up to 15 bits
	for i := range skewed {
		v := 0
		for v < 255 && rnd.IntN(2) == 0 {
			v++
		}
		skewed[i] = byte(v * 7)
	}
	far := bytes.Repeat(append(noise[:32<<10-3:32<<10-3], "abc"...), 5*times)
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(append(bytes.Clone(program[:times*75_000]), noise[:times*25_000]...), bytes.Repeat([]byte("ab"), times*50_000)...)
	return map[string][]byte{
		"empty": nil, "byte": {7}, "zeros": make([]byte, times*250_000), "noise": noise, "skewed": skewed, "far": far,
		"threes": bytes.Repeat([]byte("xyz"), times*25_000), "program": program[:times*500_000], "mixed": mixed,
	}
}

func pack(t testing.TB, p []byte, level int) []byte {
	var buf bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestContents(t *testing.T) {
	r := &Reader{}
	for name, content := range contents(t) {
		for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 6, 9} {
			packed := pack(t, content, level)
			ways := map[string]io.Reader{
				"whole": bytes.NewReader(packed), "halves": iotest.HalfReader(bytes.NewReader(packed)),
				"with its end": iotest.DataErrReader(bytes.NewReader(packed)),
			}
			if len(packed) < 100_000 {
				ways["bytes"] = iotest.OneByteReader(bytes.NewReader(packed))
			}
			for how, src := range ways {
				got, err := all(r, src)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s, level %d, %s: %d bytes of %d, %v", name, level, how, len(got), len(content), err)
				}
			}
		}
	}
}

// TestMembers reads several members with all that a header may have, and sees to
// it that matches do not reach into the member before.
func TestMembers(t *testing.T) {
	var buf bytes.Buffer
	var want []byte
	for i := range 50 {
		w := stdgzip.NewWriter(&buf)
		w.Name, w.Comment, w.Extra = fmt.Sprint("name", i), "comment", bytes.Repeat([]byte{9}, i*10)
		p := bytes.Repeat([]byte(fmt.Sprintln("member", i)), i*400)
		want = append(want, p...)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := all(&Reader{}, bytes.NewReader(buf.Bytes()))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := all(&Reader{}, bytes.NewReader(append(buf.Bytes(), 0))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("with a byte behind: %v", err)
	}
	if _, err := all(&Reader{}, bytes.NewReader(append(buf.Bytes(), make([]byte, 20)...))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with zeros behind: %v", err)
	}
}

// TestEndsEarly cuts data at every byte.
func TestEndsEarly(t *testing.T) {
	r := &Reader{}
	content := append(bytes.Repeat([]byte("to be or not to be, "), 40), contents(t)["noise"][:300]...)
	for _, level := range []int{0, 1, 9, stdgzip.HuffmanOnly} {
		packed := pack(t, content, level)
		for n := range packed {
			got, err := all(r, bytes.NewReader(packed[:n]))
			if n == 0 && err == nil {
				continue
			}
			if err != io.ErrUnexpectedEOF || !bytes.HasPrefix(content, got) {
				t.Fatalf("level %d, %d bytes of %d: %d bytes, %v", level, n, len(packed), len(got), err)
			}
		}
	}
}

// TestSourceFails hands the source's error on, and what came before it.
func TestSourceFails(t *testing.T) {
	packed := pack(t, contents(t)["noise"], 6)
	broken := errors.New("the line is dead")
	_, err := all(&Reader{}, io.MultiReader(bytes.NewReader(packed[:100_000]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestUnpack decompresses from memory to memory, into buffers that are large
// enough and such as are not.
func TestUnpack(t *testing.T) {
	r := &Reader{}
	for name, content := range contents(t) {
		for _, level := range []int{0, 1, 9} {
			packed := pack(t, content, level)
			dst := make([]byte, len(content)+Slack)
			n, err := r.Unpack(dst, append(packed, "more"...))
			if len(content) == 0 {
				if err == nil {
					t.Error("an empty member was unpacked")
				}
				continue
			}
			if err != nil || !bytes.Equal(dst[:n], content) {
				t.Errorf("%s, level %d: %d bytes of %d, %v", name, level, n, len(content), err)
			}
			if _, err := r.Unpack(dst[:len(content)/2+Slack-1], packed); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, level %d: into too little room: %v", name, level, err)
			}
			if _, err := r.Unpack(dst, packed[:len(packed)-5]); err != io.ErrUnexpectedEOF {
				t.Errorf("%s, level %d: cut: %v", name, level, err)
			}
			packed[len(packed)-8] ^= 1
			if _, err := r.Unpack(dst, packed); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, level %d: with a wrong sum: %v", name, level, err)
			}
		}
	}
}

// TestStopsAtMember sees that nothing behind a member is asked for before the
// next call: it may never come.
func TestStopsAtMember(t *testing.T) {
	content := []byte("all there is")
	packed := pack(t, content, 6)
	r := &Reader{}
	r.Reset(io.MultiReader(bytes.NewReader(packed), iotest.ErrReader(errors.New("asked for more"))))
	got, err := r.Next()
	if err != nil && len(got) == 0 || !bytes.Equal(got, content) {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzReader compares with the standard library's reader: the same bytes, and
// an error where that has one.
func FuzzReader(f *testing.F) {
	for _, content := range contents(f) {
		for _, level := range []int{0, 1, 9, stdgzip.HuffmanOnly} {
			f.Add(pack(f, content[:min(len(content), 3000)], level), uint16(0), byte(0))
		}
	}
	r := &Reader{}
	f.Fuzz(func(t *testing.T, data []byte, at uint16, flip byte) {
		if len(data) > 0 {
			data = bytes.Clone(data)
			data[int(at)%len(data)] ^= flip
		}
		var want []byte
		zr, wantErr := stdgzip.NewReader(bytes.NewReader(data))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(zr, 64<<20))
		} else if wantErr == io.EOF {
			wantErr = nil // nothing at all is no member at all
		}
		got, err := all(r, bytes.NewReader(data))
		if len(want) == 64<<20 {
			return
		}
		switch {
		case (err == nil) != (wantErr == nil):
			t.Fatalf("error %v, want %v", err, wantErr)
		case err == nil && !bytes.Equal(got, want):
			t.Fatal("other bytes")
		case !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want):
			t.Fatal("other bytes before the error")
		}
	})
}

// BenchmarkReader reads a program, which is what most of a lazy start is, as
// layers have it, with klauspost's reader beside it.
func BenchmarkReader(b *testing.B) {
	for _, path := range []string{"/usr/bin/python3.11", "/proc/self/exe"} {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		content = content[:min(len(content), 4<<20)]
		for _, level := range []int{6, 9} {
			packed := pack(b, content, level)
			b.Run(fmt.Sprintf("%s/%d/ours", path, level), func(b *testing.B) {
				r := &Reader{}
				b.SetBytes(int64(len(content)))
				for b.Loop() {
					r.Reset(bytes.NewReader(packed))
					for {
						if _, err := r.Next(); err != nil {
							break
						}
					}
				}
			})
			b.Run(fmt.Sprintf("%s/%d/klauspost", path, level), func(b *testing.B) {
				zr := new(gzip.Reader)
				buf := make([]byte, 256<<10)
				b.SetBytes(int64(len(content)))
				for b.Loop() {
					if err := zr.Reset(bytes.NewReader(packed)); err != nil {
						b.Fatal(err)
					}
					for {
						if _, err := zr.Read(buf); err != nil {
							break
						}
					}
				}
			})
		}
	}
}
