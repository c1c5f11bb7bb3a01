package layerdev

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"skimmer/internal/blob"
)

// scratch is a journal in a new file, on a machine in its boot-th boot.
func scratch(t *testing.T, h header, boot uint64) *journal {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), presentName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p := h.bytes()
	if _, err := f.Write(p); err != nil {
		t.Fatal(err)
	}
	_, tail := replay(p, h, boot)
	return &journal{f: f, boot: boot, tail: tail}
}

func (j *journal) stored(t *testing.T) []byte {
	t.Helper()
	p, err := os.ReadFile(j.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reboot continues the record as the next process does, maybe after a reboot.
func (j *journal) reboot(t *testing.T, h header, boot uint64) (*journal, []extent) {
	t.Helper()
	present, tail := replay(j.stored(t), h, boot)
	return &journal{f: j.f, boot: boot, tail: tail}, present
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatARecordSurvives(t *testing.T) {
	h := header{size: 1 << 20, chunks: 100, indexSum: 7}
	a, b, c, d := extent{1, 2}, extent{10, 1}, extent{20, 5}, extent{99, 1}
	data, err := os.Create(filepath.Join(t.TempDir(), dataName))
	must(t, err)
	defer data.Close()

	j := scratch(t, h, 1)
	must(t, j.add([]extent{a, b}))
	j, got := j.reboot(t, h, 1)
	if want := []extent{a, b}; !slices.Equal(got, want) {
		t.Errorf("after the process died: %v, want %v", got, want)
	}
	if _, got := j.reboot(t, h, 2); len(got) != 0 {
		t.Errorf("after the machine died: %v, want nothing", got)
	}
	if _, got := j.reboot(t, h, 0); len(got) != 0 {
		t.Errorf("on a machine that does not name its boot: %v, want nothing", got)
	}
	must(t, j.checkpoint(data))
	must(t, j.add([]extent{c}))
	if _, got = j.reboot(t, h, 1); !slices.Equal(got, []extent{a, b, c}) {
		t.Errorf("after the process died again: %v", got)
	}
	j, got = j.reboot(t, h, 2)
	if !slices.Equal(got, []extent{a, b}) {
		t.Errorf("after the machine died behind a checkpoint: %v", got)
	}
	// What was lost stays lost, whatever checkpoint comes later.
	must(t, j.add([]extent{d}))
	must(t, j.checkpoint(data))
	if _, got = j.reboot(t, h, 3); !slices.Equal(got, []extent{a, b, d}) {
		t.Errorf("after the machine died twice: %v", got)
	}
}

// A checkpoint covers what was written before it began, and no more.
func TestCheckpointCoversOnlyWhatWasBefore(t *testing.T) {
	h := header{size: 1 << 20, chunks: 100}
	j := scratch(t, h, 1)
	must(t, j.add([]extent{{1, 1}}))
	covered := uint64(j.tail.end-presentHeader) / entrySize
	must(t, j.add([]extent{{2, 1}}))
	j.mu.Lock()
	j.entry(entrySync, covered)
	must(t, j.write())
	j.mu.Unlock()
	if _, got := j.reboot(t, h, 2); !slices.Equal(got, []extent{{1, 1}}) {
		t.Errorf("present after a reboot: %v, want only what the checkpoint covers", got)
	}
}

// Any damage to a record makes chunks absent, never present.
func TestDamagedRecord(t *testing.T) {
	h := header{size: 1 << 20, chunks: 1000, indexSum: 3}
	j := scratch(t, h, 1)
	truth := make(map[extent]bool)
	for i := range uint32(30) {
		x := extent{i * 10, i%9 + 1}
		truth[x] = true
		must(t, j.add([]extent{x}))
	}
	whole := j.stored(t)
	for i := range len(whole) * 8 {
		p := bytes.Clone(whole)
		p[i/8] ^= 1 << (i % 8)
		got, ok := parseHeader(p)
		if !ok {
			continue
		}
		if i/8 < 28 {
			t.Errorf("flip of bit %d in the header was not noticed: %+v", i, got)
			continue
		}
		present, tail := replay(p, h, 1)
		if i/8 >= presentHeader && tail.end > int64(i/8) {
			t.Errorf("flip of bit %d: record read to its end at %d", i, tail.end)
		}
		for _, x := range present {
			if !truth[x] {
				t.Errorf("flip of bit %d made %v present", i, x)
			}
		}
	}
	for n := range whole {
		if _, ok := parseHeader(whole[:n]); ok {
			replay(whole[:n], h, 1)
		}
	}
}

// The record cannot grow or go wrong where the disk takes only part of it.
func TestRecordRetriesAFailedWrite(t *testing.T) {
	h := header{size: 1 << 20, chunks: 100}
	j := scratch(t, h, 1)
	good := j.f
	ro, err := os.Open(good.Name())
	must(t, err)
	defer ro.Close()
	j.f = ro
	if err := j.add([]extent{{1, 1}}); err == nil {
		t.Fatal("writing to a read-only record succeeded")
	}
	j.f = good
	must(t, j.add([]extent{{5, 2}}))
	if _, got := j.reboot(t, h, 1); !slices.Equal(got, []extent{{1, 1}, {5, 2}}) {
		t.Errorf("present: %v", got)
	}
}

func FuzzReplay(f *testing.F) {
	h := header{size: 1 << 20, chunks: 100, indexSum: 9}
	f.Add(h.bytes(), uint64(1))
	p := h.bytes()
	j := &journal{boot: 1}
	_, j.tail = replay(p, h, 1)
	j.entry(entryBoot, 1)
	j.entry(entryRun, 1|2<<32)
	j.entry(entrySync, 2)
	j.entry(entryRun, 90|20<<32)
	f.Add(append(p, j.pending...), uint64(1))
	f.Fuzz(func(t *testing.T, p []byte, boot uint64) {
		h, ok := parseHeader(p)
		if !ok {
			return
		}
		present, tail := replay(p, h, boot)
		if tail.end < presentHeader || tail.end > int64(len(p)) && len(p) > presentHeader {
			t.Errorf("record of %d bytes ends at %d", len(p), tail.end)
		}
		for _, x := range present {
			if uint64(x.first)+uint64(x.count) > uint64(h.chunks) {
				t.Errorf("present %v of %d chunks", x, h.chunks)
			}
		}
		again, _ := replay(p[:tail.end], h, boot)
		if !slices.Equal(present, again) {
			t.Error("what is behind the end of a record counts")
		}
	})
}

// Reopening after Close, after damage and with another layer's files.
func TestReopen(t *testing.T) {
	tl := build(t, mixed)
	src := &fakeBlob{p: tl.blob}
	half := tl.ix.Files[6].DataOff
	damages := map[string]struct {
		damage  func(dir string) error
		refetch bool
	}{
		"nothing happened": {func(string) error { return nil }, false},
		"record is gone":   {func(dir string) error { return os.Remove(filepath.Join(dir, presentName)) }, true},
		"record is empty":  {func(dir string) error { return os.Truncate(filepath.Join(dir, presentName), 0) }, true},
		"data is short":    {func(dir string) error { return os.Truncate(filepath.Join(dir, dataName), 5000) }, true},
		"data is gone":     {func(dir string) error { return os.Remove(filepath.Join(dir, dataName)) }, true},
		"record of another": {func(dir string) error {
			h := header{size: tl.ix.DataSize, chunks: uint32(len(tl.ix.Chunks)), indexSum: 1}
			return os.WriteFile(filepath.Join(dir, presentName), h.bytes(), 0o600)
		}, true},
		"record has a flipped bit": {func(dir string) error {
			p, err := os.ReadFile(filepath.Join(dir, presentName))
			if err != nil {
				return err
			}
			p[presentHeader+entrySize+2] ^= 4
			return os.WriteFile(filepath.Join(dir, presentName), p, 0o600)
		}, true},
	}
	for name, tc := range damages {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t, tl, LayerConfig{Blob: src.open})
			checkRead(t, l, tl, 0, half)
			must(t, l.Close())
			must(t, tc.damage(l.dir))
			src := &fakeBlob{p: tl.blob}
			again := openLayer(t, l.dir, LayerConfig{Blob: src.open})
			checkRead(t, again, tl, 0, half)
			if got := len(src.readRanges()) > 0; got != tc.refetch {
				t.Errorf("fetched again: %v, want %v", got, tc.refetch)
			}
			checkRead(t, again, tl, 0, again.Size())
			must(t, again.Complete(t.Context()))
		})
	}
}

