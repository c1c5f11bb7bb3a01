package coldstart

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skimmer/internal/lab"
)

// startTimeout is how long one start may take.
const startTimeout = 10 * time.Minute

// Run builds and publishes the images, and then, Runs times, starts each case
// over each path in each mode on a fresh node: once with nothing there and once
// more in a new container. It needs root, runc, and a machine with nothing else
// to do. When it returns, nothing that it started is left, however it ended. The
// report beside an error has what was measured until then.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.check(); err != nil {
		return Report{}, fmt.Errorf("measure cold starts: %w", err)
	}
	if cfg.Report == nil {
		cfg.Report = func(lab.Progress) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &experiment{Config: cfg, images: map[string]Image{}, profiles: map[string]string{}}
	e.report.Command, e.report.PeerPath, e.report.FirstNode = cfg.Command, cfg.PeerPath, cfg.FirstNode
	e.report.AtOnce, e.report.Mirror, e.report.Unpack = cfg.AtOnce, cfg.Mirror, cfg.Unpack
	err := e.run(ctx)
	removeTraces()
	if e.registry != nil {
		err = errors.Join(err, e.registry.Close())
	}
	e.step("")
	e.report.Results = summarize(e.report.Samples, cfg.PeerPath)
	if err != nil {
		return e.report, fmt.Errorf("measure cold starts: %w", err)
	}
	return e.report, nil
}

// experiment is an experiment under way.
type experiment struct {
	Config
	registry *lab.Registry
	images   map[string]Image  // by the name of the spec
	profiles map[string]string // folders of recorded ones, by the name of the case
	nodes    int               // how many were started
	report   Report
}

// newDir returns a folder for one more node.
func (e *experiment) newDir() string {
	e.nodes++
	return filepath.Join(e.Dir, fmt.Sprintf("n%d", e.nodes))
}

// containerID returns a name for a container of the node that was made last.
func (e *experiment) containerID(what string) string {
	return fmt.Sprintf("bench-%d-%d-%s", os.Getpid(), e.nodes, what)
}

func (e *experiment) step(name string) { e.Report(lab.Progress{Step: name, Fraction: -1}) }

