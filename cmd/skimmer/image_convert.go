package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"skimmer/internal/config"
	"skimmer/internal/estargz"
	"skimmer/internal/image/convert"
)

// convertFlags are the flags of image convert.
type convertFlags struct {
	imageFlags
	chunkSize, minChunkSize config.Bytes
	level                   int
	prefetchFile            string
	zstd                    bool
}

func newImageConvertCommand(a *app) *cobra.Command {
	var f convertFlags
	cmd := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "Make an image lazily mountable",
		Long: `Read an image, rebuild its layers as eStargz (or zstd:chunked) with a table of
contents, and write it with OCI media types. Any runtime can pull the result as
usual; lazy ones start containers of it before it has arrived.

Every platform of a multi-platform image is converted unless --platform chooses;
attestations go along as they are. The result is reproducible: the same image
and flags give the same digests, so converting again sends nothing. The
manifest brings the configuration with it (the field "data" of OCI descriptors),
which saves a node's mirror a request.

SRC is any image, DST one in a registry, a layout (oci:DIR[:TAG]) or an
archive (oci-archive:FILE[:TAG]). Without a TAG, layouts and archives take over
that of SRC.

` + imageNames,
		Example: `  skimmer image convert docker.io/library/python:3.12 registry.example/python:3.12-esgz
  skimmer image convert --platform linux/amd64 --platform linux/arm64 python:3.12 oci:./python
  docker save app:v1 -o app.tar && skimmer image convert app.tar 127.0.0.1:5000/app:v1
  skimmer image convert --zstdchunked --compression-level 9 oci:./python oci:./small:zstd
  skimmer image convert --prefetch-file hot-files.txt app.tar registry.example/app:v1-esgz`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeImages(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.convertImage(cmd.Context(), &f, args[0], args[1])
		},
	}
	f.register(cmd)
	f.registerQuiet(cmd)
	fs := cmd.Flags()
	fs.TextVar(&f.chunkSize, "chunk-size", config.Bytes(estargz.DefaultChunkSize), "divide files into chunks of `SIZE`, the least that is fetched and verified")
	fs.TextVar(&f.minChunkSize, "min-chunk-size", config.Bytes(0), "compress small files together until they have `SIZE`; makes the image smaller, but older lazy readers cannot read it")
	fs.IntVar(&f.level, "compression-level", 0, "compression `LEVEL`: 1 to 9 for gzip (default 6), 1 to 22 for zstd (default 3)")
	fs.StringVar(&f.prefetchFile, "prefetch-file", "", "put the files listed in `LIST`, one path per line, first in their layers to be fetched ahead; - reads the list from standard input")
	fs.BoolVar(&f.zstd, "zstdchunked", false, "make zstd:chunked layers instead of eStargz ones")
	_ = cmd.MarkFlagFilename("prefetch-file")
	return cmd
}

func (a *app) convertImage(ctx context.Context, f *convertFlags, src, dst string) error {
	from, err := convert.ParseName(src)
	if err != nil {
		return err
	}
	to, err := convert.ParseName(dst)
	if err != nil {
		return err
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	layer, err := f.layerOptions(a.stdin)
	if err != nil {
		return err
	}
	return a.moveImage(ctx, &f.imageFlags, opts, func(ctx context.Context, opts convert.Options) (*convert.Result, error) {
		return convert.Convert(ctx, from, to, convert.ConvertOptions{Options: opts, Layer: layer})
	})
}

// layerOptions checks what the flags say about building layers, before
// anything is fetched.
func (f *convertFlags) layerOptions(stdin io.Reader) (estargz.BuildOptions, error) {
	if f.chunkSize < 1 || f.chunkSize > estargz.MaxBuildChunkSize {
		return estargz.BuildOptions{}, fmt.Errorf("read flags: --chunk-size %v: must be between 1 and %v", f.chunkSize, config.Bytes(estargz.MaxBuildChunkSize))
	}
	if f.minChunkSize > estargz.MaxBuildChunkSize {
		return estargz.BuildOptions{}, fmt.Errorf("read flags: --min-chunk-size %v: must be at most %v", f.minChunkSize, config.Bytes(estargz.MaxBuildChunkSize))
	}
	maxLevel := 9
	if f.zstd {
		maxLevel = 22
	}
	if f.level < 0 || f.level > maxLevel {
		return estargz.BuildOptions{}, fmt.Errorf("read flags: --compression-level %d: must be between 1 and %d", f.level, maxLevel)
	}
	prefetch, err := readPrefetch(f.prefetchFile, stdin)
	if err != nil {
		return estargz.BuildOptions{}, err
	}
	return estargz.BuildOptions{
		ChunkSize: int(f.chunkSize), MinChunkSize: int(f.minChunkSize), Level: f.level, Zstd: f.zstd, Prefetch: prefetch,
	}, nil
}

// readPrefetch reads a list of paths, one per line. An empty name is no list.
func readPrefetch(name string, stdin io.Reader) (paths []string, err error) {
	r := stdin
	switch name {
	case "":
		return nil, nil
	case "-":
	default:
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read prefetch list: %w", err)
		}
		defer f.Close()
		r = f
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if path := strings.TrimSpace(lines.Text()); path != "" {
			paths = append(paths, path)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read prefetch list %s: %w", name, err)
	}
	return paths, nil
}
