package coldstart

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"time"
)

//go:embed report.html.tmpl chart.svg.tmpl
var files embed.FS

var templates = template.Must(template.ParseFS(files, "report.html.tmpl", "chart.svg.tmpl"))

// The chart, in pixels: bars with labels on their left and numbers on their
// right.
const (
	chartWidth = 940
	chartLeft  = 150
	chartRight = 190
	plotWidth  = chartWidth - chartLeft - chartRight
	barHeight  = 15 // of first starts; of cached ones half
	barStep    = 26 // from one mode to the next
	headHeight = 36 // of a path, and of a case
)

// chart is what is drawn.
type chart struct {
	Width, Height int
	Panels        []panel
	Legend        []swatch
}

// panel is the part about one path.
type panel struct {
	Title  string
	Y      int
	Bottom int
	Groups []group
}

type chartMark struct {
	X     float64
	Label string
}

// group is a case, with an axis of its own.
type group struct {
	Name           string
	Y, Top, Bottom int
	Marks          []chartMark
	Bars           []bar
}

// bar is a mode: its first start as parts of a bar, with the range of the runs,
// its bound, and the cached start below.
type bar struct {
	Mode, Label, About string
	Y, TextY           int
	Parts              []part
	Low, High, Middle  float64 // of the range; Middle is its height
	Bound              float64 // 0 for none
	Cached             float64 // its width; 0 for none
	Cut                bool    // the bar is longer than there is room
	End                float64 // where the label begins
}

// part is one phase of a bar.
type part struct {
	Class    string
	X, Width float64
}

type swatch struct {
	Class, Name string
	X           int
}

// WriteSVG draws the medians as bars: for each path, case and mode the first
// start, made of its phases, with the range of the runs and the bound, and the
// cached one. It is readable on dark and on light. Its errors are those of w.
func (r Report) WriteSVG(w io.Writer) error {
	if err := templates.ExecuteTemplate(w, "chart.svg.tmpl", r.chart()); err != nil {
		return fmt.Errorf("draw chart: %w", err)
	}
	return nil
}

func (r Report) chart() chart {
	c := chart{Width: chartWidth, Legend: []swatch{
		{"pull", "pull", chartLeft}, {"create", "create", chartLeft + 70}, {"run", "run", chartLeft + 150},
		{"cached", "cached start", chartLeft + 210}, {"bound", "bound", chartLeft + 330}, {"range", "range of runs", chartLeft + 410},
	}}
	y := 40
	for _, path := range r.paths() {
		p := panelOf(path, r.over(path), y)
		c.Panels = append(c.Panels, p)
		y = p.Bottom + 24
	}
	c.Height = y - 20
	return c
}

func panelOf(path Path, results []Result, y int) panel {
	p := panel{Title: "Path to the registry: " + path.String(), Y: y}
	y += headHeight / 2
	for len(results) > 0 {
		name := results[0].Case
		n := slices.IndexFunc(results, func(r Result) bool { return r.Case != name })
		if n < 0 {
			n = len(results)
		}
		g := groupOf(results[:n], y+headHeight)
		p.Groups = append(p.Groups, g)
		results, y = results[n:], g.Bottom+headHeight/2
	}
	p.Bottom = y
	return p
}

// groupOf draws the results of one case from y on.
func groupOf(results []Result, y int) group {
	g := group{Name: results[0].Case, Y: y - 8, Top: y - 4}
	end := max(endOf(results), time.Millisecond)
	s := scale{end}
	for _, res := range results {
		if res.Start == First {
			g.Bars = append(g.Bars, barOf(res, cachedOf(results, res), s, y))
			y += barStep
		}
	}
	g.Bottom = y
	step := chartStep(end.Seconds())
	for i := 0; float64(i)*step <= end.Seconds(); i++ {
		at := float64(i) * step
		g.Marks = append(g.Marks, chartMark{s.x(time.Duration(at * 1e9)), fmt.Sprintf("%g s", math.Round(at*1e6)/1e6)})
	}
	return g
}

// endOf returns the longest time there has to be room for. Bars of overlayfs,
// which fetches everything, are cut where they would leave nothing to see of the
// others.
func endOf(results []Result) time.Duration {
	var lazy, all time.Duration
	for _, res := range results {
		end := max(res.Total.Max, res.Bound)
		all = max(all, end)
		if res.Mode.snapshotter() != string(Overlayfs) {
			lazy = max(lazy, end)
		}
	}
	if lazy == 0 || all < 3*lazy {
		return all
	}
	return lazy * 6 / 5
}

// scale turns times into places in the chart.
type scale struct{ end time.Duration }

func (s scale) x(d time.Duration) float64 {
	return chartLeft + min(float64(d)/float64(s.end), 1)*plotWidth
}

// cachedOf returns the cached start that belongs to a first one.
func cachedOf(results []Result, first Result) time.Duration {
	for _, res := range results {
		if res.Start == Again && res.Case == first.Case && res.Mode == first.Mode {
			return res.Total.Median
		}
	}
	return 0
}

