package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// crashWorld is what a recorded run of a store worked on.
type crashWorld struct {
	contents [][]byte // right ones
	refs     []blob.Ref
	whole    int // refs[whole] becomes complete and is removed at the end
	lied     int // refs[lied] is sent wrongly at first
	from     string
	ops      []Op
	pieces   int64 // Config.PieceSize
}

// recordRun runs a store through everything that changes its files.
func recordRun(t *testing.T, pieceSize int64) crashWorld {
	w := crashWorld{whole: 0, lied: 2, from: t.TempDir(), pieces: pieceSize}
	for i := range 4 {
		w.contents = append(w.contents, blobtest.Bytes(uint64(i), int(768*kib)+i*1000))
	}
	m, refs := memory(w.contents)
	w.refs = refs
	d := &disk{}
	reopen := func() *Store {
		s, err := Open(Config{Dir: w.from, FS: d.fs(), PieceSize: w.pieces})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	at := func(src blob.Source, i int, r blob.Range) blob.Blob {
		b, err := src.Open(t.Context(), refs[i])
		if err != nil {
			t.Fatal(err)
		}
		// What was sent wrongly fails; the others are checked elsewhere.
		if _, err := read(t.Context(), b, r); err != nil && i != w.lied {
			t.Fatal(err)
		}
		return b
	}

	s := reopen()
	at(s.Through(m), w.whole, whole(w.contents[w.whole])).Close()
	at(s.Through(m), 1, blob.Range{Off: 300 * kib, Len: 10}).Close()
	quiet(s, refs[1].Digest)
	s.tend(1)
	b := at(s.Through(m), 1, blob.Range{Off: 10, Len: 10})
	settle(t, s, refs[1].Digest)
	b.(blob.Rejecter).Reject(blob.Range{Off: 260 * kib, Len: 1})
	if _, err := read(t.Context(), b, blob.Range{Off: 300 * kib, Len: 10}); err != nil {
		t.Fatal(err)
	}
	b.Close()
	at(s.Through(&liar{content: flipped(w.contents[w.lied], 5)}), w.lied, whole(w.contents[w.lied])).Close()
	quiet(s, refs[w.lied].Digest)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = reopen()
	at(s.Through(m), w.lied, whole(w.contents[w.lied])).Close()
	at(s.Through(m), 1, whole(w.contents[1])).Close()
	at(s.Through(m), 3, blob.Range{Off: 700 * kib, Len: 100}).Close()
	quiet(s, refs[w.whole].Digest)
	if err := s.Remove(refs[w.whole].Digest); err != nil {
		t.Fatal(err)
	}
	at(s.Through(m), w.whole, blob.Range{Off: 5, Len: 5}).Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.ops = d.log
	return w
}

// promised reports whether, after n operations, refs[whole] has to be there
// and complete: its completion was synced and its removal had not begun.
func (w crashWorld) promised(n int) bool {
	dir := blobDir(filepath.Join(w.from, "blobs"), w.refs[w.whole].Digest)
	noted, kept := false, false
	for _, op := range w.ops[:n] {
		if filepath.Dir(op.Path) != dir {
			continue
		}
		switch {
		case op.Name == OpRemove:
			return false
		case op.Name == OpWrite && filepath.Base(op.Path) == journalName:
			r, ok := decodeRecord(op.Data)
			noted = noted || ok && r.kind == recComplete
		case op.Name == OpSync && filepath.Base(op.Path) == journalName:
			kept = noted
		}
	}
	return kept
}

// check opens the store that a crash left and reads everything.
func (w crashWorld) check(t *testing.T, dir string, n int) error {
	// The power does not fail again, so syncing this store would only take
	// time; that it cannot is of no consequence but an error from Close.
	d := &disk{}
	d.fail(errors.New("not now"), OpSync, OpSyncDir)
	s, err := Open(Config{Dir: dir, FS: d.fs()})
	if err != nil {
		return err
	}
	defer s.Close()
	m, _ := memory(w.contents)
	for i, ref := range w.refs {
		content := w.contents[i]
		info, err := s.Stat(ref.Digest)
		if err != nil && !errors.Is(err, blob.NotFound) {
			return err
		}
		if i == w.whole && w.promised(n) && !info.Complete {
			return fmt.Errorf("blob %d was complete and is not: %+v", i, info)
		}
		if err := w.checkBlob(t, s, m, i, n); err != nil {
			return fmt.Errorf("blob %d of %d bytes: %w", i, len(content), err)
		}
	}
	return nil
}

func (w crashWorld) checkBlob(t *testing.T, s *Store, m blob.Source, i, n int) error {
	ref, content := w.refs[i], w.contents[i]
	info, _ := s.Stat(ref.Digest)
	if i != w.lied || info.Complete {
		// What is said to be held has to be right. It may turn out to be
		// damaged when it is read, and then be missing; never wrong.
		b, err := s.Local().Open(t.Context(), ref)
		if err != nil {
			return err
		}
		defer b.Close()
		for off := int64(0); off < ref.Size; off += 100 * kib {
			r := blob.Range{Off: off, Len: min(100*kib, ref.Size-off)}
			p, err := read(t.Context(), b, r)
			if err == nil && !bytes.Equal(p, content[r.Off:r.End()]) {
				return fmt.Errorf("wrong bytes at %v", r)
			}
			if err != nil && !errors.Is(err, blob.NotFound) {
				return err
			}
			if err != nil && i == w.whole && w.promised(n) {
				return fmt.Errorf("complete, but not readable: %w", err)
			}
		}
	}
	b, err := s.Through(m).Open(t.Context(), ref)
	if err != nil {
		return err
	}
	defer b.Close()
	p, err := read(t.Context(), b, whole(content))
	if i == w.lied && errors.Is(err, blob.Corrupt) {
		p, err = read(t.Context(), b, whole(content)) // what was wrong is gone now
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(p, content) {
		return errors.New("wrong content")
	}
	return nil
}

// ramDir returns a folder in memory where there is one: nothing here depends
// on what is below it, and the tests write gigabytes.
func ramDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "store")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestCrash stops a store between any two of its file operations and checks
// what the next process makes of the files: after kill -9, when everything
// done survives, and after power cuts, when what was not synced is lost, all
// of it or some of it or in part.
func TestCrash(t *testing.T) {
	t.Run("256 KiB", func(t *testing.T) { testCrash(t, recordRun(t, DefaultPieceSize), 1) })
	t.Run("64 KiB", func(t *testing.T) { testCrash(t, recordRun(t, 64*kib), 5) })
}

func testCrash(t *testing.T, w crashWorld, step int) {
	if !w.promised(len(w.ops)/2) && !w.promised(len(w.ops)*3/4) {
		t.Fatal("the recorded run never completes the blob it is about")
	}
	if testing.Short() {
		step = 9
	}
	rng := rand.New(rand.NewPCG(1, 2))
	cases := map[string]func(n int) func(int) fate{
		"kill": func(n int) func(int) fate {
			return func(i int) fate { return survives }
		},
		"torn last": func(n int) func(int) fate {
			return func(i int) fate {
				if i == n-1 {
					return tears
				}
				return survives
			}
		},
		"power cut, all lost": func(n int) func(int) fate {
			return func(int) fate { return vanishes }
		},
		"power cut, data lost": func(n int) func(int) fate {
			return func(i int) fate {
				if filepath.Base(w.ops[i].Path) == dataName && w.ops[i].Name == OpWrite {
					return vanishes
				}
				return survives
			}
		},
		"power cut, some lost": func(n int) func(int) fate {
			return func(int) fate { return fate(rng.IntN(3)) }
		},
	}
	for name, fates := range cases {
		t.Run(name, func(t *testing.T) {
			to := ramDir(t)
			for n := 1; n <= len(w.ops); n += step {
				dir := filepath.Join(to, fmt.Sprint(n))
				platter{from: w.from, to: dir, lost: fates(n)}.rebuild(t, w.ops[:n])
				if err := w.check(t, dir, n); err != nil {
					t.Errorf("crash after operation %d of %d, %s %s: %v",
						n, len(w.ops), w.ops[n-1].Name, filepath.Base(w.ops[n-1].Path), err)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestPowerFailsUnderReaders takes the disk away while a store works; readers
// keep getting the right bytes, and so do those of the next process.
func TestPowerFailsUnderReaders(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	for limit := 1; limit < 25; limit++ {
		m, refs := memory([][]byte{content})
		d := &disk{limit: limit} // counts no reads
		dir := t.TempDir()
		s, err := Open(Config{Dir: dir, FS: d.fs()})
		if err != nil {
			if limit > 1 {
				t.Errorf("open: %v", err)
			}
			continue
		}
		b := openBlob(t, s.Through(m), refs[0])
		mustRead(t, b, blob.Range{Off: 10, Len: 10}, content)
		mustRead(t, b, whole(content), content)
		mustRead(t, b, whole(content), content)
		b.Close()
		_ = s.Close() // cannot work

		s = openStore(t, Config{Dir: dir})
		mustRead(t, openBlob(t, s.Through(m), refs[0]), whole(content), content)
	}
}
