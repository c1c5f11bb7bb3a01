package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"skimmer/internal/estargz/gunzip"
)

// newUnpackCommand returns the command that containerd runs to decompress a layer
// (containerd's docs/stream_processors.md): "skimmer install containerd" says so to it.
func newUnpackCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unpack-stream",
		Short: "Decompress a layer from standard input for containerd",
		Long: `Read a layer from standard input and write it, decompressed, to standard output.
containerd runs this for each layer that it unpacks, where "skimmer install
containerd" made it a stream processor; it is faster than containerd's own way.

gzip and zstd are decompressed, whatever the layer's media type says, as
containerd does it; anything else is passed on.`,
		Example: "  skimmer unpack-stream < layer.tar.gz > layer.tar",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			in, out := a.stdin, a.stdout
			for _, f := range []any{in, out} {
				if f, ok := f.(*os.File); ok {
					// Fewer switches between two processes; what is no pipe does not mind.
					_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, pipeBytes)
				}
			}
			return unpackStream(in, out)
		},
	}
}

const pipeBytes = 1 << 20 // the most that a user other than root may have

// Magic numbers that streams begin with: RFC 1952, 2.3.1, and RFC 8878, 3.1.1.
var (
	gzipMagic = []byte{0x1f, 0x8b, 8}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// unpackStream copies in to out, decompressed. What containerd gets of a stream that
// breaks off or is damaged is never a whole layer: it ends with an error.
func unpackStream(in io.Reader, out io.Writer) error {
	r := bufio.NewReaderSize(in, 256<<10)
	magic, err := r.Peek(len(zstdMagic))
	if err != nil && err != io.EOF {
		return fmt.Errorf("read the layer: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		err = gunzipTo(out, r)
	case bytes.HasPrefix(magic, zstdMagic):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r); err == nil {
			defer d.Close()
			_, err = d.WriteTo(out)
		}
	default:
		_, err = io.Copy(out, r)
	}
	if err != nil {
		return fmt.Errorf("decompress the layer: %w", err)
	}
	return nil
}

func gunzipTo(out io.Writer, in io.Reader) error {
	var r gunzip.Reader
	r.Reset(in)
	for {
		p, err := r.Next()
		if len(p) > 0 {
			if _, err := out.Write(p); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
