package estargz

import (
	"context"
	"encoding/base64"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// A layer of a few files is read from its annotations alone; one whose
// annotation is not what the digest promises is read from the blob.
func TestInlineTOC(t *testing.T) {
	layer, built := buildBytes(t, makeTar(t, manyFiles(3)), BuildOptions{})
	if built.Annotations[TOCAnnotation] == "" {
		t.Fatal("a layer of three files has no table of contents in its annotations")
	}
	if _, large := buildBytes(t, makeTar(t, manyFiles(300)), BuildOptions{}); large.Annotations[TOCAnnotation] != "" {
		t.Errorf("one of 300 files has: %d bytes", len(large.Annotations[TOCAnnotation]))
	}
	reads := 0
	m := &blobtest.Memory{Before: func(context.Context, blob.Ref, blob.Range) error { reads++; return nil }}
	b, err := m.Open(t.Context(), m.Add(layer))
	if err != nil {
		t.Fatal(err)
	}
	want, opts := Promised(built.Annotations)
	inline, err := ReadTOC(t.Context(), b, want, opts)
	if err != nil || reads != 0 {
		t.Fatalf("%d reads, %v", reads, err)
	}
	opts.TOC = ""
	whole, err := ReadTOC(t.Context(), b, want, opts)
	if err != nil || reads == 0 {
		t.Fatalf("%d reads, %v", reads, err)
	}
	if diff := cmp.Diff(whole, inline); diff != "" {
		t.Errorf("the annotation says something else than the layer (-layer +annotation):\n%s", diff)
	}
	other, err := packInline([]byte(`{"version":1,"entries":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{other, "not base64", base64.StdEncoding.EncodeToString([]byte("not gzip"))} {
		before := reads
		opts.TOC = bad
		if toc, err := ReadTOC(t.Context(), b, want, opts); err != nil || cmp.Diff(whole, toc) != "" || reads == before {
			t.Errorf("annotation %q: %v, %d reads", bad, err, reads-before)
		}
	}
}

func FuzzInlineTOC(f *testing.F) {
	json := []byte(`{"version":1,"entries":[{"name":"a","type":"dir"}]}`)
	packed, err := packInline(json)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		toc, ok := inlineTOC(digest.FromBytes(json), 1000, ReadOptions{TOC: text, TOCOff: 500})
		if ok && (len(toc.Entries) != 1 || toc.Entries[0].Name != "a") {
			t.Errorf("%q is said to be what was promised: %+v", text, toc)
		}
	})
}