func barOf(res Result, cached time.Duration, s scale, y int) bar {
	b := bar{
		Mode: string(res.Mode), Y: y, TextY: y + 12, Label: ms(res.Total.Median) + " ms",
		Low: s.x(res.Total.Min), High: s.x(res.Total.Max), Middle: float64(y) + barHeight/2.0,
	}
	if ratio, ok := res.Ratios[Stargz]; ok {
		b.Label += fmt.Sprintf(", %.2f × stargz", ratio)
	}
	b.About = fmt.Sprintf("%s, %s: pull %s, create %s, run %s, together %s (%s to %s) ms; cached %s ms", res.Case, res.Mode,
		ms(res.Pull.Median), ms(res.Create.Median), ms(res.Run.Median), ms(res.Total.Median), ms(res.Total.Min), ms(res.Total.Max), ms(cached))
	// The medians of the phases need not add up to that of the total.
	var at time.Duration
	sum := max(res.Pull.Median+res.Create.Median+res.Run.Median, 1)
	for _, phase := range []struct {
		class string
		took  time.Duration
	}{{"pull", res.Pull.Median}, {"create", res.Create.Median}, {"run", res.Run.Median}} {
		took := time.Duration(float64(phase.took) / float64(sum) * float64(res.Total.Median))
		b.Parts = append(b.Parts, part{phase.class, s.x(at), s.x(at+took) - s.x(at)})
		at += took
	}
	if res.Bound > 0 && res.Bound <= s.end {
		b.Bound = s.x(res.Bound)
		b.About += fmt.Sprintf("; bound %s ms", ms(res.Bound))
	}
	b.Cut = res.Total.Median > s.end
	if cached > 0 {
		b.Cached = s.x(cached) - chartLeft
	}
	b.End = max(b.High, s.x(res.Total.Median), b.Bound) + 6
	return b
}

// chartStep returns a round distance between at most nine marks on an axis.
func chartStep(end float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(end/8)))
	for _, m := range []float64{1, 2, 5} {
		if end/(m*unit) <= 8 {
			return m * unit
		}
	}
	return 10 * unit
}

// pageTable is a table of the report.
type pageTable struct {
	Title string
	Head  []string
	Rows  [][]string
	Notes []string
}

// page is what the report's template shows.
type page struct {
	Report
	Chart   chart
	Busy    string
	Facts   []string
	Tables  []pageTable
	Between string
}

// WriteHTML writes the results as a page of its own, with the chart, the tables,
// the machine, and the command that repeats it. It loads nothing and runs no
// script. Its errors are those of w.
func (r Report) WriteHTML(w io.Writer) error {
	p := page{Report: r, Chart: r.chart()}
	if low, high := r.load(); high > float64(r.Machine.CPUs)+1 {
		p.Busy = fmt.Sprintf("The machine was busy with other things (load %.1f to %.1f): do not trust times.", low, high)
	}
	for _, img := range r.Images {
		p.Facts = append(p.Facts, fmt.Sprintf("%s: %s MB in %d layers, %s", img.Name, megabytes(img.Size), len(img.Layers), img.Digest))
	}
	if r.ofMode(SkimmerPeers) {
		p.Between = fmt.Sprintf("Between nodes of one cluster: %v; the first node %s.", r.PeerPath, r.FirstNode)
	}
	if r.AtOnce {
		p.Facts = append(p.Facts, "Cached starts followed first ones at once.")
	}
	if note := r.mirrorNote(); note != "" {
		p.Facts = append(p.Facts, note)
	}
	if r.Machine.SharedDisk {
		p.Facts = append(p.Facts, sharedDisk)
	}
	for _, path := range r.paths() {
		p.Tables = append(p.Tables, tablesOf(path, r.over(path))...)
	}
	if err := templates.ExecuteTemplate(w, "report.html.tmpl", p); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// tablesOf returns the table of a path, and that of where the time went.
func tablesOf(path Path, results []Result) []pageTable {
	columns := columnsFor(results)
	t := pageTable{Title: fmt.Sprintf("Path to the registry %v: medians of %s, times in ms", path, runs(results)), Head: []string{"case", "start"}, Notes: notes(results)}
	for _, c := range columns {
		t.Head = append(t.Head, c.name)
	}
	where := pageTable{Title: fmt.Sprintf("Path to the registry %v: where the time of first starts went, in ms", path), Head: []string{"case", "mode"}}
	for _, c := range phaseColumns {
		where.Head = append(where.Head, c.name)
	}
	for _, res := range results {
		row := []string{res.Case, string(res.Start)}
		for _, c := range columns {
			row = append(row, c.cell(res))
		}
		t.Rows = append(t.Rows, row)
		if res.Phases == nil {
			continue
		}
		row = []string{res.Case, string(res.Mode)}
		for _, c := range phaseColumns {
			row = append(row, c.cell(res.Phases))
		}
		where.Rows = append(where.Rows, row)
	}
	if len(where.Rows) == 0 {
		return []pageTable{t}
	}
	where.Notes = []string{"What goes on at once counts in each. Of faults, waits is what all of them took together, waiting how long at least one was under way."}
	return []pageTable{t, where}
}
