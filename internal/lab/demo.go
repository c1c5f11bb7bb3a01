package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Mounter is the product that the demonstration shows.
type Mounter interface {
	// Mount mounts the image called ref read-only on dir and returns when it is
	// usable.
	Mount(ctx context.Context, ref, dir string) error
	// Unmount takes the mount on dir away and keeps what was fetched for it.
	Unmount(ctx context.Context, dir string) error
	// Forget makes the product one that has never seen an image and is ready
	// for work. Nothing is mounted when it is called.
	Forget(ctx context.Context) error
}

// Publisher moves images between layouts and registries.
type Publisher interface {
	// Publish makes the image tag of an OCI layout lazily mountable and pushes
	// it as ref. It returns the size of its layers in the registry, in bytes.
	// report may be called concurrently.
	Publish(ctx context.Context, layout, tag, ref string, report func(Progress)) (int64, error)
	// Pull fetches all of the image ref into the OCI layout, as tag.
	Pull(ctx context.Context, ref, layout, tag string) error
}

// DemoConfig says what [Demo] shows.
type DemoConfig struct {
	// Dir is a directory for everything that is made; the caller removes it.
	Dir string
	// Spec is the image.
	Spec Spec
	// PackageCache is Build's CacheDir; empty means the default.
	PackageCache string
	// Shape is how slow the registry is while images are used; pushing is not
	// slowed down.
	Shape Shape
	// Publisher and Mounter are what is shown.
	Publisher Publisher
	Mounter   Mounter
	// Report, where set, is told what is being done. It may be called
	// concurrently while an image is published.
	Report func(Progress)
	// Keep, where set, is called when all is measured, with the image mounted
	// on the result's Mount and the registry running; both end when it
	// returns.
	Keep func(ctx context.Context, r DemoResult) error
	// Logger receives what is done; nil discards it.
	Logger *slog.Logger
}

// DemoResult is what a demonstration measured. Times are in nanoseconds, sizes
// in bytes; requests and bytes were counted by the registry.
type DemoResult struct {
	Image DemoImage `json:"image"`
	// Registry is the program that served the image, Latency and Rate how slow
	// it was made.
	Registry string        `json:"registry"`
	Latency  time.Duration `json:"latency,omitempty"`
	Rate     int64         `json:"rate,omitempty"`
	// Mount is where the image was mounted.
	Mount string    `json:"mount"`
	Runs  []DemoRun `json:"runs"`
	// Notes are whole sentences about what could not be shown.
	Notes []string `json:"notes,omitempty"`
}

// DemoImage is the image a demonstration used.
type DemoImage struct {
	Name      string `json:"name"`
	Reference string `json:"reference"`
	Layers    int    `json:"layers"`
	// Size is that of the layers in the registry, TarSize that of the same
	// layers as plain tars.
	Size    int64 `json:"size"`
	TarSize int64 `json:"tarSize"`
}

// The runs of a demonstration.
const (
	RunCold = "cold" // mounted with nothing local
	RunWarm = "warm" // mounted again
	RunPull = "pull" // fetched and unpacked as a whole, then run
)

// DemoRun is one way from an image's name to a program's output.
type DemoRun struct {
	Name  string     `json:"name"`
	Steps []DemoStep `json:"steps"`
}

// DemoStep is one step of a run.
type DemoStep struct {
	Name string `json:"name"`
	// Args is the program, where the step is one.
	Args []string `json:"args,omitempty"`
	// Took is the step's own time. FirstOutput is the time from the beginning
	// of the run until the program wrote its first byte.
	Took        time.Duration `json:"took"`
	FirstOutput time.Duration `json:"firstOutput,omitempty"`
	Requests    int64         `json:"requests"`
	Bytes       int64         `json:"bytes"`
	Output      string        `json:"output,omitempty"`
}

// FirstOutput returns when the run's first program wrote its first byte, and
// what had been fetched by the end of that program.
func (r DemoRun) FirstOutput() (after time.Duration, fetched int64) {
	for _, s := range r.Steps {
		fetched += s.Bytes
		if s.FirstOutput > 0 {
			return s.FirstOutput, fetched
		}
	}
	return 0, fetched
}

// Demo builds a real image, publishes it in a real registry, mounts it lazily,
// runs programs in it, does so again, and does the same by way of a full pull.
// It needs to be root. When it returns, nothing is mounted and nothing runs,
// however it ended.
func Demo(ctx context.Context, cfg DemoConfig) (DemoResult, error) {
	d := &demo{DemoConfig: cfg}
	if d.Report == nil {
		d.Report = func(Progress) {}
	}
	d.result.Mount = filepath.Join(cfg.Dir, "mnt")
	err := d.show(ctx)
	// Cleaning up is not interrupted by what interrupted the work.
	quiet := context.WithoutCancel(ctx)
	if d.mounted {
		err = errors.Join(err, d.Mounter.Unmount(quiet, d.result.Mount))
	}
	if d.registry != nil {
		err = errors.Join(err, d.registry.Close())
	}
	return d.result, err
}

// demo is a demonstration under way.
type demo struct {
	DemoConfig
	registry *Registry
	image    Image
	mounted  bool
	result   DemoResult
}

