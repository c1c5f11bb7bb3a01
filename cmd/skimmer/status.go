package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/peer"
)

func newStatusCommand(a *app) *cobra.Command {
	var local localPeer
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is mounted and pulled and how much of it is here",
		Long: `Show the running peer: what it fetched from registries, what its mirror served,
what is mounted, what containerd has pulled lazily, and how much of each layer's file data has arrived.

Of a peer that exchanges blobs with others it shows its name and address among
them, its schedulers, how many bytes came from peers and origins and went to
others, in all and per second in the last few seconds, what arrives now, and what
did not go as it should.`,
		Example: `  skimmer status
  skimmer status --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := peer.NewClient(local.socket).Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) error { return printStatus(w, s) })
		},
	}
	local.socketFlag(cmd)
	return cmd
}

func printStatus(w io.Writer, s peer.Status) error {
	fmt.Fprintf(w, "peer %d, version %s, up %s, data in %s\n", s.PID, s.Version, time.Since(s.Since).Round(time.Second), s.DataDir)
	fmt.Fprintf(w, "from registries: %s in %d requests, %d retried\n", formatBytes(s.Origin.Bytes), s.Origin.Requests, s.Origin.Retries)
	if s.Snapshotter != nil {
		fmt.Fprintf(w, "snapshotter for containerd on %s\n", s.Snapshotter.Socket)
	}
	if m := s.Mirror; m != nil {
		fmt.Fprintf(w, "mirror on %s: %d requests, %s of blobs, %d left to the registry, %d failed\n", m.Address, m.Requests, formatBytes(m.Bytes), m.Fallbacks, m.Failed)
		if m.Proxied > 0 {
			fmt.Fprintf(w, "forward proxy: %d requests, %d refused\n", m.Proxied, m.Refused)
		}
	}
	if s.Swarm != nil {
		if err := printSwarm(w, *s.Swarm); err != nil {
			return err
		}
	}
	if len(s.Mounts) == 0 && s.Snapshotter == nil {
		if s.Swarm != nil {
			fmt.Fprintln(w)
		}
		_, err := fmt.Fprintln(w, "nothing is mounted")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, m := range s.Mounts {
		fmt.Fprintf(tw, "\n%s on %s\n", m.Name, m.Target)
		layerHeader(tw)
		for _, l := range m.Layers {
			state := "lazy"
			switch {
			case l.Complete && m.Native:
				state = "complete, without the peer"
			case l.Complete:
				state = "complete"
			}
			printLayer(tw, l, state)
		}
	}
	if s.Snapshotter != nil {
		printPulled(tw, s.Snapshotter.Pulled)
	}
	return tw.Flush()
}

// printPulled prints what containerd has pulled, image by image.
func printPulled(w io.Writer, pulled []peer.PulledStatus) {
	image := ""
	for i, l := range pulled {
		if i == 0 || l.Image != image {
			image = l.Image
			fmt.Fprintf(w, "\n%s in containerd\n", image)
			layerHeader(w)
		}
		state := "lazy"
		if l.Complete {
			state = "complete"
		}
		if l.Mounted {
			state += ", in use"
		}
		printLayer(w, l.LayerStatus, state)
	}
}

func layerHeader(w io.Writer) { fmt.Fprintln(w, "LAYER\tBLOB\tFILE DATA\tHERE\tSTATE") }

func printLayer(w io.Writer, l peer.LayerStatus, state string) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", shortDigest(l.Digest), formatBytes(l.Size),
		formatBytes(l.DataSize), percent(l.Present, l.DataSize), state)
}
