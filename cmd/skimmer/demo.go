package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"skimmer/internal/estargz"
	"skimmer/internal/image/convert"
	"skimmer/internal/lab"
	"skimmer/internal/peer"
)

// demoFlags are what "skimmer demo" can be told.
type demoFlags struct {
	image, packageCache string
	keep                bool
	latency             time.Duration
	rate                int64 // MiB/s
}

func newDemoCommand(a *app) *cobra.Command {
	var f demoFlags
	var names []string
	var about strings.Builder
	for _, s := range lab.Specs() {
		names = append(names, s.Name)
		fmt.Fprintf(&about, "  %-8s  %s\n", s.Name, s.About)
	}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show all of it on this machine: build, convert, push, mount lazily, run",
		Long: `Build a real image out of Debian packages, convert it to eStargz, push it to a
registry on this machine, mount it lazily and run programs in it; then the same
again with everything cached, and by way of a full pull for comparison. What was
fetched is counted at the registry.

Packages come from this machine's apt sources and are kept for the next time.
Everything else is in a temporary directory and is gone when the command ends.

Images:
` + strings.TrimSuffix(about.String(), "\n"),
		Example: `  skimmer demo
  skimmer demo --image node --latency 20ms --rate 12
  skimmer demo --keep
  skimmer demo --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.image, "image", names[0], "image to build: "+strings.Join(names, ", "))
	fl.StringVar(&f.packageCache, "package-cache", "", "directory that keeps packages and built images (default: skimmer/packages in the user's cache directory)")
	fl.BoolVar(&f.keep, "keep", false, "leave registry and mount in place until interrupted")
	fl.DurationVar(&f.latency, "latency", 0, "delay every request to the registry, as if it were far away")
	fl.Int64Var(&f.rate, "rate", 0, "limit every connection to the registry, in MiB per second")
	_ = cmd.RegisterFlagCompletionFunc("image", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("package-cache")
	return cmd
}

func (a *app) demo(ctx context.Context, f demoFlags) (err error) {
	spec, ok := lab.SpecNamed(f.image)
	switch {
	case !ok:
		return fmt.Errorf("run demo: there is no image called %q; see skimmer demo --help", f.image)
	case f.latency < 0 || f.rate < 0:
		return errors.New("run demo: --latency and --rate cannot be negative")
	case os.Geteuid() != 0:
		return errors.New("run demo: mounting and chroot need root: sudo skimmer demo")
	}
	dir, err := os.MkdirTemp("", "skimmer-demo-")
	if err != nil {
		return fmt.Errorf("run demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	node := &demoNode{app: a, dataDir: filepath.Join(dir, "data"), socket: filepath.Join(dir, "socket")}
	defer func() { err = errors.Join(err, node.close()) }()
	steps := newStepPrinter(a.stderr)
	cfg := lab.DemoConfig{
		Dir:          dir,
		Spec:         spec,
		PackageCache: f.packageCache,
		Shape:        lab.Shape{Latency: f.latency, Rate: f.rate << 20},
		Publisher:    demoPublisher{tempDir: dir},
		Mounter:      node,
		Report:       steps.report,
		Logger:       a.logger(),
	}
	printed := false
	if f.keep {
		cfg.Keep = func(ctx context.Context, r lab.DemoResult) error {
			printed = true
			return a.keepDemo(ctx, r, node.socket)
		}
	}
	r, err := lab.Demo(ctx, cfg)
	steps.end()
	if err != nil || printed {
		return err
	}
	return a.printDemo(r)
}

// keepDemo prints the result and how to look around, and waits.
func (a *app) keepDemo(ctx context.Context, r lab.DemoResult, socket string) error {
	if err := a.printDemo(r); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, `
All of it stays as it is until you press Ctrl-C. Look around in another terminal:

  chroot %[1]s %[2]s
  ls -l %[1]s/usr/bin
  skimmer status --socket %[3]s
  skimmer image inspect %[4]s
`, r.Mount, shellWords(r.Runs[0].Steps[1].Args), socket, r.Image.Reference)
	<-ctx.Done()
	return nil
}

func (a *app) printDemo(r lab.DemoResult) error {
	return a.print(r, func(w io.Writer) error { return demoTable(w, r) })
}

var runTitles = map[string]string{
	lab.RunCold: "mounted lazily, nothing here yet",
	lab.RunWarm: "mounted lazily again, everything cached",
	lab.RunPull: "without lazy mounting: fetch all layers, unpack them with umoci, run",
}

// demoTable prints the figures: per run its steps, and when the program spoke.
func demoTable(w io.Writer, r lab.DemoResult) error {
	var table strings.Builder
	tw := tabwriter.NewWriter(&table, 0, 0, 3, ' ', tabwriter.AlignRight)
	row := func(name string, cells ...string) {
		// Padded here, because names are read from the left and numbers are not.
		fmt.Fprintf(tw, "%-40s\t%s\t\n", shorten(name, 40), strings.Join(cells, "\t"))
	}
	row("", "took", "first output after", "fetched", "of the image", "requests")
	for _, run := range r.Runs {
		for _, s := range run.Steps {
			name, first := s.Name, ""
			if s.FirstOutput > 0 {
				name, first = shellWords(s.Args), millis(s.FirstOutput)
			}
			row(name, millis(s.Took), first, formatBytes(s.Bytes), percent(s.Bytes, r.Image.Size), strconv.FormatInt(s.Requests, 10))
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	lines := strings.SplitAfter(table.String(), "\n")

	var out strings.Builder
	fmt.Fprintf(&out, "\n%s: %s in the registry (%s unpacked), %d layers, served by %s%s\n\n%s", r.Image.Name,
		formatBytes(r.Image.Size), formatBytes(r.Image.TarSize), r.Image.Layers, r.Registry, describeShape(r), lines[0])
	lines = lines[1:]
	for _, run := range r.Runs {
		fmt.Fprintf(&out, "%s\n%s", runTitles[run.Name], strings.Join(lines[:len(run.Steps)], ""))
		lines = lines[len(run.Steps):]
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&out, "\n%s\n", note)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func describeShape(r lab.DemoResult) string {
	var s string
	if r.Latency > 0 {
		s += fmt.Sprintf(", %v per request", r.Latency)
	}
	if r.Rate > 0 {
		s += fmt.Sprintf(", %s/s per connection", formatBytes(r.Rate))
	}
	return s
}

// shellWords writes a command as one would type it.
func shellWords(args []string) string {
	words := make([]string, len(args))
	for i, arg := range args {
		words[i] = arg
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"$;&|<>()*?[]\\`") {
			words[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n-1] + "…"
}

