package coldstart

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/image/trace"
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
	base.Conditions.Peers = "500µs/1Gbit, first node complete"
	if got, err := Ratio(result(sample(Skimmer, First, 400*time.Millisecond)), result(base)); got != 0.4 || err != nil {
		t.Errorf("ratio %v, %v; want 0.4", got, err)
	}
	for what, change := range map[string]func(*Result){
		"programs":        func(r *Result) { r.Conditions.Program = digest.FromString("other") },
		"kinds of start":  func(r *Result) { r.Start = Again },
		"shapes":          func(r *Result) { r.Conditions.Path.RTT++ },
		"images":          func(r *Result) { r.Conditions.Image = digest.FromString("other") },
		"machines":        func(r *Result) { r.Conditions.Machine.Containerd = "1.6.20" },
		"clusters":        func(r *Result) { r.Conditions.Peers = "5ms/1Gbit, first node started" },
		"outputs":         func(r *Result) { r.Conditions.Output = "Python 2" },
		"from run to run": func(r *Result) { r.Mixed = true },
		"numbers of runs": func(r *Result) { r.Runs++ },
		"took no time":    func(r *Result) { r.Total.Median = 0 },
	} {
		other := result(base)
		change(&other)
		ours := sample(Skimmer, First, time.Second)
		ours.Conditions.Peers = base.Conditions.Peers
		if got, err := Ratio(result(ours), other); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: ratio %v, error %v", what, got, err)
		}
	}
}

func TestBound(t *testing.T) {
	first, cached := sample(SkimmerPeers, First, 600*time.Millisecond), sample(SkimmerPeers, Again, 100*time.Millisecond)
	first.Bytes, first.PeerBytes = 2_500_000, 12_500_000 // 100 ms at 200 Mbit/s, and 100 ms at 1 Gbit/s
	results := summarize([]Sample{first, cached}, Path{Bits: 1_000_000_000})
	if r := results[0]; r.Bound != 300*time.Millisecond || r.OfBound != 2 {
		t.Errorf("bound %v, %v of it; want 300ms and 2", r.Bound, r.OfBound)
	}
	if r := results[1]; r.Bound != 0 || r.OfBound != 0 {
		t.Errorf("a cached start has the bound %v", r.Bound)
	}
	other := cached
	other.Conditions.Output = "Python 2"
	if r := summarize([]Sample{first, other}, Path{})[0]; r.Bound != 0 {
		t.Errorf("a start of something else gives the bound %v", r.Bound)
	}
	if r := summarize([]Sample{first}, Path{})[0]; r.Bound != 0 {
		t.Errorf("no cached start gives the bound %v", r.Bound)
	}
}

func TestPhases(t *testing.T) {
	if got := phasesOf([]Sample{sample(Overlayfs, First, 1)}); got != nil {
		t.Errorf("phases of one who has none: %+v", got)
	}
	var g []Sample
	for _, n := range []int64{3, 1, 2} {
		s := sample(Skimmer, First, 1)
		s.Phases = &Phases{Profile: "node", Read: 10 * n, Sums: []trace.Sum{{Kind: trace.Fault, Count: int(n), Longest: time.Duration(n)}}}
		g = append(g, s)
	}
	g[0].Phases.Sums = append(g[0].Phases.Sums, trace.Sum{Kind: trace.Prefetch, Count: 1})
	got := phasesOf(g)
	if got.Profile != "node" || got.Read != 20 || len(got.Sums) != 1 || got.sum(trace.Fault).Count != 2 || got.sum(trace.Fault).Longest != 2 {
		t.Errorf("medians %+v", got)
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
	for i, s := range samples {
		if s.Mode == Skimmer && s.Start == First {
			samples[i].Phases = &Phases{Read: 200, Inflated: 250, Sums: []trace.Sum{
				{Kind: trace.Index, Count: 4, Busy: 90 * time.Millisecond},
				{Kind: trace.Fault, Count: 12, Total: 80 * time.Millisecond, Busy: 60 * time.Millisecond, Longest: 30 * time.Millisecond},
			}}
		}
	}
	samples[0].Load, samples[1].Load = 3.2, 2.9
	r := Report{
		Machine: Machine{Kernel: "6.18", CPUs: 2, Congestion: "cubic", Containerd: "2.4.2", Registry: "docker-registry"},
		Mirror:  true,
		Images:  []Image{{Name: "python", Size: 254_600_000, Layers: make([]digest.Digest, 4)}},
		Results: summarize(samples, Path{}), Samples: samples,
	}
	var got strings.Builder
	if err := r.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	const want = `
Linux 6.18, 2 CPUs, TCP cubic, containerd 2.4.2, served by docker-registry
python: 254.6 MB in 4 layers
with skimmer, containerd asked the registry through the node's mirror
The machine was busy with other things (load 0.0 to 3.2): do not trust times.

shape 5ms/200Mbit, medians of 3 runs in ms

case    start   mode       total   min–max        pull    create  run    requests  MB   of layers  bound  × bound  × stargz  × overlayfs
python  first   overlayfs  20,000  10,000–40,000  10,000  5,000   5,000  12        3.5  0.0                        10.00
                stargz     2,000   1,000–4,000    1,000   500     500    12        3.5  0.0                              0.10
                skimmer    800     400–1,600      400     200     200    12        3.5  0.0        318    2.51     0.40  0.04
python  cached  stargz     200     100–400        100     50      50     12        3.5  0.0
                skimmer    180     90–360         90      45      45     12        3.5  0.0

where the time of first starts went, in ms; what goes on at once counts in each

case    mode     profile from  manifest  index  profile  metadata  mount  prefetch  faults  waits  waiting  longest  unpacked/read
python  skimmer  -             -         90     -        -         -      -         12      80     60       30       1.25

python, cached start: compare skimmer with stargz: measured with different outputs
`
	if got.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", got.String(), want)
	}
}
