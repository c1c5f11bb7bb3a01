package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/config"
	"skimmer/internal/estargz"
	"skimmer/internal/image"
	"skimmer/internal/image/convert"
	"skimmer/internal/image/optimize"
	"skimmer/internal/image/profile"
)

// optimizeFlags are the flags of image optimize.
type optimizeFlags struct {
	convertFlags
	profileOnly bool
	attach      bool
	saveProfile string
	network     string
	waitFor     time.Duration
	command     []string // behind --
}

func newImageOptimizeCommand(a *app) *cobra.Command {
	var f optimizeFlags
	cmd := &cobra.Command{
		Use:   "optimize SRC DST [-- COMMAND [ARG...]]",
		Short: "Make an image start sooner: put the files its workload reads first",
		Long: `Run an image's workload, see which files it reads, and write the image with
these files first in their layers, in the order they were read, before the
landmark up to which lazy readers fetch ahead; those of others, too. Of a large
file of which little was read, only the profile knows.

The workload is COMMAND, or the image's own, as the image's configuration has it
run, with nothing on its standard input and no network unless --net host. One
that does not end by itself is stopped with --wait-for.

What was read is also stored beside the image in its registry, as a profile: an
OCI referrer of type ` + profile.ArtifactType + `, by which nodes
that have never seen the image fetch what it will read. --profile=false leaves it
out. With --profile-only and no DST, SRC stays as it is and only gets the profile;
it has to be lazily mountable then.

Of a multi-platform image the one for this machine is optimized, or --platform,
and written alone. The same image whose workload reads the same becomes the same
image. It needs root, /dev/fuse and runc.

` + imageNames,
		Example: `  skimmer image optimize python:3.12 registry.example/python:3.12-fast -- python3 -c 'import asyncio, json'
  skimmer image optimize --wait-for 10s --net host nginx:1.27 registry.example/nginx:1.27-fast
  skimmer image optimize --profile-only registry.example/app:v1-esgz
  skimmer image optimize --profile-only --profile=false --save-profile app.profile oci:./app -- app --help`,
		Args: func(cmd *cobra.Command, args []string) error {
			names := args
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				names, f.command = args[:n], args[n:]
			}
			want := 2
			if f.profileOnly {
				want = 1
			}
			if len(names) != want {
				return fmt.Errorf("read arguments: got %d names of images before --, want %d", len(names), want)
			}
			return nil
		},
		ValidArgsFunction: completeImages(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.optimizeImage(cmd.Context(), &f, args)
		},
	}
	f.register(cmd)
	f.registerQuiet(cmd)
	f.registerLayer(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&f.profileOnly, "profile-only", false, "leave the image as it is and store its profile beside it")
	fs.BoolVar(&f.attach, "profile", true, "store the profile beside the image in its registry")
	fs.StringVar(&f.saveProfile, "save-profile", "", "also write the profile to `FILE`, for skimmer profile import")
	fs.StringVar(&f.network, "net", "none", "the workload's network: none, or host for this machine's")
	fs.DurationVar(&f.waitFor, "wait-for", 0, "stop the workload after so long (default: wait until it ends)")
	_ = fs.MarkHidden("all-platforms")
	_ = cmd.MarkFlagFilename("save-profile")
	_ = cmd.RegisterFlagCompletionFunc("net", cobra.FixedCompletions([]string{"none", "host"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// registerLayer adds the flags that say how layers are built.
func (f *optimizeFlags) registerLayer(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.TextVar(&f.chunkSize, "chunk-size", config.Bytes(estargz.DefaultChunkSize), "divide files into chunks of `SIZE`, the least that is fetched and verified")
	fs.TextVar(&f.minChunkSize, "min-chunk-size", config.Bytes(0), "compress small files together until they have `SIZE`; older lazy readers cannot read such an image")
	fs.IntVar(&f.level, "compression-level", 0, "compression `LEVEL`: 1 to 9 for gzip (default 6), 1 to 22 for zstd (default 3)")
	fs.BoolVar(&f.zstd, "zstdchunked", false, "make zstd:chunked layers instead of eStargz ones")
}

// optimize checks the flags and returns what they say.
func (f *optimizeFlags) optimize(a *app, names []string) (optimize.Options, error) {
	var o optimize.Options
	var err error
	if o.Source, err = convert.ParseName(names[0]); err != nil {
		return o, err
	}
	if !f.profileOnly {
		if o.Destination, err = convert.ParseName(names[1]); err != nil {
			return o, err
		}
	}
	switch {
	case f.network != "none" && f.network != "host":
		return o, fmt.Errorf("read flags: --net %q: must be none or host", f.network)
	case f.waitFor < 0:
		return o, fmt.Errorf("read flags: --wait-for %v: must not be negative", f.waitFor)
	case len(f.platforms) > 1:
		return o, errors.New("read flags: --platform: one image is run")
	case f.profileOnly && f.attach && o.Source.Transport != convert.Registry:
		return o, errors.New("read flags: --profile-only: only a registry keeps a profile beside an image; write it to a file with --profile=false --save-profile FILE")
	case f.profileOnly && !f.attach && f.saveProfile == "":
		return o, errors.New("read flags: --profile-only with --profile=false needs --save-profile FILE")
	}
	if o.Convert.Options, err = f.options(); err != nil {
		return o, err
	}
	if o.Convert.Layer, err = f.layerOptions(a.stdin); err != nil {
		return o, err
	}
	if len(f.platforms) == 1 {
		if o.Platform, err = image.ParsePlatform(f.platforms[0]); err != nil {
			return o, err
		}
	}
	o.Attach, o.TempDir, o.Logger = f.attach, f.tempDir, a.logger()
	o.Workload = optimize.Workload{Args: f.command, HostNetwork: f.network == "host", WaitFor: f.waitFor}
	if a.verbose {
		o.Workload.Output = a.stderr
	}
	return o, nil
}

func (a *app) optimizeImage(ctx context.Context, f *optimizeFlags, names []string) error {
	o, err := f.optimize(a, names)
	if err != nil {
		return err
	}
	if !f.quiet && a.output != "json" {
		steps := &stepped{out: a.stderr}
		o.Step, o.Convert.Report = steps.step, steps.report
		defer steps.close()
	}
	r, err := optimize.Optimize(ctx, o)
	if err != nil {
		return err
	}
	if f.saveProfile != "" {
		if err := writeProfile(f.saveProfile, r.Profile); err != nil {
			return err
		}
	}
	if r.Converted != nil && !f.quiet {
		for _, w := range r.Converted.Warnings {
			fmt.Fprintf(a.stderr, "skimmer: warning: %s\n", w)
		}
	}
	return a.print(r, func(w io.Writer) error { return printOptimized(w, r) })
}

func printOptimized(w io.Writer, r *optimize.Result) error {
	if _, err := fmt.Fprintf(w, "the workload read %d files, %s of them in whole chunks\n", r.Files, formatBytes(r.Read)); err != nil {
		return err
	}
	if r.Converted != nil {
		if _, err := fmt.Fprintf(w, "%d files, %s, now come first and are fetched ahead\n", r.Early, formatBytes(r.EarlySize)); err != nil {
			return err
		}
		if err := printMoved(w, r.Converted); err != nil {
			return err
		}
	}
	if r.Attached != "" {
		if _, err := fmt.Fprintf(w, "profile of %s stored beside it: %s\n", r.Manifest, r.Attached); err != nil {
			return err
		}
	}
	return nil
}

// writeProfile writes a profile's encoding to a file.
func writeProfile(path string, p profile.Profile) error {
	data, err := profile.Encode(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return blob.Errorf(blob.KindOf(err), "write profile: %w", err)
	}
	return nil
}

// stepped shows the progress of several transfers, one after the other, with a
// line about each step. Its methods are called from one goroutine, but for
// report during a transfer.
type stepped struct {
	out io.Writer
	now *progress
}

func (s *stepped) step(name string) {
	s.close()
	fmt.Fprintln(s.out, name)
	s.now = newProgress(s.out)
}

func (s *stepped) report(e convert.Event) {
	if s.now != nil {
		s.now.report(e)
	}
}

func (s *stepped) close() {
	s.now.close()
	s.now = nil
}