func (d *demo) show(ctx context.Context) error {
	if err := os.MkdirAll(d.result.Mount, 0o755); err != nil {
		return fmt.Errorf("prepare demonstration: %w", err)
	}
	if err := d.publish(ctx); err != nil {
		return err
	}
	d.step("mount " + d.image.Tag + " and run it: nothing is here yet")
	if err := d.Mounter.Forget(ctx); err != nil {
		return fmt.Errorf("start anew: %w", err)
	}
	if err := d.lazy(ctx, RunCold); err != nil {
		return err
	}
	d.step("the same again")
	if err := d.unmount(ctx); err != nil {
		return err
	}
	if err := d.lazy(ctx, RunWarm); err != nil {
		return err
	}
	if err := d.pull(ctx); err != nil {
		return err
	}
	d.step("")
	if d.Keep != nil {
		return d.Keep(ctx, d.result)
	}
	return nil
}

func (d *demo) step(name string) { d.Report(Progress{Step: name, Fraction: -1}) }

// publish builds the image, starts the registry and puts the image into it.
func (d *demo) publish(ctx context.Context) (err error) {
	build := BuildOptions{CacheDir: d.PackageCache, Progress: d.Report}
	if d.image, err = Build(ctx, d.Spec, build); err != nil {
		return err
	}
	d.step("start a registry")
	opts := RegistryOptions{Dir: filepath.Join(d.Dir, "registry"), Logger: d.Logger}
	if d.registry, err = StartRegistry(ctx, opts); err != nil {
		return err
	}
	ref := d.registry.Host() + "/demo/" + d.image.Tag + ":latest"
	d.step("convert and push")
	size, err := d.Publisher.Publish(ctx, d.image.LayoutDir, d.image.Tag, ref, d.Report)
	if err != nil {
		return err
	}
	d.registry.SetShape(d.Shape)
	d.result.Registry = filepath.Base(d.registry.Program())
	d.result.Latency, d.result.Rate = d.Shape.Latency, d.Shape.Rate
	d.result.Image = DemoImage{
		Name: d.image.Tag, Reference: ref, Layers: len(d.image.Layers), Size: size, TarSize: d.image.TarSize(),
	}
	return nil
}

// lazy mounts the image, runs its programs, and leaves it mounted.
func (d *demo) lazy(ctx context.Context, name string) error {
	run := &demoRun{demo: d, start: time.Now(), DemoRun: DemoRun{Name: name}}
	d.registry.Reset()
	err := run.step(DemoStep{Name: "mount"}, func(*DemoStep) error {
		err := d.Mounter.Mount(ctx, d.result.Image.Reference, d.result.Mount)
		d.mounted = err == nil
		return err
	})
	if err != nil {
		return err
	}
	return run.programs(ctx, d.result.Mount)
}

func (d *demo) unmount(ctx context.Context) error {
	if err := d.Mounter.Unmount(ctx, d.result.Mount); err != nil {
		return err
	}
	d.mounted = false
	return nil
}

// pull does what is done without lazy mounting: it fetches all layers, unpacks
// them with a stock tool, and runs the same programs.
func (d *demo) pull(ctx context.Context) error {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		d.result.Notes = append(d.result.Notes, "There is no comparison with a full pull, because umoci is not installed.")
		return nil
	}
	d.step("for comparison: fetch all of it, unpack it, run it")
	const tag = "pulled"
	layout, bundle := filepath.Join(d.Dir, "pulled"), filepath.Join(d.Dir, "unpacked")
	run := &demoRun{demo: d, start: time.Now(), DemoRun: DemoRun{Name: RunPull}}
	d.registry.Reset()
	err = run.step(DemoStep{Name: "fetch all layers"}, func(*DemoStep) error {
		return d.Publisher.Pull(ctx, d.result.Image.Reference, layout, tag)
	})
	if err != nil {
		return err
	}
	args := []string{"unpack", "--image", layout + ":" + tag, bundle}
	err = run.step(DemoStep{Name: "unpack them", Args: append([]string{"umoci"}, args...)}, func(*DemoStep) error {
		out, err := exec.CommandContext(ctx, umoci, args...).CombinedOutput()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("unpack with umoci: %w: %s", err, out)
		}
		return errors.Join(ctx.Err(), err)
	})
	if err != nil {
		return err
	}
	return run.programs(ctx, filepath.Join(bundle, "rootfs"))
}

// demoRun is a DemoRun under way.
type demoRun struct {
	DemoRun
	demo  *demo
	start time.Time
}

// step does one step and measures it.
func (r *demoRun) step(s DemoStep, do func(*DemoStep) error) error {
	start := time.Now()
	if err := do(&s); err != nil {
		return err
	}
	s.Took = time.Since(start)
	c := r.demo.registry.Reset()
	s.Requests, s.Bytes = c.TotalRequests(), c.TotalBytes()
	r.Steps = append(r.Steps, s)
	return nil
}

// programs runs the image's programs in root and adds the run to the result.
func (r *demoRun) programs(ctx context.Context, root string) error {
	for _, p := range r.demo.image.Spec.Programs {
		err := r.step(DemoStep{Name: p.Name, Args: p.Args}, func(s *DemoStep) error {
			before := time.Since(r.start)
			res, err := Run(ctx, root, r.demo.image.Environ(), p.Args)
			s.FirstOutput, s.Output = before+res.FirstOutput, res.Output
			return err
		})
		if err != nil {
			return err
		}
	}
	r.demo.result.Runs = append(r.demo.result.Runs, r.DemoRun)
	return nil
}