// demoPublisher is the lab's Publisher over package convert.
type demoPublisher struct {
	tempDir   string
	chunkSize int // bytes; 0 is the converter's default
}

func (p demoPublisher) Publish(ctx context.Context, layout, tag, ref string, report func(lab.Progress)) (int64, error) {
	src, err := convert.ParseLayout(layout + ":" + tag)
	if err != nil {
		return 0, err
	}
	dst, err := convert.ParseRegistry(ref)
	if err != nil {
		return 0, err
	}
	// Converting is what takes time; a layer that is being pushed is done.
	var mu sync.Mutex
	sizes, done := map[digest.Digest]int64{}, map[digest.Digest]float64{}
	opts := convert.ConvertOptions{Options: convert.Options{TempDir: p.tempDir, Report: func(e convert.Event) {
		mu.Lock()
		defer mu.Unlock()
		sizes[e.Blob.Digest] = e.Blob.Size
		switch e.State {
		case convert.Converting:
			if e.Total > 0 {
				done[e.Blob.Digest] = float64(e.Done) / float64(e.Total)
			}
		case convert.Pushing, convert.Done, convert.Present:
			done[e.Blob.Digest] = 1
		}
		var part, all float64
		for d, size := range sizes {
			all += float64(size)
			part += float64(size) * done[d]
		}
		report(lab.Progress{Step: "convert and push", Fraction: part / max(all, 1)})
	}}, Layer: estargz.BuildOptions{ChunkSize: p.chunkSize}}
	r, err := convert.Convert(ctx, src, dst, opts)
	if err != nil {
		return 0, err
	}
	return r.Size, nil
}

