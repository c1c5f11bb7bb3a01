package distribute

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"skimmer/internal/lab/cluster"
)

// Report is what an experiment measured. Times are in nanoseconds, sizes in
// bytes.
type Report struct {
	Machine Machine  `json:"machine"`
	Nodes   int      `json:"nodes"`
	Seeds   int      `json:"seeds"`
	Size    int64    `json:"size"` // of the file
	Rate    int64    `json:"rate"` // of every link, in bits per second
	Results []Result `json:"results"`
}

// Machine is what everything was measured on.
type Machine struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	// Congestion is how TCP finds its rate on the nodes, as the kernel names it.
	Congestion string `json:"congestionControl"`
}

// Result is one mode.
type Result struct {
	Mode Mode `json:"mode"`
	// Bound is the fluid bound; 0 where links have no limit.
	Bound time.Duration `json:"bound"`
	Nodes []NodeResult  `json:"nodes"`
	// Helpers are the seeds.
	Helpers []cluster.Usage `json:"helpers,omitempty"`
	// Origin is what left the origin, Egress its bytes over those of the file.
	Origin cluster.Sent `json:"origin"`
	Egress float64      `json:"egress"`
	// Samples are what links had carried as time went on.
	Samples []Sample `json:"samples"`
}

// NodeResult is one node that fetched the file.
type NodeResult struct {
	Name string `json:"name"`
	// Time is until all of it was there: in mode Swarm in the node's store, each
	// piece compared with its digest, in mode Direct in a file.
	Time time.Duration `json:"time"`
	// Copied is until it was in a file beside the store too; 0 where there is none.
	Copied time.Duration `json:"copied,omitempty"`
	// Usage is what its daemon used, not known in mode Direct.
	Usage *cluster.Usage `json:"usage,omitempty"`
}

// Sample is what links had carried at a time, in bytes of Ethernet frames.
type Sample struct {
	At       time.Duration `json:"at"`
	Origin   int64         `json:"origin"`   // sent by it
	Received []int64       `json:"received"` // by each node
}

// Makespan returns when the last node had all of it.
func (r Result) Makespan() (last time.Duration) {
	for _, n := range r.Nodes {
		last = max(last, n.Time)
	}
	return last
}

// Copied returns when the last node had written it to a file beside its store, 0 where
// that was not asked for.
func (r Result) Copied() (last time.Duration) {
	for _, n := range r.Nodes {
		last = max(last, n.Copied)
	}
	return last
}

// Ratio returns the makespan over the fluid bound, 0 where there is none.
func (r Result) Ratio() float64 {
	if r.Bound == 0 {
		return 0
	}
	return float64(r.Makespan()) / float64(r.Bound)
}

// usage notes what daemons have used: those of the nodes first, then the seeds.
func (r *Result) usage(daemons []*cluster.Process) error {
	for i, d := range daemons {
		u, err := d.Usage()
		if err != nil {
			return err
		}
		if i < len(r.Nodes) {
			r.Nodes[i].Usage = &u
		} else {
			r.Helpers = append(r.Helpers, u)
		}
	}
	return nil
}

// totals returns the CPU time and the largest memory of all daemons.
func (r Result) totals() (cpu time.Duration, peak int64) {
	all := slices.Clone(r.Helpers)
	for _, n := range r.Nodes {
		if n.Usage != nil {
			all = append(all, *n.Usage)
		}
	}
	for _, u := range all {
		cpu += u.CPU
		peak = max(peak, u.Peak)
	}
	return cpu, peak
}

// WriteTable writes the results for people: a line for each mode, and one for
// each node.
func (r Report) WriteTable(w io.Writer) error {
	var out strings.Builder
	fmt.Fprintf(&out, "\nLinux %s, %d CPUs, TCP %s; %.1f MB to %d nodes and %d seeds, %s\n\n",
		r.Machine.Kernel, r.Machine.CPUs, r.Machine.Congestion, float64(r.Size)/1e6, r.Nodes, r.Seeds, rate(r.Rate))
	tw := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "mode\tlast node\tfirst node\tfluid bound\t× bound\tlast copy\torigin × file\tsent again\tCPU per GB\tpeak memory")
	for _, res := range r.Results {
		first := res.Makespan()
		for _, n := range res.Nodes {
			first = min(first, n.Time)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%.3f\t%.2f MB\t%s\n", res.Mode, seconds(res.Makespan()), seconds(first),
			bound(res.Bound), ratio(res.Ratio()), bound(res.Copied()), res.Egress, float64(res.Origin.Again)/1e6, r.cost(res))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	out.WriteString(`
A node is done when it has all of the file: in mode swarm in its store, each piece
compared with its digest; in mode direct written to a file. A copy is written by
skimmer get beside the store, with --copies.

`)
	head := "node"
	for _, res := range r.Results {
		head += fmt.Sprintf("\t%s", res.Mode)
		if res.Copied() > 0 {
			head += "\tcopy"
		}
		if res.Mode == Swarm {
			head += "\tCPU\tpeak memory"
		}
	}
	fmt.Fprintln(tw, head)
	for i := range r.Nodes {
		line := ""
		for _, res := range r.Results {
			n := res.Nodes[i]
			if line == "" {
				line = n.Name
			}
			line += "\t" + seconds(n.Time)
			if res.Copied() > 0 {
				line += "\t" + seconds(n.Copied)
			}
			if n.Usage != nil {
				line += fmt.Sprintf("\t%s\t%s", seconds(n.Usage.CPU), mebibytes(n.Usage.Peak))
			}
		}
		fmt.Fprintln(tw, line)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// cost writes what daemons used, per 10⁹ bytes that a node received.
func (r Report) cost(res Result) string {
	cpu, peak := res.totals()
	if peak == 0 {
		return "–\t–"
	}
	received := float64(r.Size) / 1e9 * float64(r.Nodes+len(res.Helpers))
	return fmt.Sprintf("%.2f s\t%s", cpu.Seconds()/received, mebibytes(peak))
}

func rate(bits int64) string {
	if bits == 0 {
		return "links as fast as the machine"
	}
	return fmt.Sprintf("every link %g Mbit/s each way", float64(bits)/1e6)
}

func bound(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return seconds(d)
}

func ratio(f float64) string {
	if f == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", f)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func mebibytes(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }
