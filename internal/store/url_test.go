package store

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// urls gives the blobs of a Memory the identities of plain URLs.
type urls struct {
	*blobtest.Memory
	real map[digest.Digest]blob.Ref
}

func (p urls) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	return p.Memory.Open(ctx, p.real[ref.Digest])
}

func memoryURLs(contents [][]byte) (urls, []blob.Ref) {
	m, refs := memory(contents)
	p := urls{m, make(map[digest.Digest]blob.Ref)}
	for i, ref := range refs {
		refs[i].Digest = digest.NewDigestFromEncoded(blob.AlgorithmURL, digest.FromString(ref.Digest.String()).Encoded())
		refs[i].Repository, refs[i].URL = "", "https://example.test/file?sig=secret#tag=x"
		p.real[refs[i].Digest] = ref
	}
	return p, refs
}

// TestURLBlobs keeps blobs whose identity says nothing of their bytes.
func TestURLBlobs(t *testing.T) {
	content := blobtest.Bytes(1, 1<<20+5)
	src, refs := memoryURLs([][]byte{content, {}})
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	b := openBlob(t, s.Through(src), refs[0])
	mustRead(t, b, blob.Range{Off: 5, Len: 10}, content)
	settle(t, s, refs[0].Digest)
	if i, err := s.Stat(refs[0].Digest); err != nil || i.Complete || i.URL != "https://example.test/file" {
		t.Errorf("of a part: %+v, %v", i, err)
	}
	var count blob.Traffic
	if _, err := read(blob.WithTraffic(t.Context(), &count), b, whole(content)); err != nil {
		t.Error(err)
	}
	if n := count.Local.Load(); n == 0 || n >= int64(len(content)) {
		t.Errorf("%d bytes are said to have been here", n)
	}
	settle(t, s, refs[0].Digest)
	if i, err := s.Stat(refs[0].Digest); err != nil || !i.Complete || i.Present != int64(len(content)) {
		t.Errorf("of all: %+v, %v", i, err)
	}
	empty := openBlob(t, s.Through(src), refs[1])
	mustRead(t, empty, blob.Range{}, nil)
	b.Close()
	empty.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, Config{Dir: dir})
	if i, err := s.Stat(refs[0].Digest); err != nil || !i.Complete || i.URL != "https://example.test/file" {
		t.Errorf("after a restart: %+v, %v", i, err)
	}
	b = openBlob(t, s.Local(), blob.Ref{Digest: refs[0].Digest, Size: blob.SizeUnknown})
	mustRead(t, b, whole(content), content)
	b.Close()

	// What rots on disk is noticed, too.
	hex := refs[0].Digest.Encoded()
	data, err := os.OpenFile(filepath.Join(dir, "blobs", "url", hex[:2], hex, "data"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	if _, err := data.WriteAt([]byte("rotten"), 300_000); err != nil {
		t.Fatal(err)
	}
	b = openBlob(t, s.Through(src), refs[0])
	b.(blob.Rejecter).Reject(whole(content))
	mustRead(t, b, whole(content), content)
	if n := s.Stats().CRCFailures; n != 1 {
		t.Errorf("%d damaged pieces, want 1", n)
	}
	settle(t, s, refs[0].Digest)
	if i, err := s.Stat(refs[0].Digest); err != nil || !i.Complete {
		t.Errorf("after it was fetched again: %+v, %v", i, err)
	}
}