func (p demoPublisher) Pull(ctx context.Context, ref, layout, tag string) error {
	src, err := convert.ParseRegistry(ref)
	if err != nil {
		return err
	}
	dst, err := convert.ParseLayout(layout + ":" + tag)
	if err != nil {
		return err
	}
	_, err = convert.Copy(ctx, src, dst, convert.Options{TempDir: p.tempDir})
	return err
}

// demoNode is the lab's Mounter: a peer of its own in this process.
type demoNode struct {
	app             *app
	dataDir, socket string

	peer    *peer.Peer // nil when there is none
	stop    context.CancelFunc
	serving sync.WaitGroup
	err     error // what serving ended with; read after serving
}

// Mount implements lab.Mounter.
func (n *demoNode) Mount(ctx context.Context, ref, dir string) error {
	_, err := n.peer.Mount(ctx, ref, dir)
	return err
}

// Unmount implements lab.Mounter.
func (n *demoNode) Unmount(ctx context.Context, dir string) error {
	return n.peer.Unmount(ctx, dir, false)
}

// Forget implements lab.Mounter: it replaces the peer by one with an empty
// data directory.
func (n *demoNode) Forget(ctx context.Context) error {
	if err := errors.Join(n.close(), os.RemoveAll(n.dataDir)); err != nil {
		return err
	}
	p, err := peer.New(peer.Config{DataDir: n.dataDir, Socket: n.socket, Logger: n.app.logger()})
	if err != nil {
		return err
	}
	n.peer = p
	serve, stop := context.WithCancel(ctx)
	n.stop = stop
	ready := make(chan struct{})
	ended := make(chan struct{})
	n.serving.Go(func() {
		defer close(ended)
		n.err = p.Run(serve, func() { close(ready) })
	})
	select {
	case <-ready:
		return nil
	case <-ended:
		return n.close()
	}
}

// close ends the peer, if there is one.
func (n *demoNode) close() error {
	if n.peer == nil {
		return nil
	}
	n.stop()
	n.serving.Wait()
	err := errors.Join(n.err, n.peer.Close())
	n.peer = nil
	return err
}

// stepPrinter shows what is being done and how long it took: a line per step,
// which on a terminal shows progress until the step has ended.
type stepPrinter struct {
	w        io.Writer
	terminal bool

	mu      sync.Mutex
	step    string    // mu guards
	started time.Time // mu guards
	shown   time.Time // mu guards: when the line was last redrawn
}

func newStepPrinter(w io.Writer) *stepPrinter {
	f, ok := w.(*os.File)
	return &stepPrinter{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (s *stepPrinter) report(p lab.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if p.Step != s.step {
		s.finish(now)
		s.step, s.started = p.Step, now
	} else if now.Sub(s.shown) < 100*time.Millisecond {
		return
	}
	if !s.terminal || p.Step == "" {
		return
	}
	s.shown = now
	line := p.Step + " …"
	if p.Fraction >= 0 {
		line += fmt.Sprintf(" %.0f %%", 100*p.Fraction)
	}
	fmt.Fprintf(s.w, "\r\x1b[K%s", line)
}

// finish writes how long the step took.
func (s *stepPrinter) finish(now time.Time) {
	if s.step == "" {
		return
	}
	clear := ""
	if s.terminal {
		clear = "\r\x1b[K"
	}
	fmt.Fprintf(s.w, "%s%-72s %8s\n", clear, s.step, millis(now.Sub(s.started)))
	s.step = ""
}

func (s *stepPrinter) end() { s.report(lab.Progress{}) }
