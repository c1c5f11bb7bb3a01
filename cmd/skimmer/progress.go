package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"skimmer/internal/image/convert"
)

// lineEvery is how often a long transfer is mentioned where there is no
// terminal to draw on.
const lineEvery = 10 * time.Second

// progress shows how layers get on: a bar for each on a terminal, else a line
// now and then. A nil progress shows nothing.
type progress struct {
	// Constant after newProgress.
	out  io.Writer
	bars *mpb.Progress // nil where there is no terminal

	mu     sync.Mutex // guards what follows
	layers map[digest.Digest]*layerProgress
	ended  int
	last   time.Time // of the last line
}

// layerProgress is one layer of a progress.
type layerProgress struct {
	bar *mpb.Bar // nil where there is no terminal
	// state is a convert.State. The bar reads it while whoever holds the
	// progress's lock may be waiting for the bar.
	state atomic.Value
}

// newProgress shows progress on out until it is closed.
func newProgress(out io.Writer) *progress {
	p := &progress{out: out, layers: make(map[digest.Digest]*layerProgress), last: time.Now()}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(48))
	}
	return p
}

// report takes an event of a transfer; it is safe for concurrent use.
func (p *progress) report(e convert.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.layers[e.Blob.Digest]
	if l == nil {
		l = &layerProgress{}
		l.state.Store(convert.Waiting)
		p.layers[e.Blob.Digest] = l
		if p.bars != nil {
			l.bar = p.newBar(l, e.Blob.Digest)
		}
	}
	ends := (e.State == convert.Done || e.State == convert.Present) && l.state.Load() != e.State
	l.state.Store(e.State)
	if ends {
		p.ended++
	}
	if l.bar != nil {
		l.bar.SetTotal(max(e.Total, e.Done), false)
		l.bar.SetCurrent(e.Done)
		if ends {
			l.bar.SetTotal(e.Total, true)
		}
		return
	}
	switch {
	case ends:
		p.line("layer %s %s, %s (%d of %d)", shortDigest(e.Blob.Digest), e.State, formatBytes(e.Total), p.ended, len(p.layers))
	case time.Since(p.last) >= lineEvery && e.Total > 0:
		p.line("layer %s %s, %s", shortDigest(e.Blob.Digest), e.State, percent(e.Done, e.Total))
	}
}

func (p *progress) line(format string, args ...any) {
	p.last = time.Now()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// newBar adds the bar of l. A total of 0 keeps it from ending by itself when
// the total of one of its states is reached.
func (p *progress) newBar(l *layerProgress, d digest.Digest) *mpb.Bar {
	state := func(decor.Statistics) string { return string(l.state.Load().(convert.State)) }
	return p.bars.AddBar(0,
		mpb.PrependDecorators(
			decor.Name(shortDigest(d)+" "),
			decor.Any(state, decor.WC{W: len(convert.Converting) + 1, C: decor.DindentRight}),
		),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
			return fmt.Sprintf("%s / %s", formatBytes(s.Current), formatBytes(s.Total))
		}, decor.WC{W: 23})),
	)
}

// close leaves the bars as they are and waits until they are drawn.
func (p *progress) close() {
	if p == nil || p.bars == nil {
		return
	}
	p.mu.Lock()
	for _, l := range p.layers {
		l.bar.Abort(false) // does nothing to what has ended
	}
	p.mu.Unlock()
	p.bars.Wait()
}
