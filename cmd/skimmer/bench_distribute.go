package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"skimmer/internal/config"
	"skimmer/internal/lab/coldstart"
	"skimmer/internal/lab/distribute"
)

// distributeFlags are what "skimmer bench distribute" can be told.
type distributeFlags struct {
	nodes, seeds           int
	size, rate, modes      string
	congestion             string
	copies                 bool
	skimmer, workDir, file string // file is the chart
}

func newBenchDistributeCommand(a *app) *cobra.Command {
	var f distributeFlags
	cmd := &cobra.Command{
		Use:   "distribute",
		Short: "Measure how long a file takes from one origin to many nodes",
		Long: `Make nodes out of network namespaces, each with a link of its own bandwidth to a
switch, and have all of them fetch the same file from an HTTP server at once,
onto the disk. Two ways take turns, on fresh nodes:

  direct  every node fetches all of it from the origin, writes it to a file and
          computes its checksum
  swarm   skimmer get --keep on every node, each with a skimmer peer of its own
          that has nothing, and one skimmer scheduler

A node is done when it has all of the file on disk and checked: in mode swarm in
its store, each piece compared with its digest. With --copies, skimmer get writes
it to a file beside the store as well, and both times are reported. What nodes
have is compared with the original after the measurement.

The fluid bound is how long it would take if bytes were a liquid: the largest of
F/u_origin, F/d_peer and N*F/(u_origin + sum of u_peer). Bytes that leave the
origin are counted by it; what links carry is read from the switch and includes
the headers of Ethernet, IP and TCP, about 5 %.

Nothing of it is visible outside or stays: namespaces have no names, files are in
a temporary directory, and both are gone when the command ends, which Ctrl-C
makes it do early. The directory needs room for the file twice per node.`,
		Example: `  skimmer bench distribute
  skimmer bench distribute --nodes 4 --size 256MiB --rate 500Mbit --modes swarm
  skimmer bench distribute --svg distribute.svg --output json > distribute.json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.benchDistribute(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.IntVar(&f.nodes, "nodes", 8, "how many nodes fetch the file")
	fl.IntVar(&f.seeds, "seeds", 0, "how many seeds there are beside them")
	fl.StringVar(&f.size, "size", "1GiB", "size of the file")
	fl.StringVar(&f.rate, "rate", "200Mbit", "bandwidth of every link in each direction; 0 is as fast as the machine is")
	fl.StringVar(&f.congestion, "congestion", "cubic", "how TCP finds its rate on the nodes: cubic is Linux's own default; empty is as on this machine")
	fl.BoolVar(&f.copies, "copies", false, "in mode swarm write the file beside the store too")
	fl.StringVar(&f.modes, "modes", "direct,swarm", "what is compared")
	fl.StringVar(&f.file, "svg", "", "file to draw a chart into: what each node had received as time went on")
	fl.StringVar(&f.skimmer, "skimmer", "", "program of mode swarm (default: this one)")
	fl.StringVar(&f.workDir, "work-dir", "", "where the nodes' directories are made (default: the system's for temporary files)")
	_ = cmd.MarkFlagFilename("svg", "svg")
	_ = cmd.MarkFlagFilename("skimmer")
	_ = cmd.MarkFlagDirname("work-dir")
	return cmd
}

// config turns flags into an experiment; its Dir is not set.
func (f distributeFlags) config() (distribute.Config, error) {
	cfg := distribute.Config{Nodes: f.nodes, Seeds: f.seeds, Copies: f.copies, Congestion: f.congestion}
	if f.nodes < 1 || f.nodes > 200 {
		return cfg, fmt.Errorf("read --nodes: %d: must be 1 to 200", f.nodes)
	}
	if f.seeds < 0 || f.seeds > 40 {
		return cfg, fmt.Errorf("read --seeds: %d: must be 0 to 40", f.seeds)
	}
	var size config.Bytes
	if err := size.UnmarshalText([]byte(f.size)); err != nil {
		return cfg, fmt.Errorf("read --size: %w", err)
	}
	if size < 1 {
		return cfg, fmt.Errorf("read --size: %s: must be more than 0", f.size)
	}
	cfg.Size = int64(size)
	path, err := coldstart.ParsePath("0s/" + f.rate)
	if err != nil {
		return cfg, fmt.Errorf("read --rate: %q is not a bandwidth of at least 100kbit, as 200Mbit or 1Gbit", f.rate)
	}
	cfg.Rate = path.Bits
	if cfg.Modes, err = distribute.ParseModes(f.modes); err != nil {
		return cfg, fmt.Errorf("read --modes: %w", err)
	}
	if f.skimmer == "" {
		if f.skimmer, err = os.Executable(); err != nil {
			return cfg, fmt.Errorf("find this program: %w", err)
		}
	}
	if f.skimmer, err = exec.LookPath(f.skimmer); err != nil {
		return cfg, fmt.Errorf("read --skimmer: %w", err)
	}
	// The nodes run it in their own directories.
	if cfg.Skimmer, err = filepath.Abs(f.skimmer); err != nil {
		return cfg, fmt.Errorf("read --skimmer: %w", err)
	}
	return cfg, nil
}

func (a *app) benchDistribute(ctx context.Context, f distributeFlags) error {
	cfg, err := f.config()
	if err != nil {
		return err
	}
	if err := distribute.NeedsRoot(); err != nil {
		return err
	}
	// Sockets are in it, whose paths have to be short.
	if cfg.Dir, err = os.MkdirTemp(f.workDir, "skd-"); err != nil {
		return fmt.Errorf("measure distribution: %w", err)
	}
	steps := newStepPrinter(a.stderr)
	cfg.Report, cfg.Logger = steps.report, a.logger()
	r, err := distribute.Run(ctx, cfg)
	steps.end()
	if len(r.Results) == 0 {
		return err
	}
	err = errors.Join(err, a.print(r, r.WriteTable))
	if f.file != "" {
		err = errors.Join(err, writeFile(f.file, r.WriteSVG))
	}
	return err
}
