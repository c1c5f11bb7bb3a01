package trace

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"time"
)

//go:embed waterfall.html.tmpl
var files embed.FS

var waterfall = template.Must(template.ParseFS(files, "waterfall.html.tmpl"))

// page is what the template shows.
type page struct {
	Title  string
	Head   []string
	Marks  []mark
	Kinds  []kind
	Events []row
}

// mark is a round time on the axis.
type mark struct {
	Left  float64 // percent of the width
	Label string
}

// kind is a line of the summary.
type kind struct {
	Class, Name                                                   string
	Count, Errors                                                 int
	Total, Busy, Longest, Bytes, FromLocal, FromPeers, FromOrigin string
}

// row is an event as it is shown.
type row struct {
	Class, Kind, At, Took, Layer, Chunks, Bytes, From, What string
	Left, Width                                             float64 // percent of the width
	Failed                                                  bool
}

// HTML writes a start as a page of its own, a waterfall: what happened when, a
// bar for each event. It loads nothing and runs no script. Its errors are those
// of w.
func HTML(w io.Writer, s Start) error {
	if err := waterfall.Execute(w, pageOf(s)); err != nil {
		return fmt.Errorf("write waterfall: %w", err)
	}
	return nil
}

func pageOf(s Start) page {
	end := max(s.end(), time.Millisecond)
	p := page{Title: shown(s.Image), Head: headOf(s), Marks: marksTo(end)}
	percent := func(d time.Duration) float64 { return 100 * float64(d) / float64(end) }
	for _, u := range s.Sums() {
		p.Kinds = append(p.Kinds, kind{
			Class: classOf(u.Kind), Name: shown(string(u.Kind)), Count: u.Count, Errors: u.Errors,
			Total: millis(u.Total), Busy: millis(u.Busy), Longest: millis(u.Longest), Bytes: bytesOf(u.Bytes),
			FromLocal: bytesOf(u.Local), FromPeers: bytesOf(u.Peers), FromOrigin: bytesOf(u.Origin),
		})
	}
	for _, e := range s.Events {
		p.Events = append(p.Events, row{
			Class: classOf(e.Kind), Kind: shown(string(e.Kind)), At: millis(e.At), Took: millis(e.Took),
			Layer: layerOf(e.Layer), Chunks: chunksOf(e), Bytes: bytesOf(e.Bytes), From: sourcesOf(e), What: whatOf(e),
			Left: percent(e.At), Width: percent(e.Took), Failed: e.Error != "",
		})
	}
	return p
}

// classOf returns the style class of a kind; kinds nobody knows share one.
func classOf(k Kind) string {
	for _, known := range Kinds() {
		if k == known {
			return string(k)
		}
	}
	return "other"
}

// marksTo returns up to nine round times between 0 and end, none so near to it
// that its label would not fit before it.
func marksTo(end time.Duration) []mark {
	step := stepFor(end)
	var marks []mark
	for i := range (end-end/16)/step + 1 { // i * step cannot overflow
		at := i * step
		marks = append(marks, mark{100 * float64(at) / float64(end), at.String()})
	}
	return marks
}

// stepFor returns the smallest of 1ms, 2ms, 5ms, 10ms, 20ms, ... that fits into
// end eight times at most.
func stepFor(end time.Duration) time.Duration {
	for unit := time.Millisecond; ; unit *= 10 {
		for _, step := range []time.Duration{unit, 2 * unit, 5 * unit} {
			if end/step < 9 {
				return step
			}
		}
	}
}
