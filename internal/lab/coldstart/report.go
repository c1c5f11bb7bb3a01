package coldstart

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// StartKind says what was there before a start.
type StartKind string

// The starts.
const (
	First StartKind = "first"  // nothing: a node with empty directories and caches
	Again StartKind = "cached" // all that the first start left, and what was completed since, in a new container
)

// Report is what an experiment measured. Times are in nanoseconds, sizes in
// bytes; requests and bytes were counted by the registry.
type Report struct {
	Machine Machine `json:"machine"`
	// Command repeats the experiment; PeerPath and FirstNode are what it said
	// about nodes of one cluster.
	Command   string    `json:"command,omitempty"`
	PeerPath  Path      `json:"peerPath"`
	FirstNode FirstNode `json:"firstNode,omitempty"`
	// AtOnce says that cached starts followed first ones at once, while the node
	// may have been completing the image.
	AtOnce bool `json:"atOnce,omitempty"`
	// Mirror says that in our modes the node's mirror was before the registry.
	Mirror bool `json:"mirror,omitempty"`
	// Unpack says that behind the mirror ours decompressed layers for containerd.
	Unpack  bool     `json:"unpack,omitempty"`
	Images  []Image  `json:"images"`
	Results []Result `json:"results"`
	Samples []Sample `json:"samples"`
}

// Machine is what everything was measured on.
type Machine struct {
	Kernel     string `json:"kernel"`
	CPUs       int    `json:"cpus"`
	Containerd string `json:"containerd"`
	// Congestion is how TCP finds its rate, see lab.CongestionControl.
	Congestion string `json:"congestionControl"`
	Registry   string `json:"registry"`
	// SharedDisk says that nodes had folders of one file system, instead of one each.
	SharedDisk bool `json:"sharedDisk,omitempty"`
}

// Image is an image as the registry has it.
type Image struct {
	Name string `json:"name"`
	// Repository is its name in the registry, with the tag.
	Repository string          `json:"repository"`
	Digest     digest.Digest   `json:"digest"` // of the manifest
	Layers     []digest.Digest `json:"layers"`
	Size       int64           `json:"size"` // of all layers
}

// Conditions are what has to be the same where two modes are compared.
type Conditions struct {
	Path    Path          `json:"path"`
	Image   digest.Digest `json:"image"`
	Program digest.Digest `json:"program"` // of its arguments
	Machine Machine       `json:"machine"`
	// Output is the first line of what the program wrote.
	Output string `json:"output"`
	// Peers is what lay between nodes and what the other one had; empty where
	// the node was alone.
	Peers string `json:"peers,omitempty"`
}

// Sample is one start.
type Sample struct {
	Case       string        `json:"case"`
	Mode       Mode          `json:"mode"`
	Start      StartKind     `json:"start"`
	Conditions Conditions    `json:"conditions"`
	Pull       time.Duration `json:"pull"`
	Create     time.Duration `json:"create"`
	Run        time.Duration `json:"run"`
	Requests   int64         `json:"requests"`
	Bytes      int64         `json:"bytes"`
	// LayerBytes are those of Bytes that were of layers, PeerBytes what other
	// nodes sent.
	LayerBytes int64 `json:"layerBytes"`
	PeerBytes  int64 `json:"peerBytes"`
	// Phases is where the time went; nil where nobody says.
	Phases *Phases `json:"phases,omitempty"`
	// Load is the machine's load average of the minute before.
	Load float64 `json:"load"`
}

// Total returns the time from the image's name to the program's end.
func (s Sample) Total() time.Duration { return s.Pull + s.Create + s.Run }

// Stat is the median, and between what it lies.
type Stat[T cmp.Ordered] struct {
	Median T `json:"median"`
	Min    T `json:"min"`
	Max    T `json:"max"`
}

// number is what has a middle.
type number interface{ ~int64 }

