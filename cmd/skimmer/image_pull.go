package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/image/convert"
	"skimmer/internal/snapshot/pull"
)

func newImagePullCommand(a *app) *cobra.Command {
	var o pull.Options
	cmd := &cobra.Command{
		Use:   "pull IMAGE [LAYOUT]",
		Short: "Pull an image into containerd lazily, or copy it to a layout",
		Long: `Pull an image into containerd, where containers can be started from it at once:
layers that are lazily mountable are mounted, not downloaded, and fetched as
they are read. Layers that are not are downloaded and unpacked. containerd has
to know the snapshotter; see "skimmer install containerd".

With LAYOUT, copy the image from its registry to an OCI image layout, DIR[:TAG],
which is made where there is none. Without TAG the image keeps the tag it has.
What the layout has already is not fetched again.`,
		Example: `  skimmer image pull registry.example/python:3.12-esgz
  skimmer image pull --namespace k8s.io registry.example/python:3.12-esgz
  skimmer image pull docker.io/library/python:3.12 ./python
  skimmer image pull --platform linux/arm64 python:3.12 ./python:arm`,
		ValidArgsFunction: completeDirAt(1),
	}
	layoutOnly := a.copyCommand(cmd, convert.ParseRegistry, convert.ParseLayout).RunE
	f := cmd.Flags()
	f.StringVar(&o.Address, "containerd", pull.DefaultAddress, "containerd's `SOCKET`")
	f.StringVarP(&o.Namespace, "namespace", "n", pull.DefaultNamespace, "containerd's namespace; Kubernetes uses k8s.io")
	f.StringVar(&o.Snapshotter, "snapshotter", pull.DefaultSnapshotter, "the snapshotter's `NAME` in containerd")
	_ = cmd.MarkFlagFilename("containerd")
	cmd.Args = cobra.RangeArgs(1, 2)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 2 {
			for _, name := range []string{"containerd", "namespace", "snapshotter"} {
				if f.Changed(name) {
					return fmt.Errorf("read flags: --%s is for pulling into containerd, without LAYOUT", name)
				}
			}
			return layoutOnly(cmd, args)
		}
		for _, name := range []string{"all-platforms", "jobs", "temp-dir"} {
			if f.Changed(name) {
				return fmt.Errorf("read flags: --%s is for copying to a LAYOUT", name)
			}
		}
		platforms, err := f.GetStringArray("platform")
		if err != nil {
			return err
		}
		switch len(platforms) {
		case 0:
		case 1:
			o.Platform = platforms[0]
		default:
			return errors.New("read flags: --platform: containerd takes one")
		}
		o.Image = args[0]
		o.PlainHTTP, _ = f.GetBool("plain-http")
		o.CAFile, _ = f.GetString("ca-file")
		o.UserAgent = "skimmer/" + version
		return a.pullLazily(cmd.Context(), o)
	}
	return cmd
}

// pullLazily pulls into containerd and says what became of it.
func (a *app) pullLazily(ctx context.Context, o pull.Options) error {
	start := time.Now()
	img, err := pull.Pull(ctx, o)
	if err != nil {
		return err
	}
	took := time.Since(start)
	r, err := pull.Inspect(ctx, img, o.Namespace)
	if err != nil {
		return err
	}
	return a.print(r, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "pulled %s in %s: %d of %d layers mounted lazily, %s of %s downloaded\n%s\n",
			r.Image, millis(took), r.Lazy, r.Layers, formatBytes(r.Downloaded), formatBytes(r.Size), r.Digest)
		return err
	})
}
