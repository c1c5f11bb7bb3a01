package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

func digestOf(p []byte) digest.Digest { return digest.FromBytes(p) }

// liar is a source that sends content under whatever digest it is asked for.
type liar struct {
	mu      sync.Mutex
	content []byte
}

func (l *liar) set(content []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.content = content
}

func (l *liar) Open(context.Context, blob.Ref) (blob.Blob, error) { return l, nil }
func (l *liar) Size() int64                                       { return int64(len(l.content)) }
func (l *liar) Close() error                                      { return nil }

func (l *liar) ReadRange(_ context.Context, r blob.Range) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return io.NopCloser(bytes.NewReader(l.content[r.Off:r.End()])), nil
}

func flipped(content []byte, off int64) []byte {
	p := bytes.Clone(content)
	p[off] ^= 1
	return p
}

func TestWrongDigest(t *testing.T) {
	content := blobtest.Bytes(1, int(3*mib))
	ref := blob.Ref{Digest: digestOf(content), Size: 3 * mib}
	src := &liar{content: flipped(content, mib)}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	if p, err := read(t.Context(), b, whole(content)); !errors.Is(err, blob.Corrupt) {
		t.Errorf("read of a blob that is not what its digest says: %v, want corrupt", err)
	} else if p[len(p)-1] != 0 {
		t.Error("the last byte was delivered without a verdict")
	}
	settle(t, s, ref.Digest)
	if i, err := s.Stat(ref.Digest); err != nil || i.Complete || i.Present != 0 {
		t.Errorf("after a wrong digest: %+v, %v; want nothing held", i, err)
	}
	if st := s.Stats(); st.DigestFailures != 1 || st.Used != 0 {
		t.Errorf("digest failures %d, used %d; want 1, 0", st.DigestFailures, st.Used)
	}
	src.set(content)
	mustRead(t, b, whole(content), content)
	if i, err := s.Stat(ref.Digest); err != nil || !i.Complete {
		t.Errorf("after the right bytes: %+v, %v; want complete", i, err)
	}
}

func TestPartsInAnyOrderAreVerified(t *testing.T) {
	content := blobtest.Bytes(1, int(2*mib))
	m, refs := memory([][]byte{content})
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(m), refs[0])
	for _, i := range []int64{7, 3, 0, 1, 5, 4, 2, 6} {
		mustRead(t, b, blob.Range{Off: i * 256 * kib, Len: 1}, content)
		settle(t, s, refs[0].Digest)
		if got, err := s.Stat(refs[0].Digest); err != nil || got.Complete != (i == 6) {
			t.Errorf("after piece %d: %+v, %v", i, got, err)
		}
	}
}

// closedStore returns the folder of a store that holds content and was
// closed, the reference to it and the folder of the blob.
func closedStore(t *testing.T, content []byte) (dir string, ref blob.Ref, folder string) {
	t.Helper()
	m, refs := memory([][]byte{content})
	dir = t.TempDir()
	s := openStore(t, Config{Dir: dir})
	warm(t, s.Through(m), refs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, refs[0], blobDir(filepath.Join(dir, "blobs"), refs[0].Digest)
}

// edit changes a file.
func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(p), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBitRot(t *testing.T) {
	content := blobtest.Bytes(1, int(2*mib)+100)
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		rotten int64
	}{
		{"one bit", func(p []byte) []byte { return flipped(p, mib) }, 1},
		{"last piece", func(p []byte) []byte { return flipped(p, 2*mib+99) }, 1},
		{"cut short", func(p []byte) []byte { return p[:1500*kib] }, 4},
		{"gone", func(p []byte) []byte { return nil }, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, ref, folder := closedStore(t, content)
			edit(t, filepath.Join(folder, dataName), c.change)
			m := &blobtest.Memory{}
			m.Add(content)
			s := openStore(t, Config{Dir: dir})
			b := openBlob(t, s.Through(m), ref)
			mustRead(t, b, blob.Range{Off: mib - 10, Len: 20}, content)
			mustRead(t, b, whole(content), content)
			settle(t, s, ref.Digest)
			if got := s.Stats().CRCFailures; got != c.rotten {
				t.Errorf("%d pieces were found damaged, want %d", got, c.rotten)
			}
			if i, err := s.Stat(ref.Digest); err != nil || !i.Complete {
				t.Errorf("after repair: %+v, %v; want complete", i, err)
			}
		})
	}
}