// statOf returns the stat of at least one value. The median of an even number
// of values is the mean of the middle two.
func statOf[T number](values []T) Stat[T] {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Stat[T]{Median: v[(n-1)/2] + (v[n/2]-v[(n-1)/2])/2, Min: v[0], Max: v[n-1]}
}

// Result is what the runs of one kind of start have in common.
type Result struct {
	Case       string     `json:"case"`
	Mode       Mode       `json:"mode"`
	Start      StartKind  `json:"start"`
	Conditions Conditions `json:"conditions"`
	Runs       int        `json:"runs"`
	// Mixed says that not all runs were under the same conditions; Conditions
	// are those of the first.
	Mixed      bool                `json:"mixed,omitempty"`
	Total      Stat[time.Duration] `json:"total"`
	Pull       Stat[time.Duration] `json:"pull"`
	Create     Stat[time.Duration] `json:"create"`
	Run        Stat[time.Duration] `json:"run"`
	Requests   Stat[int64]         `json:"requests"`
	Bytes      Stat[int64]         `json:"bytes"`
	LayerBytes Stat[int64]         `json:"layerBytes"`
	PeerBytes  Stat[int64]         `json:"peerBytes"`
	// Bound is what a first start takes at least: the cached start, and what was
	// fetched over the bandwidths of the paths; 0 where that is not known.
	// OfBound is the total divided by it.
	Bound   time.Duration `json:"bound,omitempty"`
	OfBound float64       `json:"ofBound,omitempty"`
	// Phases are the medians of those of the samples; nil where there are none.
	Phases *Phases `json:"phases,omitempty"`
	// Ratios are the medians of the totals, this one's divided by that of
	// another mode; modes that were measured under other conditions are
	// missing, and Incomparable says why.
	Ratios       map[Mode]float64 `json:"ratios,omitempty"`
	Incomparable map[Mode]string  `json:"incomparable,omitempty"`
}

// key is what samples of one result share; conditions are compared, not
// grouped by, except for the path, which there may be several of.
type key struct {
	path  Path
	name  string
	mode  Mode
	start StartKind
}

// summarize makes results of samples, in the order in which cases, modes and
// paths were first seen.
// peers is the path between nodes.
func summarize(samples []Sample, peers Path) []Result {
	groups := map[key][]Sample{}
	var paths []Path
	var names []string
	for _, s := range samples {
		k := key{s.Conditions.Path, s.Case, s.Mode, s.Start}
		groups[k] = append(groups[k], s)
		if !slices.Contains(paths, k.path) {
			paths = append(paths, k.path)
		}
		if !slices.Contains(names, k.name) {
			names = append(names, k.name)
		}
	}
	var results []Result
	for _, path := range paths {
		for _, name := range names {
			for _, start := range []StartKind{First, Again} {
				var same []Result
				for _, mode := range Modes() {
					if g := groups[key{path, name, mode, start}]; len(g) > 0 {
						same = append(same, resultOf(g))
					}
				}
				compare(same)
				if start == Again {
					boundBy(results, same, peers)
				}
				results = append(results, same...)
			}
		}
	}
	return results
}

// resultOf summarizes the samples of one mode.
func resultOf(g []Sample) Result {
	r := Result{Case: g[0].Case, Mode: g[0].Mode, Start: g[0].Start, Conditions: g[0].Conditions, Runs: len(g)}
	r.Mixed = slices.ContainsFunc(g, func(s Sample) bool { return s.Conditions != r.Conditions })
	r.Total = statOf(collect(g, Sample.Total))
	r.Pull = statOf(collect(g, func(s Sample) time.Duration { return s.Pull }))
	r.Create = statOf(collect(g, func(s Sample) time.Duration { return s.Create }))
	r.Run = statOf(collect(g, func(s Sample) time.Duration { return s.Run }))
	r.Requests = statOf(collect(g, func(s Sample) int64 { return s.Requests }))
	r.Bytes = statOf(collect(g, func(s Sample) int64 { return s.Bytes }))
	r.LayerBytes = statOf(collect(g, func(s Sample) int64 { return s.LayerBytes }))
	r.PeerBytes = statOf(collect(g, func(s Sample) int64 { return s.PeerBytes }))
	r.Phases = phasesOf(g)
	return r
}

