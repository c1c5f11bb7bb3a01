package coldstart

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestStatOf(t *testing.T) {
	for _, c := range []struct {
		in   []int64
		want Stat[int64]
	}{
		{[]int64{7}, Stat[int64]{7, 7, 7}},
		{[]int64{9, 1, 5}, Stat[int64]{5, 1, 9}},
		{[]int64{8, 2, 4, 100}, Stat[int64]{6, 2, 100}},
	} {
		if got := statOf(c.in); got != c.want {
			t.Errorf("statOf(%v) = %+v, want %+v", c.in, got, c.want)
		}
	}
}

// sample returns a start whose phases take total together.
func sample(mode Mode, start StartKind, total time.Duration) Sample {
	return Sample{
		Case: "python", Mode: mode, Start: start,
		Conditions: Conditions{Path: Path{5 * time.Millisecond, 200_000_000}, Image: digest.FromString("image"), Output: "Python 3"},
		Pull:       total / 2, Create: total / 4, Run: total - total/2 - total/4, Requests: 12, Bytes: 3_456_789,
	}
}

func TestRatio(t *testing.T) {
	result := func(s Sample) Result { return resultOf([]Sample{s, s}) }
	base := sample(Stargz, First, time.Second)
	if got, err := Ratio(result(sample(Skimmer, First, 400*time.Millisecond)), result(base)); got != 0.4 || err != nil {
		t.Errorf("ratio %v, %v; want 0.4", got, err)
	}
	for what, change := range map[string]func(*Result){
		"programs":        func(r *Result) { r.Conditions.Program = digest.FromString("other") },
		"kinds of start":  func(r *Result) { r.Start = Again },
		"shapes":          func(r *Result) { r.Conditions.Path.RTT++ },
		"images":          func(r *Result) { r.Conditions.Image = digest.FromString("other") },
		"machines":        func(r *Result) { r.Conditions.Machine.Containerd = "1.6.20" },
		"outputs":         func(r *Result) { r.Conditions.Output = "Python 2" },
		"numbers of runs": func(r *Result) { r.Runs++ },
		"took no time":    func(r *Result) { r.Total.Median = 0 },
	} {
		other := result(base)
		change(&other)
		if got, err := Ratio(result(sample(Skimmer, First, time.Second)), other); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: ratio %v, error %v", what, got, err)
		}
	}
}

func TestTable(t *testing.T) {
	var samples []Sample
	for _, d := range []time.Duration{1, 2, 4} {
		samples = append(samples,
			sample(Overlayfs, First, 10*d*time.Second), sample(Stargz, First, d*time.Second), sample(Skimmer, First, d*400*time.Millisecond),
			sample(Stargz, Again, d*100*time.Millisecond), sample(Skimmer, Again, d*90*time.Millisecond))
	}
	samples[3].Conditions.Output = "something else"
	samples[0].Load, samples[1].Load = 3.2, 2.9
	r := Report{
		Machine: Machine{Kernel: "6.18", CPUs: 2, Containerd: "2.4.2", Registry: "docker-registry"},
		Images:  []Image{{Name: "python", Size: 254_600_000, Layers: make([]digest.Digest, 4)}},
		Results: summarize(samples), Samples: samples,
	}
	var got strings.Builder
	if err := r.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	const want = `
Linux 6.18, 2 CPUs, containerd 2.4.2, served by docker-registry
python: 254.6 MB in 4 layers
The machine was busy with other things (load 0.0 to 3.2): do not trust times.

shape 5ms/200Mbit, medians of 3 runs in ms

case    start   mode       total   min–max        pull    create  run    requests  MB   × stargz  × overlayfs
python  first   overlayfs  20,000  10,000–40,000  10,000  5,000   5,000  12        3.5  10.00
                stargz     2,000   1,000–4,000    1,000   500     500    12        3.5        0.10
                skimmer    800     400–1,600      400     200     200    12        3.5  0.40  0.04
python  cached  stargz     200     100–400        100     50      50     12        3.5
                skimmer    180     90–360         90      45      45     12        3.5

python, cached start: compare skimmer with stargz: measured with different outputs
`
	if got.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", got.String(), want)
	}
}