func TestDamagedRecords(t *testing.T) {
	content := blobtest.Bytes(1, int(2*mib))
	for _, c := range []struct {
		name, file string
		change     func([]byte) []byte
		present    int64
	}{
		{"torn tail", journalName, func(p []byte) []byte { return p[:len(p)-5] }, 2 * mib},
		{"torn in the middle", journalName, func(p []byte) []byte { return p[:3*recordSize+7] }, 768 * kib},
		{"flipped in the middle", journalName, func(p []byte) []byte { return flipped(p, 3*recordSize+7) }, 768 * kib},
		{"zeros appended", journalName, func(p []byte) []byte { return append(p, make([]byte, 100)...) }, 2 * mib},
		{"empty journal", journalName, func(p []byte) []byte { return nil }, 0},
		{"empty info", infoName, func(p []byte) []byte { return nil }, -1},
		{"torn info", infoName, func(p []byte) []byte { return p[:len(p)/2] }, -1},
		{"another version", infoName, func(p []byte) []byte { return bytes.Replace(p, []byte(`: 1,`), []byte(`: 2,`), 1) }, -1},
		{"another size", infoName, func(p []byte) []byte { return bytes.Replace(p, []byte(`2097152`), []byte(`2097153`), 1) }, 2 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, ref, folder := closedStore(t, content)
			edit(t, filepath.Join(folder, c.file), c.change)
			m := &blobtest.Memory{}
			m.Add(content)
			s := openStore(t, Config{Dir: dir})
			i, err := s.Stat(ref.Digest)
			if c.present < 0 {
				if !errors.Is(err, blob.NotFound) {
					t.Errorf("stat: %+v, %v; want not found", i, err)
				}
				if _, err := os.Stat(folder); !isMissing(err) {
					t.Errorf("the damaged blob's folder is still there: %v", err)
				}
			} else if err != nil || i.Present != c.present {
				t.Errorf("stat: %+v, %v; want %d bytes", i, err, c.present)
			}
			settle(t, s, ref.Digest)
			b, err := s.Through(m).Open(t.Context(), ref)
			if errors.Is(err, blob.Corrupt) && c.name == "another size" {
				return // it was complete by its record; the reader is told, not deceived
			}
			if err != nil {
				t.Fatal(err)
			}
			mustRead(t, b, whole(content), content)
			b.Close()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			// What was repaired stays repaired.
			s = openStore(t, Config{Dir: dir})
			mustRead(t, openBlob(t, s.Local(), ref), whole(content), content)
			if i, err := s.Stat(ref.Digest); err != nil || !i.Complete {
				t.Errorf("stat after repair: %+v, %v", i, err)
			}
		})
	}
}

// TestRecordsBehindADamagedOneStayDead: they speak of pieces that were fetched
// again since, or were not.
func TestRecordsBehindADamagedOneStayDead(t *testing.T) {
	content := blobtest.Bytes(1, int(2*mib))
	dir, ref, folder := closedStore(t, content)
	edit(t, filepath.Join(folder, journalName), func(p []byte) []byte { return flipped(p, 3*recordSize+7) })
	m := &blobtest.Memory{}
	m.Add(content)
	s := openStore(t, Config{Dir: dir})
	mustRead(t, openBlob(t, s.Through(m), ref), blob.Range{Off: 7 * 256 * kib, Len: 1}, content)
	settle(t, s, ref.Digest)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	if i, err := s.Stat(ref.Digest); err != nil || i.Complete || i.Present != mib {
		t.Errorf("stat: %+v, %v; want the three pieces before the damage and the one read since", i, err)
	}
}

func TestRejectSurvivesRestart(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	b := openBlob(t, s.Through(&liar{content: flipped(content, 5)}), ref)
	if _, err := read(t.Context(), b, blob.Range{Len: 300 * kib}); err != nil {
		t.Fatal(err)
	}
	settle(t, s, ref.Digest)
	b.(blob.Rejecter).Reject(blob.Range{Len: 10})
	b.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	gaps, err := s.Missing(ref, blob.Range{Len: 512 * kib})
	if err != nil || len(gaps) != 1 || gaps[0] != (blob.Range{Len: 256 * kib}) {
		t.Errorf("missing after restart: %v, %v; want the rejected piece", gaps, err)
	}
}

func TestReject(t *testing.T) {
	content := blobtest.Bytes(1, int(2*mib))
	ref := blob.Ref{Digest: digestOf(content), Size: 2 * mib}
	src := &liar{content: flipped(content, mib)}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	r := blob.Range{Off: mib - 100, Len: 200}
	if p, err := read(t.Context(), b, r); err != nil || bytes.Equal(p, content[r.Off:r.End()]) {
		t.Fatalf("read of wrong bytes: %v", err)
	}
	settle(t, s, ref.Digest)
	src.set(content)
	b.(blob.Rejecter).Reject(r)
	b.(blob.Rejecter).Reject(blob.Range{Off: 100 * mib, Len: 1}) // not there, not kept
	mustRead(t, b, r, content)

	// Pieces of a blob whose digest was right are compared with their CRC
	// again, and kept if that is right too.
	mustRead(t, b, whole(content), content)
	fetched := s.Stats().FetchedBytes
	edit(t, filepath.Join(blobDir(s.root, ref.Digest), dataName), func(p []byte) []byte { return flipped(p, mib) })
	b.(blob.Rejecter).Reject(r)
	mustRead(t, b, r, content)
	if got := s.Stats().FetchedBytes - fetched; got != 256*kib {
		t.Errorf("fetched %d bytes after damage to one of two rejected pieces, want one piece", got)
	}
}