func collect[T any](g []Sample, f func(Sample) T) []T {
	values := make([]T, len(g))
	for i, s := range g {
		values[i] = f(s)
	}
	return values
}

// compare fills in the ratios between results that differ in the mode only.
func compare(results []Result) {
	for i := range results {
		r := &results[i]
		r.Ratios, r.Incomparable = map[Mode]float64{}, map[Mode]string{}
		for _, other := range results {
			if other.Mode == r.Mode {
				continue
			}
			ratio, err := Ratio(*r, other)
			if err != nil {
				r.Incomparable[other.Mode] = err.Error()
				continue
			}
			r.Ratios[other.Mode] = ratio
		}
	}
}

// Ratio returns the median of a's totals divided by that of b's. It refuses
// results that were not measured under the same conditions and equally often.
func Ratio(a, b Result) (float64, error) {
	differs := ""
	switch {
	case a.Case != b.Case || a.Conditions.Program != b.Conditions.Program:
		differs = "programs"
	case a.Start != b.Start:
		differs = "kinds of start"
	case a.Conditions.Path != b.Conditions.Path:
		differs = "shapes"
	case a.Conditions.Image != b.Conditions.Image:
		differs = "images"
	case a.Conditions.Machine != b.Conditions.Machine:
		differs = "machines"
	case a.Conditions.Output != b.Conditions.Output:
		differs = "outputs"
	case a.Conditions.Peers != b.Conditions.Peers && a.Conditions.Peers != "" && b.Conditions.Peers != "":
		differs = "clusters"
	case a.Runs != b.Runs:
		differs = "numbers of runs"
	case a.Mixed || b.Mixed:
		differs = "conditions from run to run"
	case b.Total.Median <= 0:
		return 0, fmt.Errorf("compare %s with %s: the latter took no time", a.Mode, b.Mode)
	}
	if differs != "" {
		return 0, fmt.Errorf("compare %s with %s: measured with different %s", a.Mode, b.Mode, differs)
	}
	return float64(a.Total.Median) / float64(b.Total.Median), nil
}

// mirrorNote says how our modes reach the registry; empty where none ran.
func (r Report) mirrorNote() string {
	mirrored := slices.ContainsFunc(r.Results, func(res Result) bool { return res.Mode.mirrored() })
	switch {
	case mirrored && r.Unpack:
		return "behind the mirror containerd had skimmer decompress layers"
	case !slices.ContainsFunc(r.Results, func(res Result) bool { return res.Mode.ours() }):
		return ""
	case r.Mirror:
		return "with skimmer, containerd asked the registry through the node's mirror"
	}
	return "with skimmer, containerd asked the registry itself"
}

// load returns the lowest and the highest load there was.
func (r Report) load() (low, high float64) {
	if len(r.Samples) == 0 {
		return 0, 0
	}
	loads := make([]float64, len(r.Samples))
	for i, s := range r.Samples {
		loads[i] = s.Load
	}
	return slices.Min(loads), slices.Max(loads)
}

// paths returns the paths of the results, in their order.
func (r Report) paths() (paths []Path) {
	for _, res := range r.Results {
		if !slices.Contains(paths, res.Conditions.Path) {
			paths = append(paths, res.Conditions.Path)
		}
	}
	return paths
}

// over returns the results over a path.
func (r Report) over(path Path) []Result {
	return slices.DeleteFunc(slices.Clone(r.Results), func(res Result) bool { return res.Conditions.Path != path })
}

// ofMode reports whether there are results of a mode.
func (r Report) ofMode(m Mode) bool {
	return slices.ContainsFunc(r.Results, func(res Result) bool { return res.Mode == m })
}