// A process that is killed keeps every chunk a reader has seen.
func TestKilledProcessKeepsChunks(t *testing.T) {
	const env = "LAYERDEV_KILL_DIR"
	s := shape{sizes: []int{1 << 20, 1 << 20}, chunk: 128 << 10}
	tl := build(t, s)
	if dir := os.Getenv(env); dir != "" {
		src := &fakeBlob{p: tl.blob}
		l, err := OpenLayer(dir, LayerConfig{Name: "child", Blob: src.open})
		must(t, err)
		checkRead(t, l, tl, 0, 1<<20)
		// The record follows the readers at once, but not before them.
		for l.Stats().Chunks < int64(len(tl.ix.Chunks))/2 {
			must(t, l.Fetch(t.Context(), []blob.Range{{Len: 1 << 20}}, blob.Demand))
		}
		self, err := os.FindProcess(os.Getpid())
		must(t, err)
		must(t, self.Kill())
		select {}
	}
	dir := filepath.Join(t.TempDir(), "layer")
	must(t, Create(dir, tl.ix))
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcessKeepsChunks$")
	cmd.Env = append(os.Environ(), env+"="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("child was not killed: %v\n%s", err, out)
	}
	l := openLayer(t, dir, LayerConfig{Blob: nil})
	checkRead(t, l, tl, 0, 1<<20)
	if l.Stats().Runs != 0 {
		t.Errorf("%d runs fetched after a kill, want none", l.Stats().Runs)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	h := header{size: 1 << 40, chunks: 12345, indexSum: 0xdeadbeef}
	got, ok := parseHeader(h.bytes())
	if !ok || got != h {
		t.Errorf("header %+v became %+v, %v", h, got, ok)
	}
}