func TestRejectWhileArriving(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(flipped(content, 50))
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	src.flow(100)
	if _, err := read(t.Context(), b, blob.Range{Len: 100}); err != nil {
		t.Fatal(err)
	}
	b.(blob.Rejecter).Reject(blob.Range{Len: 100})
	src.flow(mib)
	settle(t, s, ref.Digest)
	if gaps, err := s.Missing(ref, blob.Range{Len: 100}); err != nil || len(gaps) != 1 {
		t.Errorf("rejected bytes were kept: %v, %v", gaps, err)
	}
}

func TestFullDiskPassesThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := blobtest.Bytes(1, int(4*mib))
		for _, failing := range [][]OpName{{OpWrite}, {OpMkdir}, {OpCreate}, {OpRename}, {OpTruncate}} {
			m, refs := memory([][]byte{content})
			d := &disk{}
			s := openStore(t, Config{FS: d.fs()})
			b := openBlob(t, s.Through(m), refs[0])
			d.fail(errNoSpace, failing...)
			mustRead(t, b, whole(content), content)
			mustRead(t, b, blob.Range{Off: mib, Len: mib}, content)
			if st := s.Stats(); !st.Full || st.Used != 0 || st.PassedBytes == 0 {
				t.Errorf("%v fails: full %v, used %d, passed %d", failing, st.Full, st.Used, st.PassedBytes)
			}

			d.fail(nil)
			time.Sleep(retryKeeping) // of the bubble: takes no time
			mustRead(t, b, whole(content), content)
			if st := s.Stats(); st.Full || st.Used != 4*mib {
				t.Errorf("%v works again: full %v, used %d", failing, st.Full, st.Used)
			}
		}
	})
}

func TestDiskFillsUpInTheMiddle(t *testing.T) {
	content := blobtest.Bytes(1, int(4*mib))
	m, refs := memory([][]byte{content})
	d := &disk{match: func(op Op) bool { return filepath.Base(op.Path) == dataName && op.Off >= 2*mib }}
	s := openStore(t, Config{FS: d.fs()})
	d.fail(errNoSpace, OpWrite)
	b := openBlob(t, s.Through(m), refs[0])
	mustRead(t, b, whole(content), content)
	mustRead(t, b, whole(content), content)
	if st := s.Stats(); !st.Full || st.Used != 2*mib || st.PassedBytes < 2*mib {
		t.Errorf("full %v, used %d, passed %d", st.Full, st.Used, st.PassedBytes)
	}
}

func TestFailedSyncIsNotBelieved(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	d := &disk{}
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir, FS: d.fs()})
	if err != nil {
		t.Fatal(err)
	}
	d.fail(errors.New("medium error"), OpSync)
	b := openBlob(t, s.Through(m), refs[0])
	mustRead(t, b, whole(content), content)
	b.Close()
	if err := s.Close(); err == nil {
		t.Error("close of a store that cannot sync did not say so")
	}
	edit(t, filepath.Join(blobDir(s.root, refs[0].Digest), dataName), func(p []byte) []byte { return flipped(p, 0) })
	s = openStore(t, Config{Dir: dir})
	if i, err := s.Stat(refs[0].Digest); err != nil || i.Complete || i.Present != 768*kib {
		t.Errorf("after a lost write: %+v, %v; want three of four pieces", i, err)
	}
}

// TestKeptBytesBecomeDurableByThemselves: a crash long after a read costs no
// check of what was read, and what a handle still has open is durable too.
func TestKeptBytesBecomeDurableByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := blobtest.Bytes(1, int(mib))
		m, refs := memory([][]byte{content})
		s := openStore(t, Config{})
		b := openBlob(t, s.Through(m), refs[0])
		mustRead(t, b, blob.Range{Len: 10}, content)
		time.Sleep(checkpointAfter + time.Second) // of the bubble: takes no time
		synctest.Wait()
		journal, err := os.ReadFile(filepath.Join(blobDir(s.root, refs[0].Digest), journalName))
		if err != nil {
			t.Fatal(err)
		}
		if state, doubtful := decodeJournal(journal, 4); state.covered != 1 || len(doubtful) != 0 {
			t.Errorf("after %v: checkpoint covers %d records, %v are doubtful; want 1 and none", checkpointAfter, state.covered, doubtful)
		}
		b.Close()
	})
}
