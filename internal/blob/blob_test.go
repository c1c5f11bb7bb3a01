package blob_test

import (
	"context"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

func memory(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
	m := &blobtest.Memory{}
	var refs []blob.Ref
	for _, p := range contents {
		refs = append(refs, m.Add(p))
	}
	return m, refs
}

func TestMemoryConforms(t *testing.T) { blobtest.Run(t, memory) }

func TestMeterConformsAndCounts(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
		src, refs := memory(t, contents)
		return blob.Meter(src, &blob.Counter{}), refs
	})

	var c blob.Counter
	src, refs := memory(t, [][]byte{make([]byte, 1000)})
	src = blob.Meter(src, &c)
	b, err := src.Open(t.Context(), refs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.ReadFull(t.Context(), b, make([]byte, 300), 500); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadRange(t.Context(), blob.Range{Off: 2000, Len: 1}); err == nil {
		t.Fatal("range outside the blob was accepted")
	}
	got := fmt.Sprint(c.Opens.Load(), c.Reads.Load(), c.Bytes.Load(), c.Errors.Load())
	if want := "1 2 300 1"; got != want {
		t.Errorf("opens reads bytes errors = %s, want %s", got, want)
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want blob.Kind
	}{
		{blob.Errorf(blob.Busy, "x"), blob.Busy},
		{fmt.Errorf("outer: %w", blob.Errorf(blob.Corrupt, "x")), blob.Corrupt},
		{blob.Errorf(blob.Unavailable, "outer: %w", blob.Errorf(blob.Corrupt, "x")), blob.Unavailable},
		{fmt.Errorf("outer: %w", blob.Forbidden), blob.Forbidden},
		{context.Canceled, blob.Canceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), blob.Timeout},
		{&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, blob.Full},
		{fs.ErrNotExist, blob.NotFound},
		{errors.New("x"), blob.Internal},
	} {
		if got := blob.KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
	for _, k := range blob.Kinds() {
		if k.Error() == "" {
			t.Errorf("kind %d has no name", k)
		}
		if err := blob.Errorf(k, "x"); !errors.Is(err, k) {
			t.Errorf("an error of kind %v is not errors.Is that kind", k)
		}
	}
}

func TestReaderAt(t *testing.T) {
	src, refs := memory(t, [][]byte{[]byte("0123456789")})
	b, err := src.Open(t.Context(), refs[0])
	if err != nil {
		t.Fatal(err)
	}
	r := blob.ReaderAt(t.Context(), b)
	p := make([]byte, 4)
	if n, err := r.ReadAt(p, 3); n != 4 || err != nil || string(p) != "3456" {
		t.Errorf("ReadAt inside = %d, %v, %q", n, err, p)
	}
	if n, err := r.ReadAt(p, 8); n != 2 || err != io.EOF || string(p[:2]) != "89" {
		t.Errorf("ReadAt across the end = %d, %v, %q", n, err, p[:n])
	}
	if n, err := r.ReadAt(p, 10); n != 0 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v", n, err)
	}
}

func TestMeterCountsRanges(t *testing.T) {
	var c blob.Counter
	src, refs := memory(t, [][]byte{make([]byte, 1000)})
	b, err := blob.Meter(src, &c).Open(t.Context(), refs[0])
	if err != nil {
		t.Fatal(err)
	}
	rs := []blob.Range{{Off: 10, Len: 20}, {Off: 30, Len: 5}}
	l := blobtest.NewLanding(rs)
	if err := blob.ReadRanges(t.Context(), b, rs, l.Land); err != nil {
		t.Fatal(err)
	}
	if err := blob.ReadRanges(t.Context(), b, []blob.Range{{Off: 10, Len: 20}, {Off: 29, Len: 5}}, l.Land); err == nil {
		t.Fatal("overlapping ranges were accepted")
	}
	got := fmt.Sprint(c.Opens.Load(), c.Reads.Load(), c.Bytes.Load(), c.Errors.Load())
	if want := "1 4 25 1"; got != want {
		t.Errorf("opens reads bytes errors = %s, want %s", got, want)
	}
}

func TestCheckDigest(t *testing.T) {
	hex := digest.FromString("x").Encoded()
	for d, good := range map[string]bool{
		"sha256:" + hex: true, digest.SHA512.FromString("x").String(): true, "url:" + hex: true,
		"url:": false, "url:" + hex[1:]: false, "url:" + hex + "0": false, "url:" + strings.ToUpper(hex): false, "url:../" + hex[3:]: false,
		"": false, "md5:00000000000000000000000000000000": false, "sha256:" + hex[1:]: false, "URL:" + hex: false,
	} {
		if err := blob.CheckDigest(digest.Digest(d)); (err == nil) != good || err != nil && blob.KindOf(err) != blob.Invalid {
			t.Errorf("%q: %v, want good %v", d, err, good)
		}
	}
	if blob.Verifiable(digest.Digest("url:"+hex)) || !blob.Verifiable(digest.Digest("sha256:"+hex)) {
		t.Error("only what is made of the content can be compared with it")
	}
}

func TestRefKeepsSecrets(t *testing.T) {
	r := blob.Ref{Digest: digest.FromString("x"), URL: "https://example.test/file?sig=secret#tag=x"}
	if got, want := r.String(), "https://example.test/file@"+r.Digest.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTraffic(t *testing.T) {
	var c blob.Traffic
	ctx := blob.WithTraffic(t.Context(), &c)
	blob.TrafficOf(ctx).Peers.Add(3)
	blob.TrafficOf(t.Context()).Peers.Add(5) // counted for nobody
	if c.Peers.Load() != 3 {
		t.Errorf("%d, want 3", c.Peers.Load())
	}
}
