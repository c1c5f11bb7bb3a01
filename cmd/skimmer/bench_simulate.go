package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"skimmer/internal/lab"
	"skimmer/internal/schedule"
	"skimmer/internal/schedule/sim"
)

// simulateFlags are what "skimmer bench simulate" can be told.
type simulateFlags struct {
	runs, peers string
	seed        uint64
	slots       int
	width       int
}

func newBenchSimulateCommand(a *app) *cobra.Command {
	var f simulateFlags
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Run the scheduler's decisions for thousands of simulated peers",
		Long: `Run the code that decides who fetches what from whom in virtual time, in a
simulated network of peers with uplinks, downlinks and latencies. Nothing is
sent and no file is written. The same --seed gives the same network and the same
outcome; only the figures of real time differ.

  makespan  --peers fetch 1 GiB at once, every link as fast as the origin's
  churn     1,000 peers, 1 % of which die each second, and a seed dies midway
  kraken    2,600 peers fetch 3 GB, every link 300 MB/s
  lazy      --peers start one image: the same small reads, then the rest
  cost      the scheduler alone: decisions per second and memory, for --peers

Completion is compared with the fluid bound max(F/u_origin, F/d_peer,
N*F/(u_origin + sum of u_peer)) and with K + log2 N rounded down, in runs of what
the scheduler grants at a time. Origin egress is what left the origin over the
size of the blob.`,
		Example: `  skimmer bench simulate
  skimmer bench simulate --runs makespan,cost --peers 10,100,1000
  skimmer bench simulate --output json > simulation.json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.benchSimulate(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.runs, "runs", "makespan,churn,kraken,lazy,cost", "what is simulated")
	fl.StringVar(&f.peers, "peers", "", "how many peers makespan, lazy and cost have; each is one line of the table (default 10,100,1000,10000, of lazy 1000)")
	fl.Uint64Var(&f.seed, "seed", 1, "what chance begins with")
	fl.IntVar(&f.slots, "slots", 64, "how many transfers a peer serves at a time")
	fl.IntVar(&f.width, "width", 0, "how many transfers a peer has under way for one want (default: the scheduler's)")
	return cmd
}

// config turns flags into a simulation.
func (f simulateFlags) config() (sim.Config, error) {
	cfg := sim.Config{Seed: f.seed, UploadSlots: f.slots, Schedule: schedule.Options{Width: f.width}}
	if f.slots < 1 {
		return cfg, fmt.Errorf("read --slots: %d: must be at least 1", f.slots)
	}
	if f.width < 0 {
		return cfg, fmt.Errorf("read --width: %d: must not be negative", f.width)
	}
	var err error
	if cfg.Runs, err = sim.ParseRuns(f.runs); err != nil {
		return cfg, fmt.Errorf("read --runs: %w", err)
	}
	if f.peers == "" {
		return cfg, nil
	}
	for word := range strings.SplitSeq(f.peers, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 1 || n > 100_000 {
			return cfg, fmt.Errorf("read --peers: %q: must be numbers from 1 to 100000", word)
		}
		cfg.Peers = append(cfg.Peers, n)
	}
	return cfg, nil
}

func (a *app) benchSimulate(ctx context.Context, f simulateFlags) error {
	cfg, err := f.config()
	if err != nil {
		return err
	}
	steps := newStepPrinter(a.stderr)
	cfg.Report = func(step string) { steps.report(lab.Progress{Step: step}) }
	r, err := sim.Simulate(ctx, cfg)
	steps.end()
	if len(r.Rows) > 0 { // also where it was interrupted after minutes
		err = errors.Join(err, a.print(r, r.WriteTable))
	}
	return err
}
