package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"skimmer/internal/blob/blobtest"
)

func TestUnpackStream(t *testing.T) {
	content := blobtest.Bytes(1, 3<<20)
	text := bytes.Repeat([]byte("layer "), 1<<19)
	gz := func(parts ...[]byte) []byte {
		var b bytes.Buffer
		for _, p := range parts { // eStargz layers have many members
			w := gzip.NewWriter(&b)
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	var zst bytes.Buffer
	w, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ in, want []byte }{
		"gzip":    {gz(content), content},
		"members": {gz(text, nil, content, text[:1]), bytes.Join([][]byte{text, content, text[:1]}, nil)},
		"zstd":    {zst.Bytes(), text},
		"as is":   {text, text},
		"short":   {text[:2], text[:2]},
		"empty":   {nil, nil},
	} {
		var out bytes.Buffer
		if err := unpackStream(bytes.NewReader(c.in), &out); err != nil || !bytes.Equal(out.Bytes(), c.want) {
			t.Errorf("%s: %d bytes, want %d; error %v", name, out.Len(), len(c.want), err)
		}
	}

	good := gz(text, content)
	damaged := bytes.Clone(good)
	damaged[len(good)/2] ^= 1
	for name, in := range map[string]io.Reader{
		"damaged":           bytes.NewReader(damaged),
		"cut":               bytes.NewReader(good[:len(good)-1]),
		"cut in header":     bytes.NewReader(good[:5]),
		"cut zstd":          bytes.NewReader(zst.Bytes()[:zst.Len()/2]),
		"garbage behind":    bytes.NewReader(append(bytes.Clone(good), "garbage"...)),
		"source that ends":  io.MultiReader(bytes.NewReader(good[:1<<20]), failing{}),
		"source that fails": failing{},
	} {
		if err := unpackStream(in, io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := unpackStream(bytes.NewReader(good), failing{}); !errors.Is(err, errFailing) {
		t.Errorf("nobody takes it: %v", err)
	}
}

var errFailing = errors.New("it fails")

type failing struct{}

func (failing) Read([]byte) (int, error)  { return 0, errFailing }
func (failing) Write([]byte) (int, error) { return 0, errFailing }
