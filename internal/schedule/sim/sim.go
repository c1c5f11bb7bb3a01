// Package sim runs the scheduler's core in virtual time: a network of
// thousands of peers in one process, without goroutines, clocks or sockets.
// The same seed gives the same events in the same order.
//
// What is real is the [schedule.Tracker] with everything it decides. What is
// modelled:
//
//   - A node has an uplink and a downlink with a rate each, and upload slots.
//     Pieces travel in groups of 256 KiB, or twice that. An uplink sends one group at a time;
//     its transfers take turns, those to a receiver whose downlink has 1 MiB of
//     the transfer queued wait. A downlink takes what arrives in order. So
//     neither is ever idle while there is something to carry, and shares are
//     fair as TCP's roughly are.
//   - A node relays what it is receiving: a group can go on as soon as it is
//     there and its digests are known.
//   - Messages to and from the scheduler take one latency, requests and bytes
//     another one.
//   - Peers do what they are told, report what they have read from the origin
//     by the group and what they have from others by the transfer, and every
//     half second at least.
//   - The origin is an uplink, whose bytes are counted as they leave it.
//
// Nothing is modelled of processors, disks, loss or the switch in between.
package sim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// Run names an experiment.
type Run string

// The experiments.
const (
	// Makespan has N peers fetch 1 GiB at once; every link and the origin's are
	// equally fast.
	Makespan Run = "makespan"
	// Churn has 1,000 peers fetch 1 GiB while 1 % of them die each second, with
	// others coming in their place, and one of two seeds dies midway.
	Churn Run = "churn"
	// Kraken has 2,600 peers fetch 3 GB, every link 300 MB/s.
	Kraken Run = "kraken"
	// Lazy has N peers start one image of 512 MiB.
	Lazy Run = "lazy"
	// Cost measures the scheduler's core alone.
	Cost Run = "cost"
)

// Runs returns all experiments.
func Runs() []Run { return []Run{Makespan, Churn, Kraken, Lazy, Cost} }

// ParseRuns reads a list of names of experiments, separated by commas.
func ParseRuns(list string) ([]Run, error) {
	var out []Run
	for name := range strings.SplitSeq(list, ",") {
		run := Run(strings.TrimSpace(name))
		if run.about() == "" {
			return nil, blob.Errorf(blob.Invalid, "read list of simulations: there is no %q, but %v", run, Runs())
		}
		out = append(out, run)
	}
	return out, nil
}

// about says what a run does, or nothing if there is no such run.
func (r Run) about() string {
	switch r {
	case Makespan:
		return "N peers fetch 1 GiB at once, all links 1 Gbit/s, no seeds"
	case Churn:
		return "all links 200 Mbit/s, 1 % of the peers die and are replaced each second, one of two seeds dies after 20 s"
	case Kraken:
		return "all links 300 MB/s, five seeds; bound 10 s, Kraken's own figure 18 s for the 99th percentile"
	case Lazy:
		return "peers start within 10 s and read 300 ranges of 16 KiB to 1 MiB, then the rest; all links 1 Gbit/s, two seeds, origin 20 ms away"
	case Cost:
		return "the scheduler's core alone; decisions are granted transfers"
	}
	return ""
}

// step names a run of so many peers, 0 for as many as it always has.
func (r Run) step(peers int) string {
	if peers == 0 {
		return "simulate " + string(r)
	}
	return fmt.Sprintf("simulate %s with %d peers", r, peers)
}

// Config says what to simulate.
type Config struct {
	// Runs are the experiments; none means all.
	Runs []Run
	// Peers are the sizes of Makespan, Lazy and Cost; none means 10, 100, 1,000
	// and 10,000, and 1,000 of Lazy.
	Peers []int
	// Seed is what chance begins with.
	Seed uint64
	// UploadSlots is how many transfers a peer serves at a time; default 64,
	// which is a peer's default.
	UploadSlots int
	// Group is how many bytes travel, and are relayed, at a time; default 256
	// KiB, and 512 KiB for more than 4,000 peers.
	Group int64
	// Schedule are the scheduler's options.
	Schedule schedule.Options
	// Report, unless nil, is told what is done next.
	Report func(step string)
}

// Simulate runs the experiments, one after the other. If one fails, or ctx
// ends, the report has what was measured until then. Ten thousand peers take
// minutes.
func Simulate(ctx context.Context, cfg Config) (Report, error) {
	if len(cfg.Runs) == 0 {
		cfg.Runs = Runs()
	}
	if cfg.UploadSlots <= 0 {
		cfg.UploadSlots = 64
	}
	report := Report{Seed: cfg.Seed}
	for _, run := range cfg.Runs {
		for _, peers := range cfg.sizes(run) {
			if cfg.Report != nil {
				cfg.Report(run.step(peers))
			}
			row, err := cfg.one(ctx, run, peers)
			if err != nil {
				return report, fmt.Errorf("%s: %w", run, err)
			}
			row.Run = run
			report.Rows = append(report.Rows, row)
		}
	}
	return report, nil
}

// sizes returns how many peers an experiment has, each time; 0 stands for as
// many as it always has.
func (c Config) sizes(run Run) []int {
	switch {
	case run != Makespan && run != Lazy && run != Cost:
		return []int{0}
	case len(c.Peers) > 0:
		return c.Peers
	case run == Lazy:
		return []int{1000}
	}
	return []int{10, 100, 1000, 10000}
}

// gigabit is 1 Gbit/s in bytes per second.
const gigabit = 125e6

func (c Config) one(ctx context.Context, run Run, peers int) (Row, error) {
	s := settings{seed: c.Seed, size: 1 << 30, group: c.Group, schedule: c.Schedule,
		latency: 500 * time.Microsecond, originLatency: 500 * time.Microsecond, originRate: gigabit, limit: 5 * time.Minute}
	switch {
	case s.group > 0:
	case peers > 4000: // half as many events
		s.group = 512 << 10
	default:
		s.group = 256 << 10
	}
	l := link{gigabit, gigabit, c.UploadSlots}
	switch run {
	case Makespan:
		return runBulk(ctx, bulk{settings: s, peers: peers, link: l})
	case Churn:
		s.originRate, l.up, l.down = gigabit/5, gigabit/5, gigabit/5
		return runBulk(ctx, bulk{settings: s, peers: 1000, seeds: 2, link: l, churn: 0.01, seedDies: 20 * time.Second})
	case Kraken:
		s.size, s.originRate, l.up, l.down = 3e9, 300e6, 300e6, 300e6
		return runBulk(ctx, bulk{settings: s, peers: 2600, seeds: 5, link: l})
	case Lazy:
		s.size, s.originLatency = 512<<20, 10*time.Millisecond
		return runLazy(ctx, lazy{settings: s, peers: peers, seeds: 2, link: l, reads: 300, spread: 10 * time.Second, think: 20 * time.Millisecond})
	case Cost:
		return runCost(ctx, peers, s)
	}
	return Row{}, blob.Errorf(blob.Invalid, "simulate %q: there is no such run", run)
}
