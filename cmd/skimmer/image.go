package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"skimmer/internal/image/convert"
	"skimmer/internal/origin"
)

// imageNames is the part of help texts that says what an image may be called.
const imageNames = `An image is named as
  docker.io/library/python:3.12   in a registry, also REGISTRY/NAME@sha256:...
  oci:DIR[:TAG]                   in an OCI image layout, also oci:DIR@sha256:...
  oci-archive:FILE[:TAG]          in a tar of such a layout
  docker-archive:FILE[:NAME]      in a tar of docker save
  FILE or DIR                     one of these, told apart by what is in it

Credentials are those of docker login (and its credential helpers), proxies
those of the environment. Registries on this machine are spoken to over plain
HTTP, all others over TLS.`

func newImageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make images lazily mountable, look into them, move them about",
		Long: `Convert images to eStargz or zstd:chunked so that they can be mounted before
they have arrived, look into them, and copy them between registries, layouts
and archives.

` + imageNames,
		Example: `  skimmer image convert docker.io/library/python:3.12 registry.example/python:3.12-esgz
  skimmer image inspect registry.example/python:3.12-esgz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newImageConvertCommand(a),
		newImageInspectCommand(a),
		newImageOptimizeCommand(a),
		newImageCopyCommand(a),
		newImagePullCommand(a),
		newImagePushCommand(a),
		newImageTraceCommand(a),
	)
	return cmd
}

// imageFlags are the flags that the image commands share.
type imageFlags struct {
	plainHTTP    bool
	caFile       string
	platforms    []string
	allPlatforms bool
	jobs         int
	tempDir      string
	quiet        bool
}

// register adds the flags that every image command has.
func (f *imageFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.plainHTTP, "plain-http", false, "speak plain HTTP to registries on other machines, too")
	fs.StringVar(&f.caFile, "ca-file", "", "trust the PEM certificates in `FILE` beside the system's")
	fs.StringArrayVar(&f.platforms, "platform", nil, "only the image for `OS/ARCH[/VARIANT]`; repeat it for several")
	fs.BoolVar(&f.allPlatforms, "all-platforms", false, "the image for every platform (the default)")
	fs.IntVar(&f.jobs, "jobs", 0, "work on `N` layers at a time (default one for each CPU)")
	fs.StringVar(&f.tempDir, "temp-dir", "", "keep temporary files in `DIR`, not in the system's directory for them")
	cmd.MarkFlagsMutuallyExclusive("platform", "all-platforms")
	_ = cmd.MarkFlagFilename("ca-file")
	_ = cmd.MarkFlagDirname("temp-dir")
	_ = cmd.RegisterFlagCompletionFunc("platform", cobra.FixedCompletions(
		[]string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x"},
		cobra.ShellCompDirectiveNoFileComp))
}

// registerQuiet adds the flag of commands that show progress.
func (f *imageFlags) registerQuiet(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show neither progress nor warnings")
}

func (f *imageFlags) access() convert.Access {
	return convert.Access{PlainHTTP: f.plainHTTP, CAFile: f.caFile, UserAgent: "skimmer/" + version}
}

func (f *imageFlags) parsePlatforms() ([]ocispec.Platform, error) {
	var all []ocispec.Platform
	for _, s := range f.platforms {
		p, err := convert.ParsePlatform(s)
		if err != nil {
			return nil, fmt.Errorf("read flags: --platform: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

// options returns what the flags say about moving an image.
func (f *imageFlags) options() (convert.Options, error) {
	platforms, err := f.parsePlatforms()
	if err != nil {
		return convert.Options{}, err
	}
	if f.jobs < 0 {
		return convert.Options{}, fmt.Errorf("read flags: --jobs %d: must not be negative", f.jobs)
	}
	return convert.Options{Access: f.access(), Platforms: platforms, Jobs: f.jobs, TempDir: f.tempDir}, nil
}

// origin returns where the blobs of an image in a registry are read from.
func (f *imageFlags) origin(n convert.Name) (*origin.Origin, error) {
	var cfg origin.Config
	if n.Transport == convert.Registry {
		ref, err := origin.ParseReference(n.String())
		if err != nil {
			return nil, err
		}
		if f.plainHTTP {
			cfg.Insecure = []string{ref.Host()}
		}
		if f.caFile != "" {
			cfg.CAFiles = map[string][]string{ref.Host(): {f.caFile}}
		}
	}
	return origin.New(cfg)
}

// moveImage runs what moves an image, shows its progress, and prints what
// came of it.
func (a *app) moveImage(ctx context.Context, f *imageFlags, opts convert.Options,
	move func(context.Context, convert.Options) (*convert.Result, error)) error {
	var p *progress
	if !f.quiet && a.output != "json" {
		p = newProgress(a.stderr)
		opts.Report = p.report
	}
	r, err := move(ctx, opts)
	p.close()
	if err != nil {
		return err
	}
	if !f.quiet {
		for _, w := range r.Warnings {
			fmt.Fprintf(a.stderr, "skimmer: warning: %s\n", w)
		}
	}
	return a.print(r, func(w io.Writer) error { return printMoved(w, r) })
}

func printMoved(w io.Writer, r *convert.Result) error {
	if len(r.Images) > 0 {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "PLATFORM\tLAYERS\tBEFORE\tAFTER\tDIGEST")
		for _, img := range r.Images {
			var before, after int64
			for _, l := range img.Layers {
				before, after = before+l.SourceSize, after+l.Size
			}
			fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\n", img.Platform, len(img.Layers), formatBytes(before), formatBytes(after), img.Digest)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s\n%s, %s before, %s sent\n%s\n",
		r.Destination, formatBytes(r.Size), formatBytes(r.SourceSize), formatBytes(r.Uploaded), r.Digest)
	return err
}

// completeImages completes names of images: what they begin with, then files.
func completeImages(n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var starts []cobra.Completion
		for _, s := range []string{"oci:", "oci-archive:", "docker-archive:"} {
			if toComplete != "" && strings.HasPrefix(s, toComplete) {
				starts = append(starts, s)
			}
		}
		if len(starts) > 0 {
			return starts, cobra.ShellCompDirectiveNoSpace
		}
		return nil, cobra.ShellCompDirectiveDefault
	}
}
