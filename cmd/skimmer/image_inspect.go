package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"skimmer/internal/image/convert"
)

func newImageInspectCommand(a *app) *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show an image's layers and what of them can be mounted lazily",
		Long: `Show, for every platform of an image, its layers with their sizes and what their
tables of contents say: how many files, chunks and separately compressed streams
there are, how much of the layer is wanted early (PREFETCH), and whether the
layer can be mounted lazily, or why not. Of the layers, only the tables of
contents are read.

` + imageNames,
		Example: `  skimmer image inspect registry.example/python:3.12-esgz
  skimmer image inspect --platform linux/arm64 --output json oci:./python | jq '.images[].layers[].toc'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspectImage(cmd.Context(), &f, args[0])
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) inspectImage(ctx context.Context, f *imageFlags, name string) error {
	n, err := convert.ParseName(name)
	if err != nil {
		return err
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	o, err := f.origin(n)
	if err != nil {
		return err
	}
	defer o.Close()
	in, err := convert.Inspect(ctx, n, convert.InspectOptions{
		Access: opts.Access, Blobs: o, Platforms: opts.Platforms, Jobs: opts.Jobs, TempDir: opts.TempDir,
	})
	if err != nil {
		return err
	}
	return a.print(in, func(w io.Writer) error { return printInspection(w, in) })
}

func printInspection(w io.Writer, in *convert.Inspection) error {
	fmt.Fprintf(w, "%s\n%s %s\n", in.Name, in.Digest, in.MediaType)
	for _, img := range in.Images {
		lazy := "lazily mountable"
		if !img.Lazy {
			lazy = "not lazily mountable"
		}
		fmt.Fprintf(w, "\n%s  %s  %d layers, %s, %s\n", img.Platform, img.Digest, len(img.Layers), formatBytes(img.Size), lazy)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "  LAYER\tTYPE\tSIZE\tUNPACKED\tTOC\tFILES\tCHUNKS\tSTREAMS\tPREFETCH\tLAZY")
		for _, l := range img.Layers {
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\n", shortDigest(l.Digest), shortType(l.MediaType), formatBytes(l.Size), orDash(l.UncompressedSize), tocColumns(l))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, o := range in.Others {
		about := ""
		if o.Subject != "" {
			about = ", about " + o.Subject.String()
		}
		fmt.Fprintf(w, "\n%s  %s, not an image%s\n", o.Digest, o.MediaType, about)
	}
	return nil
}

// tocColumns are the columns about a layer's table of contents.
func tocColumns(l convert.LayerInfo) string {
	t := l.TOC
	if t == nil {
		return "-\t-\t-\t-\t-\tno: " + l.Reason
	}
	prefetch := "no landmark"
	switch {
	case t.PrefetchSize > 0:
		prefetch = formatBytes(t.PrefetchSize)
	case t.NoPrefetch:
		prefetch = "nothing"
	}
	return fmt.Sprintf("%s\t%d\t%d\t%d\t%s\tyes", shortDigest(t.Digest), t.Entries, t.Chunks, t.Streams, prefetch)
}

func orDash(n int64) string {
	if n == 0 {
		return "-"
	}
	return formatBytes(n)
}

// shortType writes a media type without the words all layers' have.
func shortType(mt string) string {
	for _, prefix := range []string{"application/vnd.oci.image.layer.v1.", "application/vnd.docker.image.rootfs.diff."} {
		if rest, ok := strings.CutPrefix(mt, prefix); ok {
			return rest
		}
	}
	return mt
}
