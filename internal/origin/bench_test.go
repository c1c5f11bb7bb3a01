package origin

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// BenchmarkSequentialRanges reads a blob in ranges of 1 MiB through the
// origin and with a bare http.Client, in turn, from the same server. It
// reports the speed of the first as a part of the second's.
func BenchmarkSequentialRanges(b *testing.B) {
	const size, step = 16 << 20, 1 << 20
	reg := testkit.NewRegistry(b, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, size))
	open, err := newOrigin(b).Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	url := fmt.Sprintf("%s/v2/some/repo/blobs/%s", reg.URL(), ref.Digest)
	buf := make([]byte, step)
	var origin, bare time.Duration
	b.SetBytes(2 * size)
	for b.Loop() {
		start := time.Now()
		for off := int64(0); off < size; off += step {
			if err := blob.ReadFull(b.Context(), open, buf, off); err != nil {
				b.Fatal(err)
			}
		}
		middle := time.Now()
		for off := int64(0); off < size; off += step {
			if err := bareRead(b, url, buf, off); err != nil {
				b.Fatal(err)
			}
		}
		origin += middle.Sub(start)
		bare += time.Since(middle)
	}
	b.ReportMetric(bare.Seconds()/origin.Seconds(), "of-http.Client")
}

func bareRead(b *testing.B, url string, buf []byte, off int64) error {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", "bytes="+blob.Range{Off: off, Len: int64(len(buf))}.String())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.ReadFull(resp.Body, buf)
	return err
}

// BenchmarkWhole reads a blob from end to end, its digest checked.
func BenchmarkWhole(b *testing.B) {
	const size = 64 << 20
	reg := testkit.NewRegistry(b, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, size))
	open, err := newOrigin(b).Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		rc, err := open.ReadRange(b.Context(), blob.Range{Len: size})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			b.Fatal(err)
		}
		rc.Close()
	}
}
