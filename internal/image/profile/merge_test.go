package profile

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type chunk struct{ layer, number int }

// perChunk is what a profile says about each chunk.
func perChunk(p Profile) map[chunk]Read {
	m := make(map[chunk]Read)
	for _, r := range p.Reads {
		for i := range r.Count {
			m[chunk{r.Layer, r.First + i}] = Read{At: r.At, Starts: r.Starts}
		}
	}
	return m
}

// TestMergeProperties checks, for many pairs, what Merge promises, against
// sums made chunk by chunk.
func TestMergeProperties(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 7))
		a, b := random(r), random(r)
		if seed%5 == 0 {
			b.Recorded = a.Recorded
		}
		before := mustEncode(t, a)
		m := Merge(a, b)
		if err := m.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(m, Merge(b, a)); diff != "" {
			t.Fatalf("seed %d: the other way around it differs: %s", seed, diff)
		}
		if !slices.Equal(before, mustEncode(t, a)) {
			t.Fatalf("seed %d: the argument has changed", seed)
		}
		wa, wb := weigh(a, b)
		if m.Starts != wa.Starts+wb.Starts || m.Starts > MaxStarts || !m.Recorded.Equal(latest(a, b)) {
			t.Fatalf("seed %d: %d starts of %d and %d, recorded %v", seed, m.Starts, a.Starts, b.Starts, m.Recorded)
		}
		compareChunks(t, seed, m, wa, wb)
		if slices.ContainsFunc(m.Reads, func(r Read) bool {
			return slices.ContainsFunc(m.Reads, func(s Read) bool { return joins(r, s) && r.At == s.At })
		}) {
			t.Fatalf("seed %d: runs are left that are one", seed)
		}
	}
}

func latest(a, b Profile) time.Time {
	if a.Recorded.After(b.Recorded) {
		return a.Recorded
	}
	return b.Recorded
}

func compareChunks(t *testing.T, seed uint64, m, a, b Profile) {
	t.Helper()
	inM, inA, inB := perChunk(m), perChunk(a), perChunk(b)
	for i, l := range m.Layers {
		for n := range l.Chunks {
			c := chunk{i, n}
			got, kept := inM[c]
			x, okA := inA[c]
			y, okB := inB[c]
			starts := x.Starts + y.Starts
			fresh := okA && !a.Recorded.Before(b.Recorded) || okB && !b.Recorded.Before(a.Recorded)
			want := starts > 0 && (fresh || m.Starts < 4 || starts*4 >= m.Starts)
			if kept != want {
				t.Fatalf("seed %d: chunk %v with %d of %d starts: kept %v", seed, c, starts, m.Starts, kept)
			}
			if !kept {
				continue
			}
			mean := (x.At*time.Duration(x.Starts) + y.At*time.Duration(y.Starts)) / time.Duration(starts)
			if off := (got.At - mean).Abs(); got.Starts != starts || off > together+time.Millisecond {
				t.Fatalf("seed %d: chunk %v at %v of %d starts, want %v and %d", seed, c, got.At, got.Starts, mean, starts)
			}
		}
	}
}

// TestMergeFollows lets an image come to read something else, and finds that
// the profile follows within some starts and forgets a single odd one at once.
func TestMergeFollows(t *testing.T) {
	start := func(second int64, chunks ...int) Profile {
		p := Profile{Manifest: testDigest("m"), Platform: "linux/amd64", Layers: someLayers, Recorded: time.Unix(second, 0).UTC(), Starts: 1}
		for i, c := range chunks {
			p.Reads = append(p.Reads, Read{Layer: 1, First: c, Count: 1, At: time.Duration(i) * time.Second, Starts: 1})
		}
		return p
	}
	has := func(p Profile, c int) bool { _, ok := perChunk(p)[chunk{1, c}]; return ok }
	p, second := start(0, 1, 100), int64(1)
	for ; second < 40; second++ {
		p = Merge(p, start(second, 1, 100))
	}
	p = Merge(p, start(second, 1, 100, 200))
	if !has(p, 200) {
		t.Error("what the last start read is not in the profile")
	}
	p = Merge(p, start(second+1, 1, 100))
	if has(p, 200) || !has(p, 100) {
		t.Error("what only one start read is still in the profile, or what all read is not")
	}
	n := 0
	for ; n < 100 && has(p, 100); n++ {
		p = Merge(p, start(second+2+int64(n), 1, 250))
	}
	if n > 2*MaxStarts || !has(p, 1) || !has(p, 250) {
		t.Errorf("after %d starts the profile is %+v", n, p.Reads)
	}
}

func TestMergeUnlike(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	a, b := random(r), random(r)
	b.Layers = slices.Clone(b.Layers)
	b.Layers[1].Chunks++
	if m := Merge(a, b); !reflect.DeepEqual(m, b) {
		t.Error("with other layers, the second does not win")
	}
	if m := Merge(b, b); !reflect.DeepEqual(m, b) {
		t.Error("merged with itself, it changes")
	}
}