func (e *experiment) run(ctx context.Context) error {
	if err := e.describe(ctx); err != nil {
		return err
	}
	dir := e.RegistryDir
	if dir == "" {
		dir = filepath.Join(e.Dir, "registry")
	}
	var err error
	if e.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{Dir: dir, Logger: e.Logger}); err != nil {
		return err
	}
	e.report.Machine.Registry = filepath.Base(e.registry.Program())
	for _, spec := range e.Images {
		img, err := e.publish(ctx, spec)
		if err != nil {
			return err
		}
		e.images[spec.Name] = img
		e.report.Images = append(e.report.Images, img)
	}
	for run := range e.Runs {
		for _, path := range e.Paths {
			for _, c := range e.cases() {
				if err := e.compare(ctx, run, path, c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// describe notes what everything is measured on.
func (e *experiment) describe(ctx context.Context) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("find the kernel's version: %w", err)
	}
	version, err := lab.ContainerdVersion(ctx, e.Containerd)
	if err != nil {
		return err
	}
	e.report.Machine = Machine{Kernel: unix.ByteSliceToString(uts.Release[:]), CPUs: runtime.NumCPU(), Containerd: version, Congestion: lab.CongestionControl()}
	probe := filepath.Join(e.Dir, "disk")
	if err := errors.Join(newDisk(ctx, probe), removeDisk(probe)); err != nil {
		e.Logger.Warn("nodes share the disk: what one leaves behind may cost the next", "error", err)
		e.sharedDisk, e.report.Machine.SharedDisk = true, true
	}
	return ctx.Err()
}

// compare measures one case in all modes, a different one first each time.
func (e *experiment) compare(ctx context.Context, run int, path Path, c testCase) error {
	link, err := newLink(ctx, e.registry.Host(), path)
	if err != nil {
		return fmt.Errorf("make a path to the registry: %w", err)
	}
	defer link.close()
	modes := c.modes(e.Modes)
	for i := range modes {
		mode := modes[(run+i)%len(modes)]
		title := fmt.Sprintf("run %d of %d, %v: %s with %s", run+1, e.Runs, path, c.name, mode)
		if err := e.measure(ctx, link, mode, c, title); err != nil {
			return fmt.Errorf("%s with %s over %v: %w", c.name, mode, path, err)
		}
	}
	return nil
}

// measure starts a case twice on a fresh node, and calls that title.
func (e *experiment) measure(ctx context.Context, l *link, mode Mode, c testCase, title string) (err error) {
	p, err := e.prepare(ctx, mode, c)
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return err
	}
	e.step(title)
	p.dir, p.registry = e.newDir(), l.host()
	n, err := newNode(ctx, e.Config, p.nodeConfig)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if p.member != nil {
		if err := n.await(ctx, joinLimit, "has joined", status.joined); err != nil {
			return err
		}
	}
	if err := dropCaches(e.Logger); err != nil {
		return err
	}
	if err := e.runtimeReads(); err != nil {
		return err
	}
	// The registry is a machine of its own that was not just started.
	if err := e.registryReads(ctx, e.images[c.image.Name]); err != nil {
		return err
	}
	if mode == OverlayfsWarm {
		if err := e.warm(ctx, n, l.host()+"/"+e.images[c.image.Name].Repository, c); err != nil {
			return err
		}
	}
	for _, kind := range []StartKind{First, Again} {
		s, err := e.sample(ctx, n, l, c, kind)
		if err != nil {
			return err
		}
		if p.member != nil {
			s.Conditions.Peers = fmt.Sprintf("%v, first node %s", e.PeerPath, e.FirstNode)
		}
		e.report.Samples = append(e.report.Samples, s)
		if kind == First && mode.ours() && !e.AtOnce {
			if err := n.complete(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete waits until the node has all of the image, over a link that holds
// nothing up meanwhile: while it fetches and unpacks the rest in the background,
// the next start would not be that of a node that has everything.
func (n *node) complete(ctx context.Context, l *link) error {
	l.wide.Store(true)
	defer l.wide.Store(false)
	return n.await(ctx, completeLimit, "is complete", status.complete)
}

// sample starts a case once and returns what that took.
func (e *experiment) sample(ctx context.Context, n *node, l *link, c testCase, kind StartKind) (Sample, error) {
	image := e.images[c.image.Name]
	before, err := n.fromPeers(ctx)
	if err != nil {
		return Sample{}, err
	}
	e.registry.Reset()
	load, err := loadAverage()
	if err != nil {
		return Sample{}, err
	}
	sctx, cancel := context.WithTimeout(ctx, startTimeout)
	t, output, err := n.start(sctx, e.containerID(string(kind)), l.host()+"/"+image.Repository, c.args)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return Sample{}, ctx.Err()
		}
		return Sample{}, fmt.Errorf("start it (%s): %w; %s", kind, err, n.logs())
	}
	counts := e.registry.Reset()
	after, err := n.fromPeers(ctx)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{
		Case: c.name, Mode: n.mode, Start: kind,
		Conditions: Conditions{
			Path: l.path, Image: image.Digest, Program: digest.FromString(strings.Join(c.args, "\x00")), Machine: e.report.Machine,
			Output: firstLine(output),
		},
		Pull: t.pull, Create: t.create, Run: t.run,
		Requests: counts.TotalRequests(), Bytes: counts.TotalBytes(), PeerBytes: after - before, Load: load,
	}
	for _, layer := range image.Layers {
		s.LayerBytes += counts.BlobBytes[layer]
	}
	if kind == First {
		s.Phases = n.phases(ctx, image)
	}
	return s, nil
}

// prepared is a node's configuration, and what has to be there for it.
type prepared struct {
	nodeConfig
	swarm *swarm // nil without
	first *node  // of the swarm
}

// close ends what was made for the node.
func (p *prepared) close() error {
	var errs []error
	if p.first != nil {
		errs = append(errs, p.first.close())
	}
	if p.swarm != nil {
		errs = append(errs, p.swarm.close())
	}
	return errors.Join(errs...)
}

// prepare makes what a mode's node finds when it comes. The caller closes it,
// beside an error, too.
func (e *experiment) prepare(ctx context.Context, mode Mode, c testCase) (p *prepared, err error) {
	p = &prepared{nodeConfig: nodeConfig{mode: mode}}
	switch mode {
	case SkimmerProfile:
		p.profiles, err = e.record(ctx, c)
	case SkimmerPeers:
		e.step("start " + c.name + " on a first node")
		dir := e.newDir()
		if p.swarm, err = newSwarm(ctx, e.Config, dir+"s"); err != nil {
			return p, err
		}
		if p.first, err = e.neighbour(ctx, p.swarm, c, dir); err != nil {
			return p, err
		}
		p.member, err = p.swarm.join(ctx)
	}
	return p, err
}

// warm starts a case and makes containerd forget it, so that the mirror of the
// node has the image and nobody else.
func (e *experiment) warm(ctx context.Context, n *node, ref string, c testCase) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, _, err := n.start(ctx, e.containerID("warm"), ref, c.args); err != nil {
		return fmt.Errorf("start it to warm the mirror: %w; %s", err, n.logs())
	}
	if err := n.forget(ctx, ref); err != nil {
		return fmt.Errorf("remove the image: %w", err)
	}
	return errors.Join(dropCaches(e.Logger), e.runtimeReads())
}

// loadAverage returns the machine's load average of the last minute (proc(5)).
func loadAverage() (load float64, err error) {
	data, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscan(string(data), &load)
	}
	if err != nil {
		return 0, fmt.Errorf("read load average: %w", err)
	}
	return load, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// publish builds an image and puts it into the registry, unless it is there.
func (e *experiment) publish(ctx context.Context, spec lab.Spec) (Image, error) {
	built, err := lab.Build(ctx, spec, lab.BuildOptions{CacheDir: e.PackageCache, Progress: e.Report})
	if err != nil {
		return Image{}, err
	}
	img := Image{Name: spec.Name, Repository: fmt.Sprintf("bench/%s:%s-%d", spec.Name, built.Digest.Encoded()[:12], e.ChunkSize)}
	if e.RegistryDir != "" {
		if found, err := lookUp(ctx, e.registry.Host(), img); err == nil {
			return found, nil
		}
	}
	e.step("convert and push " + spec.Name)
	report := func(p lab.Progress) {
		p.Step += " " + spec.Name
		e.Report(p)
	}
	if _, err := e.Publish(ctx, built.LayoutDir, built.Tag, e.registry.Host()+"/"+img.Repository, report); err != nil {
		return Image{}, fmt.Errorf("publish image %s: %w", spec.Name, err)
	}
	return lookUp(ctx, e.registry.Host(), img)
}

// registryReads makes the registry read the image's layers once, so that its
// disk is no part of what is measured.
func (e *experiment) registryReads(ctx context.Context, image Image) error {
	repository, _, _ := strings.Cut(image.Repository, ":")
	for _, l := range image.Layers {
		if err := discard(ctx, "http://"+e.registry.Host()+"/v2/"+repository+"/blobs/"+l.String()); err != nil {
			return fmt.Errorf("read layer of %s: %w", image.Name, err)
		}
	}
	return nil
}

// runtimeReads reads the programs that start containers, which are in the page
// cache of every node that starts any: a kubelet has just had them start the
// sandbox of the pod whose image it pulls.
func (e *experiment) runtimeReads() error {
	dirs := filepath.SplitList(os.Getenv("PATH"))
	if e.Containerd != "" {
		dirs = slices.Insert(dirs, 0, filepath.Dir(e.Containerd))
	}
	for _, name := range []string{"containerd-shim-runc-v2", "runc"} {
		for _, dir := range dirs {
			_, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil {
				break
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("read the runtime's programs: %w", err)
			}
		}
	}
	return nil
}

// NeedsRoot returns an error that says what to do where this process is not
// root.
func NeedsRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("measure cold starts: containerd and mounting need root: sudo skimmer bench coldstart")
	}
	return nil
}
