package coldstart

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"skimmer/internal/image/trace"
)

// sharedDisk is said where it was so.
const sharedDisk = "Nodes shared a file system, in which one may pay for files that the one before it left: mind the order of modes."

// WriteTable writes the results for people: per path a table with a line for
// each case, start and mode.
func (r Report) WriteTable(w io.Writer) error {
	var out strings.Builder
	fmt.Fprintf(&out, "\nLinux %s, %d CPUs, TCP %s, containerd %s, served by %s\n", r.Machine.Kernel, r.Machine.CPUs, r.Machine.Congestion, r.Machine.Containerd, r.Machine.Registry)
	for _, img := range r.Images {
		fmt.Fprintf(&out, "%s: %s MB in %d layers\n", img.Name, megabytes(img.Size), len(img.Layers))
	}
	if r.ofMode(SkimmerPeers) {
		fmt.Fprintf(&out, "between nodes %v, the first node %s\n", r.PeerPath, r.FirstNode)
	}
	if r.AtOnce {
		fmt.Fprintln(&out, "cached starts followed first ones at once")
	}
	if note := r.mirrorNote(); note != "" {
		fmt.Fprintln(&out, note)
	}
	if r.Machine.SharedDisk {
		fmt.Fprintln(&out, sharedDisk)
	}
	// The experiment itself keeps about one CPU busy, and unpacking two.
	if low, high := r.load(); high > float64(r.Machine.CPUs)+1 {
		fmt.Fprintf(&out, "The machine was busy with other things (load %.1f to %.1f): do not trust times.\n", low, high)
	}
	for _, path := range r.paths() {
		if err := writePath(&out, path, r.over(path)); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// column is one of a table.
type column struct {
	name string
	cell func(r Result) string
}

// columnsFor returns the columns that a table of the results needs, but for case
// and start.
func columnsFor(results []Result) []column {
	columns := []column{
		{"mode", func(r Result) string { return string(r.Mode) }},
		{"total", func(r Result) string { return ms(r.Total.Median) }},
		{"min–max", func(r Result) string { return ms(r.Total.Min) + "–" + ms(r.Total.Max) }},
		{"pull", func(r Result) string { return ms(r.Pull.Median) }},
		{"create", func(r Result) string { return ms(r.Create.Median) }},
		{"run", func(r Result) string { return ms(r.Run.Median) }},
		{"requests", func(r Result) string { return fmt.Sprint(r.Requests.Median) }},
		{"MB", func(r Result) string { return megabytes(r.Bytes.Median) }},
		{"of layers", func(r Result) string { return megabytes(r.LayerBytes.Median) }},
	}
	if slices.ContainsFunc(results, func(r Result) bool { return r.PeerBytes.Max > 0 }) {
		columns = append(columns, column{"from peers", func(r Result) string { return megabytes(r.PeerBytes.Median) }})
	}
	if slices.ContainsFunc(results, func(r Result) bool { return r.Bound > 0 }) {
		columns = append(columns,
			column{"bound", func(r Result) string { return unless(r.Bound == 0, ms(r.Bound)) }},
			column{"× bound", func(r Result) string { return unless(r.OfBound == 0, fmt.Sprintf("%.2f", r.OfBound)) }})
	}
	for _, m := range others(results) {
		columns = append(columns, column{"× " + string(m), func(r Result) string {
			ratio, ok := r.Ratios[m]
			return unless(!ok, fmt.Sprintf("%.2f", ratio))
		}})
	}
	return columns
}

func unless(empty bool, s string) string {
	if empty {
		return ""
	}
	return s
}

func writePath(out *strings.Builder, path Path, results []Result) error {
	fmt.Fprintf(out, "\nshape %v, medians of %s in ms\n\n", path, runs(results))
	columns := columnsFor(results)
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := []string{"case", "start"}
	for _, c := range columns {
		head = append(head, c.name)
	}
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	last := ""
	for _, r := range results {
		name, start := r.Case, string(r.Start)
		if name+start == last {
			name, start = "", ""
		} else {
			last = name + start
		}
		cells := []string{name, start}
		for _, c := range columns {
			cells = append(cells, c.cell(r))
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if err := writePhases(out, results); err != nil {
		return err
	}
	for _, n := range notes(results) {
		fmt.Fprintf(out, "\n%s\n", n)
	}
	return nil
}

// phaseColumns are those of where the time went.
var phaseColumns = []struct {
	name string
	cell func(p *Phases) string
}{
	{"profile from", func(p *Phases) string { return p.Profile }},
	{"manifest", busy(trace.Manifest)},
	{"index", busy(trace.Index)},
	{"profile", busy(trace.Profile)},
	{"metadata", busy(trace.Metadata)},
	{"mount", busy(trace.Mount)},
	{"prefetch", busy(trace.Prefetch)},
	{"faults", func(p *Phases) string { return fmt.Sprint(p.sum(trace.Fault).Count) }},
	{"waits", func(p *Phases) string { return ms(p.sum(trace.Fault).Total) }},
	{"waiting", busy(trace.Fault)},
	{"longest", func(p *Phases) string { return ms(p.sum(trace.Fault).Longest) }},
	{"unpacked/read", func(p *Phases) string {
		return unless(p.Read == 0, fmt.Sprintf("%.2f", float64(p.Inflated)/float64(max(p.Read, 1))))
	}},
}

// busy returns a cell that says how long anything of a kind was under way.
func busy(kind trace.Kind) func(p *Phases) string {
	return func(p *Phases) string {
		s := p.sum(kind)
		return unless(s.Count == 0, ms(s.Busy))
	}
}

// writePhases says where the time of our first starts went.
func writePhases(out *strings.Builder, results []Result) error {
	results = slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return r.Phases == nil })
	if len(results) == 0 {
		return nil
	}
	fmt.Fprint(out, "\nwhere the time of first starts went, in ms; what goes on at once counts in each\n\n")
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "case\tmode")
	for _, c := range phaseColumns {
		fmt.Fprintf(tw, "\t%s", c.name)
	}
	fmt.Fprintln(tw)
	for _, r := range results {
		fmt.Fprintf(tw, "%s\t%s", r.Case, r.Mode)
		for _, c := range phaseColumns {
			fmt.Fprintf(tw, "\t%s", cmp.Or(c.cell(r.Phases), "-"))
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// notes says which results were not compared, and why.
func notes(results []Result) (notes []string) {
	for _, m := range others(results) {
		for _, r := range results {
			if why := r.Incomparable[m]; why != "" {
				notes = append(notes, fmt.Sprintf("%s, %s start: %s", r.Case, r.Start, why))
			}
		}
	}
	return notes
}

// others returns the modes there are ratios against, the strongest first. Ours
// is what is compared, not what is compared with.
func others(results []Result) (modes []Mode) {
	for _, m := range []Mode{Stargz, Overlayfs} {
		for _, r := range results {
			if r.Mode != m && (r.Ratios[m] > 0 || r.Incomparable[m] != "") {
				modes = append(modes, m)
				break
			}
		}
	}
	return modes
}

func runs(results []Result) string {
	n := make([]int, 0, len(results))
	for _, r := range results {
		n = append(n, r.Runs)
	}
	low, high := slices.Min(n), slices.Max(n)
	switch {
	case high == 1:
		return "1 run"
	case low == high:
		return fmt.Sprintf("%d runs", low)
	}
	return fmt.Sprintf("%d to %d runs", low, high)
}

// ms writes a duration in milliseconds, with a comma between thousands.
func ms(d time.Duration) string {
	n := d.Round(time.Millisecond).Milliseconds()
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }
