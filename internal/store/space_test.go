package store

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// held returns which of refs a store holds something of, as "0 2 3".
func held(t *testing.T, s *Store, refs []blob.Ref) (got []int) {
	t.Helper()
	for i, ref := range refs {
		if _, err := s.Stat(ref.Digest); err == nil {
			got = append(got, i)
		}
	}
	return got
}

func equal(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// fill makes a store that holds n blobs of 1 MiB, read in order.
func fill(t *testing.T, cfg Config, n int) (*Store, blob.Source, []blob.Ref) {
	t.Helper()
	var contents [][]byte
	for i := range n {
		contents = append(contents, blobtest.Bytes(uint64(i), int(mib)))
	}
	m, refs := memory(contents)
	s := openStore(t, cfg)
	src := s.Through(m)
	for _, ref := range refs {
		warm(t, src, []blob.Ref{ref})
		quiet(s, ref.Digest)
	}
	return s, src, refs
}

func TestEvictionIsLeastRecentlyUsedFirst(t *testing.T) {
	s, src, refs := fill(t, Config{HighWater: 1 << 40, MinFree: -1}, 6)
	warm(t, src, refs[1:2])
	defer s.Pin(refs[2].Digest)()
	b := openBlob(t, src, refs[3])
	quiet(s, refs[1].Digest)
	s.cfg.HighWater, s.cfg.LowWater = 5*mib, 4*mib
	s.makeSpace()
	if got := held(t, s, refs); !equal(got, []int{1, 2, 3, 5}) {
		t.Errorf("held after eviction: %v, want the blob read again, the pinned, the open and the newest", got)
	}
	if st := s.Stats(); st.EvictedBlobs != 2 || st.EvictedBytes != 2*mib || st.Used != 4*mib {
		t.Errorf("evicted %d blobs of %d bytes, used %d", st.EvictedBlobs, st.EvictedBytes, st.Used)
	}

	s.cfg.HighWater, s.cfg.LowWater = 0, 0
	s.makeSpace()
	if got := held(t, s, refs); !equal(got, []int{2, 3}) {
		t.Errorf("held after eviction of all: %v, want the pinned and the open", got)
	}
	b.Close()
	quiet(s, refs[3].Digest)
	s.makeSpace()
	if got := held(t, s, refs); !equal(got, []int{2}) {
		t.Errorf("held after close: %v, want the pinned", got)
	}
}

func TestHighWaterStartsEviction(t *testing.T) {
	s, _, _ := fill(t, Config{HighWater: 3 * mib, LowWater: 2 * mib, MinFree: -1}, 8)
	s.makeSpace() // the keeper does, a moment later
	if st := s.Stats(); st.Used > 3*mib || st.EvictedBlobs == 0 {
		t.Errorf("used %d after %d evictions, want at most %d", st.Used, st.EvictedBlobs, 3*mib)
	}
}

func TestOrderOfUseSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	s, src, refs := fill(t, Config{Dir: dir}, 3)
	warm(t, src, refs[:1])
	quiet(s, refs[0].Digest)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	if used := s.Stats().Used; used < 3*mib {
		t.Errorf("used after restart: %d, want at least %d", used, 3*mib)
	}
	s.evict(1)
	if got := held(t, s, refs); !equal(got, []int{0, 2}) {
		t.Errorf("held after eviction of one: %v, want 0 and 2", got)
	}
}

func TestFullDiskEvicts(t *testing.T) {
	var s *Store
	d := &disk{}
	s, src, refs := fill(t, Config{FS: d.fs()}, 2)
	// No room until something is removed.
	var once sync.Once
	removed := make(chan struct{})
	d.match = func(op Op) bool {
		if op.Name == OpRemove {
			once.Do(func() { close(removed) })
			return false
		}
		select {
		case <-removed:
			return false
		default:
			return filepath.Base(op.Path) == dataName
		}
	}
	d.fail(errNoSpace, OpWrite, OpRemove)
	content := blobtest.Bytes(9, int(mib))
	m, more := memory([][]byte{content})
	mustRead(t, openBlob(t, s.Through(m), more[0]), whole(content), content)
	if st := s.Stats(); st.Full || st.EvictedBlobs == 0 || st.PassedBytes != 0 {
		t.Errorf("full %v, evicted %d, passed %d; want what was fetched kept", st.Full, st.EvictedBlobs, st.PassedBytes)
	}
	_, _ = src, refs
}

func TestMinFree(t *testing.T) {
	d := &disk{total: 1000 * mib, free: 500 * mib}
	s, src, refs := fill(t, Config{MinFree: 100 * mib, FS: d.fs()}, 4)
	if s.cfg.HighWater != 800*mib || s.cfg.LowWater != 700*mib {
		t.Errorf("default marks %d and %d, want 80 and 70 %% of the file system", s.cfg.HighWater, s.cfg.LowWater)
	}
	d.setFree(99 * mib)
	s.makeSpace()
	if st := s.Stats(); st.EvictedBlobs != 4 || st.Full {
		t.Errorf("evicted %d, full %v; want all four gone to have %d free", st.EvictedBlobs, st.Full, 125*mib)
	}

	// Others take what is left: nothing more is kept.
	d.setFree(50 * mib)
	s.makeSpace()
	warm(t, src, refs[:1])
	if st := s.Stats(); !st.Full || st.Used != 0 || st.PassedBytes != mib {
		t.Errorf("full %v, used %d, passed %d; want reads to pass through", st.Full, st.Used, st.PassedBytes)
	}
	d.setFree(500 * mib)
	s.room.retryNow()
	warm(t, src, refs[:1])
	if st := s.Stats(); st.Full || st.Used != mib {
		t.Errorf("full %v, used %d; want blobs kept again", st.Full, st.Used)
	}
}

func TestLastUsedIsTold(t *testing.T) {
	s, _, refs := fill(t, Config{}, 1)
	i, err := s.Stat(refs[0].Digest)
	if err != nil || time.Since(i.LastUsed) > time.Minute {
		t.Errorf("stat: %+v, %v", i, err)
	}
}
