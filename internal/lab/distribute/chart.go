package distribute

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// The chart, in pixels: a plot with room for labels around it.
const (
	chartWidth, chartHeight = 860, 480
	left, right             = 76, 150
	top, bottom             = 48, 52
	plotWidth, plotHeight   = chartWidth - left - right, chartHeight - top - bottom
)

// colours are those of the modes: dark enough on white, and different also for
// those who do not see red.
var colours = map[Mode]string{Direct: "#d55e00", Swarm: "#0072b2"}

// scale turns times and sizes into places in the chart.
type scale struct {
	seconds, bytes float64 // at the right and upper end of the plot
}

func (s scale) x(seconds float64) float64 { return left + seconds/s.seconds*plotWidth }
func (s scale) y(bytes float64) float64   { return top + (1-bytes/s.bytes)*plotHeight }

// WriteSVG draws what each node had received as time went on, a line for each
// node and mode, with the size of the file and the fluid bounds.
func (r Report) WriteSVG(w io.Writer) error {
	s := scale{bytes: 1.15 * float64(r.Size)}
	for _, res := range r.Results {
		s.seconds = max(s.seconds, 1.02*res.Makespan().Seconds(), 1.02*res.Bound.Seconds())
		for _, sample := range res.Samples {
			for _, n := range sample.Received {
				s.bytes = max(s.bytes, 1.02*float64(n))
			}
		}
	}
	if s.seconds == 0 {
		s.seconds = 1
	}
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%d" y="24" font-size="15">%.0f MB to %d nodes, %s</text>
`, chartWidth, chartHeight, left, float64(r.Size)/1e6, r.Nodes, rate(r.Rate))
	s.axes(&out)
	y := s.y(float64(r.Size))
	fmt.Fprintf(&out, `<path d="M%d %.1fH%d" stroke="#888" stroke-dasharray="2 3"/><text x="%d" y="%.1f">the file</text>`+"\n",
		left, y, left+plotWidth, left+plotWidth+8, y+4)
	for i, res := range r.Results {
		s.lines(&out, res, i)
	}
	out.WriteString("</svg>\n")
	_, err := io.WriteString(w, out.String())
	return err
}

// axes draws both axes with round numbers.
func (s scale) axes(out *strings.Builder) {
	for v, step := 0.0, stepFor(s.seconds); v <= s.seconds; v += step {
		fmt.Fprintf(out, `<path d="M%.1f %dV%d" stroke="#eee"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n",
			s.x(v), top, top+plotHeight, s.x(v), top+plotHeight+18, rounded(v))
	}
	for v, step := 0.0, stepFor(s.bytes/1e6); v <= s.bytes/1e6; v += step {
		fmt.Fprintf(out, `<path d="M%d %.1fH%d" stroke="#eee"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			left, s.y(1e6*v), left+plotWidth, left-8, s.y(1e6*v)+4, rounded(v))
	}
	fmt.Fprintf(out, `<path d="M%d %dV%dH%d" stroke="#222" fill="none"/>
<text x="%d" y="%d" text-anchor="middle">seconds</text>
<text x="20" y="%d" text-anchor="middle" transform="rotate(-90 20 %d)">MB received, as frames</text>
`, left, top, top+plotHeight, left+plotWidth, left+plotWidth/2, chartHeight-12, top+plotHeight/2, top+plotHeight/2)
}

// lines draws one mode: its nodes, its bound, and number i of the legend.
func (s scale) lines(out *strings.Builder, res Result, i int) {
	colour := colours[res.Mode]
	for n := range res.Nodes {
		points := []string{fmt.Sprintf("%.1f,%.1f", s.x(0), s.y(0))}
		for _, sample := range res.Samples {
			points = append(points, fmt.Sprintf("%.1f,%.1f", s.x(sample.At.Seconds()), s.y(float64(sample.Received[n]))))
			if sample.At >= res.Nodes[n].Time {
				break // the rest would be a level line
			}
		}
		fmt.Fprintf(out, `<polyline points="%s" fill="none" stroke="%s" stroke-opacity="0.7"/>`+"\n", strings.Join(points, " "), colour)
	}
	if res.Bound > 0 {
		x := s.x(res.Bound.Seconds())
		fmt.Fprintf(out, `<path d="M%.1f %dV%d" stroke="%s" stroke-dasharray="6 4"/><text x="%.1f" y="%d" font-size="10" fill="%s" text-anchor="middle">bound</text>`+"\n",
			x, top, top+plotHeight, colour, x, top-6, colour)
	}
	y := top + plotHeight/2 + 52*i
	fmt.Fprintf(out, `<path d="M%d %dh18" stroke="%s" stroke-width="2"/><text x="%d" y="%d">%s: %s</text><text x="%d" y="%d">origin sent %.2f ×</text>`+"\n",
		left+plotWidth+8, y, colour, left+plotWidth+32, y+4, res.Mode, res.Makespan().Round(100*time.Millisecond),
		left+plotWidth+32, y+20, res.Egress)
}

// stepFor returns a round distance between about six marks on an axis.
func stepFor(end float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(end/6)))
	for _, m := range []float64{1, 2, 5} {
		if end/(m*unit) <= 8 {
			return m * unit
		}
	}
	return 10 * unit
}

// rounded takes what adding up has left behind the digits that matter.
func rounded(v float64) float64 { return math.Round(v*1e6) / 1e6 }
