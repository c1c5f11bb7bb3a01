package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/config"
	"skimmer/internal/image/trace"
	"skimmer/internal/peer"
)

// traceFlags are what "skimmer image trace" can be told.
type traceFlags struct {
	local      localPeer
	containerd string // its socket
	page       string // a file
}

func newImageTraceCommand(a *app) *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:   "trace [CONTAINER-OR-IMAGE]",
		Short: "Show what a start of an image did, and what it waited for",
		Long: `Show the timeline of an image's latest start on this node: manifest, tables of
contents and metadata, what was fetched ahead, and every page fault that had to
wait, with the file, its chunks, and where the bytes came from: this node's disk
(local), other nodes (peers) or the registry (origin). After it stands a line
for each kind of event: TOTAL is what the events took together, BUSY how long at
least one was under way.

The image is named as it was pulled, by the end of that name, or by its
manifest's digest; a container by its ID in containerd, or as much of it as is
like no other's. Without a name, the starts that the node remembers are listed.

--html writes the timeline as a page of its own with a bar for each event. It
loads nothing and runs no script.`,
		Example: `  skimmer image trace
  skimmer image trace registry.example/python:3.12-esgz
  skimmer image trace --html start.html 3f0c8b1d2a
  skimmer image trace --output json python:3.12-esgz | jq '.events[] | select(.kind=="fault")'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.traceImage(cmd.Context(), f, args[0])
			}
			if f.page != "" {
				return errors.New("read flags: --html needs the name of an image or container")
			}
			return a.listTraces(cmd.Context(), f)
		},
	}
	f.local.socketFlag(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.containerd, "containerd", config.DefaultPeer().Snapshotter.Containerd, "socket of the containerd that knows the container")
	fs.StringVar(&f.page, "html", "", "file to write the timeline into, as a page with a waterfall")
	_ = cmd.MarkFlagFilename("html", "html")
	return cmd
}

func (a *app) traceImage(ctx context.Context, f traceFlags, name string) error {
	starts, err := tracesOf(ctx, f, name)
	if err != nil {
		return err
	}
	s := starts[len(starts)-1] // the latest
	if f.page != "" {
		return writeFile(f.page, func(w io.Writer) error { return trace.HTML(w, s) })
	}
	return a.print(s, func(w io.Writer) error { return trace.Text(w, s) })
}

func (a *app) listTraces(ctx context.Context, f traceFlags) error {
	starts, err := peer.NewClient(f.local.socket).Traces(ctx, "")
	if err != nil {
		return err
	}
	return a.print(starts, func(w io.Writer) error { return trace.List(w, starts) })
}

// tracesOf returns the starts, at least one, of the image that has a name, or of
// that of the container that has it.
func tracesOf(ctx context.Context, f traceFlags, name string) ([]trace.Start, error) {
	client := peer.NewClient(f.local.socket)
	starts, err := client.Traces(ctx, name)
	if blob.KindOf(err) == blob.NotFound && mayBeContainer(name) {
		image, cerr := imageOfContainer(ctx, f.containerd, name)
		if cerr != nil {
			return nil, errors.Join(err, cerr)
		}
		if image != "" {
			starts, err = client.Traces(ctx, image)
		}
	}
	if err == nil && len(starts) == 0 {
		err = blob.Errorf(blob.NotFound, "find trace of %s: the peer has none", name)
	}
	return starts, err
}

// mayBeContainer reports whether containerd could have given an ID.
func mayBeContainer(name string) bool {
	return name != "" && !strings.ContainsAny(name, "/:@")
}

// imageOfContainer returns the name of the image that a container of any
// namespace was made from, "" if there is no such container.
func imageOfContainer(ctx context.Context, socket, id string) (string, error) {
	if _, err := os.Stat(socket); err != nil {
		return "", nil // no containerd, no containers
	}
	c, err := containerd.New(socket, containerd.WithTimeout(5*time.Second))
	if err != nil {
		return "", fmt.Errorf("look for container %s: %w", id, err)
	}
	defer c.Close()
	spaces, err := c.NamespaceService().List(ctx)
	if err != nil {
		return "", fmt.Errorf("look for container %s: %w", id, err)
	}
	images := map[string]string{} // by the container's ID
	for _, space := range spaces {
		list, err := c.ContainerService().List(namespaces.WithNamespace(ctx, space))
		if err != nil {
			return "", fmt.Errorf("look for container %s in namespace %s: %w", id, space, err)
		}
		for _, found := range list {
			if found.ID == id {
				return found.Image, nil
			}
			if strings.HasPrefix(found.ID, id) {
				images[found.ID] = found.Image
			}
		}
	}
	if len(images) > 1 {
		return "", blob.Errorf(blob.Invalid, "look for container %s: %d containers begin so", id, len(images))
	}
	for _, image := range images {
		return image, nil
	}
	return "", nil
}

// writeFile makes a file of what write writes.
func writeFile(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := errors.Join(write(file), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
