package sim

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Row is the outcome of one run. Times are in seconds, of virtual time unless
// they say otherwise, and sizes in bytes. What a run does not measure is zero.
type Row struct {
	Run       Run   `json:"run"`
	Peers     int   `json:"peers"`
	Seeds     int   `json:"seeds"`
	Bytes     int64 `json:"bytes"`
	PieceSize int64 `json:"pieceSize"`
	Group     int64 `json:"group,omitempty"` // bytes that travel, and are relayed, at a time

	// Completion is from joining to having everything; of lazy starts from the
	// first read to the last.
	Completion Spread `json:"completion"`
	// FluidBound is max(F/u_origin, F/d_peer, N·F/(u_origin+Σu_peer)), and
	// DiscreteBound K + ⌊log2 N⌋ runs, of those that the scheduler grants.
	FluidBound    float64 `json:"fluidBound,omitempty"`
	DiscreteBound float64 `json:"discreteBound,omitempty"`
	OverFluid     float64 `json:"overFluid,omitempty"`
	OverDiscrete  float64 `json:"overDiscrete,omitempty"`

	// Egress is what left the origin over the blob's size.
	Egress     float64 `json:"egress"`
	PeerBytes  int64   `json:"peerBytes"`
	HeldBytes  int64   `json:"heldBytes"` // by all nodes together, those that died included
	WasteBytes int64   `json:"wasteBytes"`
	// Busy counts transfers that met a source without a free slot, Revoked
	// those that were taken back, Twice pieces that came although they were
	// there, Refused wants.
	Busy    int `json:"busy"`
	Revoked int `json:"revoked"`
	Twice   int `json:"twice"`
	Refused int `json:"refused"`

	// Wait is how long reads took that needed something from elsewhere.
	Wait        Spread `json:"wait"`
	LocalReads  int    `json:"localReads,omitempty"`
	RemoteReads int    `json:"remoteReads,omitempty"`

	// Decisions are the granted transfers; InStep is the processor time the
	// scheduler's core took for them and everything else, Real how long the
	// whole simulation took.
	Decisions          int     `json:"decisions"`
	Steps              int     `json:"steps"`
	InStep             float64 `json:"inStep"`
	SlowestStep        float64 `json:"slowestStep"`
	DecisionsPerSecond float64 `json:"decisionsPerSecond"`
	Real               float64 `json:"real"`
	// MemoryFetching is what the scheduler needs per peer and blob when peers
	// have half of it, MemoryHolding when they have all.
	MemoryFetching float64 `json:"memoryFetching,omitempty"`
	MemoryHolding  float64 `json:"memoryHolding,omitempty"`
}

// Spread says how times are distributed.
type Spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func (s *Spread) set(times []time.Duration) {
	if len(times) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(times))
	at := func(q float64) float64 { return sorted[int(q*float64(len(sorted)-1))].Seconds() }
	*s = Spread{at(0.5), at(0.99), at(1)}
}

// row returns what a world knows of its outcome.
func (w *world) row(real time.Duration) Row {
	t := w.tally
	var held int64
	for _, n := range w.nodes {
		for lo := 0; n.have.count > 0 && lo < w.pieces; lo++ {
			if n.have.all(lo, lo+1) {
				held += w.length(lo, lo+1)
			}
		}
	}
	return Row{Bytes: w.size, PieceSize: w.pieceSize, Group: w.group, Egress: float64(t.OriginBytes) / float64(w.size), PeerBytes: t.PeerBytes, HeldBytes: held,
		WasteBytes: t.WasteBytes, Busy: t.Busy, Revoked: t.Revoked, Twice: t.Twice, Refused: t.Refused,
		Decisions: t.Grants, Steps: t.Steps, InStep: t.InStep.Seconds(), SlowestStep: t.Slowest.Seconds(),
		DecisionsPerSecond: float64(t.Grants) / t.InStep.Seconds(), Real: real.Seconds()}
}

// Report is what a simulation found out.
type Report struct {
	Seed uint64 `json:"seed"`
	Rows []Row  `json:"rows"`
}

// column is a column of a table.
type column struct {
	head string
	cell func(r Row) string
}

func seconds(s float64) string { return fmt.Sprintf("%.2f s", s) }

func number(f func(r Row) int) func(r Row) string {
	return func(r Row) string { return fmt.Sprint(f(r)) }
}

// columns returns what is worth telling of a run.
func columns(run Run) []column {
	out := []column{
		{"peers", number(func(r Row) int { return r.Peers })},
		{"MiB", func(r Row) string { return fmt.Sprint(r.Bytes >> 20) }},
	}
	spread := []column{
		{"p50", func(r Row) string { return seconds(r.Completion.P50) }},
		{"p99", func(r Row) string { return seconds(r.Completion.P99) }},
		{"last", func(r Row) string { return seconds(r.Completion.Max) }},
	}
	egress := column{"origin egress", func(r Row) string { return fmt.Sprintf("%.4f", r.Egress) }}
	bounds := []column{
		{"/ fluid", func(r Row) string { return fmt.Sprintf("%.3f", r.OverFluid) }},
		{"/ (K+log2 N)", func(r Row) string { return fmt.Sprintf("%.3f", r.OverDiscrete) }},
	}
	rest := []column{
		egress,
		{"taken back", number(func(r Row) int { return r.Revoked })},
		{"busy", number(func(r Row) int { return r.Busy })},
		{"decisions/s", func(r Row) string { return fmt.Sprintf("%.0f", r.DecisionsPerSecond) }},
		{"slowest step", func(r Row) string { return fmt.Sprintf("%.1f ms", 1000*r.SlowestStep) }},
		{"real", func(r Row) string { return fmt.Sprintf("%.1f s", r.Real) }},
	}
	switch run {
	case Cost:
		return append(out, rest[3], rest[4],
			column{"bytes per peer, half there", func(r Row) string { return fmt.Sprintf("%.0f", r.MemoryFetching) }},
			column{"all there", func(r Row) string { return fmt.Sprintf("%.0f", r.MemoryHolding) }}, rest[5])
	case Lazy:
		return append(append(out,
			column{"reads from elsewhere", number(func(r Row) int { return r.RemoteReads })},
			column{"wait p50", func(r Row) string { return fmt.Sprintf("%.1f ms", 1000*r.Wait.P50) }},
			column{"p99", func(r Row) string { return fmt.Sprintf("%.1f ms", 1000*r.Wait.P99) }},
			column{"max", func(r Row) string { return fmt.Sprintf("%.1f ms", 1000*r.Wait.Max) }}), rest...)
	}
	return append(append(append(out, spread...), bounds...), rest...)
}

// WriteTable writes a table per run for people to read.
func (r Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	for _, run := range Runs() {
		rows := slices.DeleteFunc(slices.Clone(r.Rows), func(row Row) bool { return row.Run != run })
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s: %s\n\n", run, run.about())
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		cols := columns(run)
		for i, c := range cols {
			fmt.Fprint(tw, c.head, end(i, len(cols)))
		}
		for _, row := range rows {
			for i, c := range cols {
				fmt.Fprint(tw, c.cell(row), end(i, len(cols)))
			}
		}
		if err := tw.Flush(); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// end returns what follows cell i of n.
func end(i, n int) string {
	if i == n-1 {
		return "\n"
	}
	return "\t"
}
