package store

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

func journalOf(rs ...record) (p []byte) {
	for _, r := range rs {
		p = r.encode(p)
	}
	return p
}

func FuzzJournal(f *testing.F) {
	good := journalOf(
		record{recPiece, 0, 1}, record{recPiece, 1, 2}, record{kind: recCheckpoint, index: 2},
		record{kind: recComplete}, record{kind: recDropped, index: 1}, record{recPiece, 1, 3},
		record{kind: recReset}, record{recPiece, 1, 4})
	f.Add(good, uint16(2))
	f.Add(good[:len(good)-5], uint16(2))
	f.Add(good, uint16(1))
	f.Add(journalOf(record{kind: recCheckpoint, index: 1 << 31}), uint16(9))
	f.Add(journalOf(record{kind: recComplete}), uint16(0))
	f.Add(make([]byte, 64), uint16(3))
	f.Fuzz(func(t *testing.T, p []byte, n uint16) {
		s, doubtful := decodeJournal(p, int(n))
		if int(s.records)*recordSize > len(p) || s.covered > s.records {
			t.Fatalf("%d records, %d covered, in %d bytes", s.records, s.covered, len(p))
		}
		if s.complete && s.present.count() != int(n) {
			t.Fatalf("complete with %d of %d pieces", s.present.count(), n)
		}
		for _, i := range doubtful {
			if !s.present.has(i) {
				t.Fatalf("piece %d is doubtful but not there", i)
			}
		}
		// The valid part is all there is to know.
		again, _ := decodeJournal(p[:s.records*recordSize], int(n))
		if again.records != s.records || again.complete != s.complete || again.present.count() != s.present.count() {
			t.Fatal("the valid part decodes differently alone")
		}
	})
}

func FuzzInfo(f *testing.F) {
	good, err := encodeInfo(info{Version: 1, Digest: digest.FromString("x"), Size: 1 << 30, PieceSize: 256 << 10,
		MediaType: "application/x", Repository: "r.example/a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:50])
	f.Add([]byte(`{"version":1,"digest":"sha256:../../../etc","size":1,"pieceSize":262144}`))
	f.Add([]byte(`{"version":1,"size":-1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, p []byte) {
		i, err := decodeInfo(p)
		if err != nil {
			return
		}
		if g := geometryOf(i.Size, i.PieceSize); g.pieces > maxPieces || g.pieceSize != i.PieceSize {
			t.Fatalf("accepted %+v", i)
		}
		q, err := encodeInfo(i)
		if err != nil {
			t.Fatal(err)
		}
		if j, err := decodeInfo(q); err != nil || i != j {
			t.Fatalf("%+v came back as %+v, %v", i, j, err)
		}
	})
}
