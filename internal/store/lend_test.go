package store

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// What is held is lent as a file with the checksums of its pieces, and what is
// not is not.
func TestLend(t *testing.T) {
	content := blobtest.Bytes(1, 300_000)
	m, refs := memory([][]byte{content})
	b := openBlob(t, openStore(t, exact(t.TempDir())).Through(m), refs[0])
	part := make([]byte, 100_000)
	if err := blob.ReadFull(t.Context(), b, part, 50_000); err != nil {
		t.Fatal(err)
	}
	lender := b.(interface {
		Lend(r blob.Range) (*os.File, int64, []uint32, bool)
		Held() []blob.Range
	})
	// Whole pieces of 16 KiB around what was read.
	want := []blob.Range{{Off: 3 * 16384, Len: 7 * 16384}}
	testkit.Eventually(t, time.Minute, "what was read is kept", func() error {
		if held := lender.Held(); !slices.Equal(held, want) {
			return fmt.Errorf("held: %v, want %v", held, want)
		}
		return nil
	})
	f, piece, sums, ok := lender.Lend(blob.Range{Off: 50_000, Len: 100_000})
	if !ok || piece != 16384 || len(sums) != 7 {
		t.Fatalf("lent: %t, pieces of %d, %d sums", ok, piece, len(sums))
	}
	got := make([]byte, 7*piece)
	if _, err := f.ReadAt(got, 3*piece); err != nil || !bytes.Equal(got, content[3*piece:10*piece]) {
		t.Errorf("the file holds something else: %v", err)
	}
	for i, sum := range sums {
		if s := crc32.Checksum(got[int64(i)*piece:int64(i+1)*piece], crc32.MakeTable(crc32.Castagnoli)); s != sum {
			t.Errorf("piece %d: checksum %#x, want %#x", i, sum, s)
		}
	}
	if _, _, _, ok := lender.Lend(blob.Range{Off: 0, Len: 100}); ok {
		t.Error("a piece that is not here was lent")
	}
}
