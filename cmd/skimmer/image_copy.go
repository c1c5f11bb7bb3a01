package main

import (
	"context"

	"github.com/spf13/cobra"

	"skimmer/internal/image/convert"
)

// parser reads a name of an image.
type parser func(string) (convert.Name, error)

func newImageCopyCommand(a *app) *cobra.Command {
	return a.copyCommand(&cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy an image without changing it",
		Long: `Copy an image between registries, layouts and archives. It is the same
afterwards, byte for byte; only --platform makes a smaller index of a
multi-platform one. What DST has already is not sent again.

Layers of an archive of docker save are copied uncompressed, as they are in it.

` + imageNames,
		Example: `  skimmer image cp registry.example/app:v1 mirror.example/app:v1
  skimmer image cp oci:./app oci-archive:app.tar`,
		ValidArgsFunction: completeImages(2),
	}, convert.ParseName, convert.ParseName)
}

func newImagePushCommand(a *app) *cobra.Command {
	return a.copyCommand(&cobra.Command{
		Use:   "push LAYOUT IMAGE",
		Short: "Copy an image from a layout to a registry",
		Long: `Copy an image from an OCI image layout, DIR[:TAG], to a registry. TAG may be
left out where the layout holds one image. What the registry has already is not
sent again.`,
		Example: `  skimmer image push ./python registry.example/python:3.12
  skimmer image push ./python:arm registry.example/python:3.12-arm`,
		ValidArgsFunction: completeDirAt(0),
	}, convert.ParseLayout, convert.ParseRegistry)
}

// copyCommand completes a command that copies what src reads to what dst
// reads.
func (a *app) copyCommand(cmd *cobra.Command, src, dst parser) *cobra.Command {
	var f imageFlags
	cmd.Args = cobra.ExactArgs(2)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from, err := src(args[0])
		if err != nil {
			return err
		}
		to, err := dst(args[1])
		if err != nil {
			return err
		}
		opts, err := f.options()
		if err != nil {
			return err
		}
		return a.moveImage(cmd.Context(), &f, opts, func(ctx context.Context, opts convert.Options) (*convert.Result, error) {
			return convert.Copy(ctx, from, to, opts)
		})
	}
	f.register(cmd)
	f.registerQuiet(cmd)
	return cmd
}
