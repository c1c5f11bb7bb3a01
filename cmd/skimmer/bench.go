package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"skimmer/internal/config"
	"skimmer/internal/estargz"
	"skimmer/internal/lab"
	"skimmer/internal/lab/coldstart"
)

func newBenchCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "Repeat the experiments behind docs/benchmarks.md",
		Example: "  skimmer bench coldstart --modes skimmer --images python --runs 1",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBenchColdstartCommand(a), newBenchDistributeCommand(a), newBenchSimulateCommand(a))
	return cmd
}

// coldstartFlags are what "skimmer bench coldstart" can be told.
type coldstartFlags struct {
	images, shapes, modes          string
	runs                           int
	peerShape, firstNode           string
	imports, whole, atOnce, mirror bool
	unpack                         bool
	page, chart                    string // files
	baseline, skimmer, containerd  string
	packageCache, registryDir      string
	chunkSize                      config.Bytes
}

func newBenchColdstartCommand(a *app) *cobra.Command {
	var f coldstartFlags
	cmd := &cobra.Command{
		Use:   "coldstart",
		Short: "Measure how long a container takes to start from an image that is not here",
		Long: `Build real images out of Debian packages, convert them to eStargz, push them to a
registry on this machine behind a path with a round trip and a bandwidth, and
start them with a containerd of its own: pull, create, and run until the program
has ended. Every start is on a fresh node, with empty directories and nothing in
the page cache but the shim and runc, which have just started the sandbox of the
image's pod on a real one; and then again with everything there. These ways of
getting at the image take turns:

  overlayfs        containerd's own: fetch everything, unpack it, start
  stargz           the stock stargz snapshotter (make bench-baseline builds it)
  skimmer          this program, as "skimmer peer" in a process of its own, on
                   the first node of its cluster to start the image; containerd
                   asks its mirror before the registry, as "skimmer install
                   containerd --registry" sets it up, unless --mirror=false
  skimmer-profile  the same with the profile of an earlier start elsewhere
  skimmer-peers    the same in a cluster, with a scheduler, where another node
                   has started the image before and is still there

Others are measured if they are asked for: the first two with this program's
registry mirror between them and the registry, on a node that has nothing
(overlayfs-mirror, stargz-mirror), and on one where only containerd has lost the
image (overlayfs-mirror-warm). containerd is set up there as "skimmer install
containerd --registry" does it, and has skimmer decompress layers, unless
--unpack=false.

Requests and bytes are counted at the registry, bytes from other nodes by the
node. Before the cached start, skimmer's node completes the image, for which the
path is as fast as the machine; stargz is not waited for. The cached start asks
the registry for the image's name once more. The
bound of a first start is its own cached start and what it fetched divided by
the bandwidth. Modes are compared only where image, program, output, path and
number of runs are the same. It takes long: a full pull of one image through
100Mbit is about half a minute. The page cache of the whole machine is dropped
before each first start.

Packages come from this machine's apt sources and are kept for the next time.
Everything else is in a temporary directory and is gone when the command ends,
which Ctrl-C makes it do early.`,
		Example: `  skimmer bench coldstart --baseline bin/stargz-snapshotter
  skimmer bench coldstart --modes skimmer --images python --runs 1
  skimmer bench coldstart --images python,node,jdk,science --html coldstart.html
  skimmer bench coldstart --shapes 5ms/200Mbit,50ms/1Gbit --output json > coldstart.json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchColdstart(cmd.Context(), f, commandLine(cmd))
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.images, "images", "python,node,jdk", "images to start, of those that skimmer demo --help lists")
	fl.BoolVar(&f.imports, "imports", true, "with the image python, also start a program that imports 300 modules")
	fl.BoolVar(&f.whole, "read-through", true, "also read the whole of the first image in a container, with overlayfs and skimmer")
	fl.BoolVar(&f.atOnce, "at-once", false, "have skimmer's cached starts follow first ones at once, while the node may be completing the image")
	fl.BoolVar(&f.mirror, "mirror", true, "in skimmer's modes, have containerd ask the registry through the node's mirror")
	fl.BoolVar(&f.unpack, "unpack", true, "where containerd has the mirror, have it decompress layers with skimmer")
	fl.IntVar(&f.runs, "runs", 5, "how often everything is measured")
	fl.StringVar(&f.shapes, "shapes", "5ms/200Mbit,20ms/100Mbit", "paths to the registry: round trip and bandwidth of all connections together; none is this machine's")
	fl.StringVar(&f.peerShape, "peer-shape", "500us/1Gbit", "path between nodes of one cluster, and to their scheduler")
	fl.StringVar(&f.firstNode, "first-node", string(coldstart.Complete), "what the other node has when mode skimmer-peers starts: complete, or started (what its own start read)")
	fl.StringVar(&f.modes, "modes", "", "what is compared: overlayfs, stargz, skimmer, skimmer-profile, skimmer-peers, overlayfs-mirror, overlayfs-mirror-warm, stargz-mirror (default: the first five; stargz only with --baseline)")
	fl.StringVar(&f.page, "html", "", "file to write a report with charts into")
	fl.StringVar(&f.chart, "svg", "", "file to draw the chart alone into")
	fl.StringVar(&f.baseline, "baseline", "", "stock snapshotter that make bench-baseline has built")
	fl.StringVar(&f.skimmer, "skimmer", "", "program of mode skimmer (default: this one)")
	fl.StringVar(&f.containerd, "containerd", "", "containerd to start; its folder's shim is used too (default: the one in PATH)")
	fl.StringVar(&f.packageCache, "package-cache", "", "directory that keeps packages and built images (default: skimmer/packages in the user's cache directory)")
	fl.StringVar(&f.registryDir, "registry-dir", "", "directory that keeps converted images for the next time; empty it when the converter has changed")
	fl.TextVar(&f.chunkSize, "chunk-size", config.Bytes(estargz.DefaultChunkSize), "convert images with chunks of `SIZE`, see skimmer image convert --help; stock converters take 4MiB")
	_ = cmd.MarkFlagFilename("html", "html")
	_ = cmd.MarkFlagFilename("svg", "svg")
	_ = cmd.MarkFlagFilename("baseline")
	_ = cmd.MarkFlagFilename("skimmer")
	_ = cmd.MarkFlagFilename("containerd")
	_ = cmd.MarkFlagDirname("package-cache")
	_ = cmd.MarkFlagDirname("registry-dir")
	return cmd
}

// config turns flags into an experiment; its Dir is not set.
func (f coldstartFlags) config() (coldstart.Config, error) {
	cfg := coldstart.Config{
		Imports: f.imports, Whole: f.whole, AtOnce: f.atOnce, Mirror: f.mirror, Unpack: f.unpack, Runs: f.runs, FirstNode: coldstart.FirstNode(f.firstNode),
		PackageCache: f.packageCache, RegistryDir: f.registryDir, ChunkSize: int64(f.chunkSize),
	}
	if f.chunkSize < 1 || f.chunkSize > estargz.MaxBuildChunkSize {
		return cfg, fmt.Errorf("read --chunk-size: %v: must be between 1 and %v", f.chunkSize, config.Bytes(estargz.MaxBuildChunkSize))
	}
	for name := range strings.SplitSeq(f.images, ",") {
		spec, ok := lab.SpecNamed(strings.TrimSpace(name))
		if !ok {
			return cfg, fmt.Errorf("read --images: there is no image called %q; see skimmer demo --help", name)
		}
		cfg.Images = append(cfg.Images, spec)
	}
	var err error
	if cfg.Paths, err = coldstart.ParsePaths(f.shapes); err != nil {
		return cfg, err
	}
	if cfg.PeerPath, err = coldstart.ParsePath(f.peerShape); err != nil {
		return cfg, fmt.Errorf("read --peer-shape: %w", err)
	}
	if cfg.FirstNode != coldstart.Complete && cfg.FirstNode != coldstart.Started {
		return cfg, fmt.Errorf("read --first-node: %q: must be %s or %s", f.firstNode, coldstart.Complete, coldstart.Started)
	}
	if cfg.Modes, err = coldstart.ParseModes(f.modes); f.modes != "" && err != nil {
		return cfg, err
	}
	if f.modes == "" {
		cfg.Modes = coldstart.DefaultModes()
		if f.baseline == "" {
			cfg.Modes = slices.DeleteFunc(cfg.Modes, func(m coldstart.Mode) bool { return m == coldstart.Stargz })
		}
	}
	if f.runs < 1 {
		return cfg, fmt.Errorf("read --runs: %d: must be at least 1", f.runs)
	}
	return cfg, f.programs(&cfg)
}

// programs finds the programs that the modes need.
func (f coldstartFlags) programs(cfg *coldstart.Config) error {
	this, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if f.skimmer == "" {
		f.skimmer = this
	}
	if f.containerd == "" {
		f.containerd = "containerd"
	}
	for _, p := range []struct {
		flag, name string
		to         *string
	}{
		{"--baseline", f.baseline, &cfg.Stargz}, {"--skimmer", f.skimmer, &cfg.Skimmer}, {"--containerd", f.containerd, &cfg.Containerd},
	} {
		if p.name == "" {
			continue
		}
		path, err := exec.LookPath(p.name)
		if err != nil {
			return fmt.Errorf("read %s: %w", p.flag, err)
		}
		if *p.to, err = filepath.Abs(path); err != nil {
			return fmt.Errorf("read %s: %w", p.flag, err)
		}
	}
	return nil
}

// commandLine returns the command that was given, without where things are.
func commandLine(cmd *cobra.Command) string {
	words := []string{cmd.CommandPath()}
	if cmd.Flags().Changed("baseline") {
		words = append(words, "--baseline bin/stargz-snapshotter")
	}
	for _, name := range []string{"images", "chunk-size", "imports", "read-through", "at-once", "mirror", "unpack", "runs", "shapes", "peer-shape", "first-node", "modes"} {
		if f := cmd.Flags().Lookup(name); f.Changed {
			words = append(words, "--"+name+"="+f.Value.String())
		}
	}
	return strings.Join(words, " ")
}

func (a *app) benchColdstart(ctx context.Context, f coldstartFlags, command string) (err error) {
	cfg, err := f.config()
	if err != nil {
		return err
	}
	if err := coldstart.NeedsRoot(); err != nil {
		return err
	}
	// Sockets are in it, whose paths have to be short.
	if cfg.Dir, err = os.MkdirTemp("", "skimmer-bench-"); err != nil {
		return fmt.Errorf("measure cold starts: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	steps := newStepPrinter(a.stderr)
	cfg.Publish = demoPublisher{tempDir: cfg.Dir, chunkSize: int(cfg.ChunkSize)}.Publish
	cfg.Report, cfg.Logger, cfg.Command = steps.report, a.logger(), command
	r, err := coldstart.Run(ctx, cfg)
	steps.end()
	if len(r.Samples) > 0 { // also where it was interrupted after hours
		err = errors.Join(err, a.print(r, r.WriteTable))
		if f.page != "" {
			err = errors.Join(err, writeFile(f.page, r.WriteHTML))
		}
		if f.chart != "" {
			err = errors.Join(err, writeFile(f.chart, r.WriteSVG))
		}
	}
	return err
}
