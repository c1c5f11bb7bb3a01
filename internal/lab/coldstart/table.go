package coldstart

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteTable writes the results for people: per path a table with a line for
// each case, start and mode.
func (r Report) WriteTable(w io.Writer) error {
	var out strings.Builder
	fmt.Fprintf(&out, "\nLinux %s, %d CPUs, containerd %s, served by %s\n", r.Machine.Kernel, r.Machine.CPUs, r.Machine.Containerd, r.Machine.Registry)
	for _, img := range r.Images {
		fmt.Fprintf(&out, "%s: %s MB in %d layers\n", img.Name, megabytes(img.Size), len(img.Layers))
	}
	// The experiment itself keeps about one CPU busy, and unpacking two.
	if low, high := r.load(); high > float64(r.Machine.CPUs)+1 {
		fmt.Fprintf(&out, "The machine was busy with other things (load %.1f to %.1f): do not trust times.\n", low, high)
	}
	var paths []Path
	for _, res := range r.Results {
		if !slices.Contains(paths, res.Conditions.Path) {
			paths = append(paths, res.Conditions.Path)
		}
	}
	for _, path := range paths {
		same := slices.DeleteFunc(slices.Clone(r.Results), func(res Result) bool { return res.Conditions.Path != path })
		if err := writePath(&out, path, same); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func writePath(out *strings.Builder, path Path, results []Result) error {
	fmt.Fprintf(out, "\nshape %v, medians of %s in ms\n\n", path, runs(results))
	modes := others(results)
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := []string{"case", "start", "mode", "total", "min–max", "pull", "create", "run", "requests", "MB"}
	for _, m := range modes {
		head = append(head, "× "+string(m))
	}
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	var notes []string
	last := ""
	for _, r := range results {
		name, start := r.Case, string(r.Start)
		if name+start == last {
			name, start = "", ""
		} else {
			last = name + start
		}
		cells := []string{
			name, start, string(r.Mode), ms(r.Total.Median), ms(r.Total.Min) + "–" + ms(r.Total.Max),
			ms(r.Pull.Median), ms(r.Create.Median), ms(r.Run.Median), fmt.Sprint(r.Requests.Median), megabytes(r.Bytes.Median),
		}
		for _, m := range modes {
			cell := ""
			if ratio, ok := r.Ratios[m]; ok {
				cell = fmt.Sprintf("%.2f", ratio)
			}
			cells = append(cells, cell)
			if why := r.Incomparable[m]; why != "" {
				notes = append(notes, fmt.Sprintf("%s, %s start: %s", r.Case, r.Start, why))
			}
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range notes {
		fmt.Fprintf(out, "\n%s\n", n)
	}
	return nil
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
