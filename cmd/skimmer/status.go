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
		Short: "Show what is mounted and how much of it is here",
		Long: `Show the running peer: what it fetched from registries, what is mounted, and
how much of each layer's file data has arrived.`,
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
	fmt.Fprintf(w, "peer %d, up %s, data in %s\n", s.PID, time.Since(s.Since).Round(time.Second), s.DataDir)
	fmt.Fprintf(w, "from registries: %s in %d requests, %d retried\n", formatBytes(s.Origin.Bytes), s.Origin.Requests, s.Origin.Retries)
	if len(s.Mounts) == 0 {
		_, err := fmt.Fprintln(w, "nothing is mounted")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, m := range s.Mounts {
		fmt.Fprintf(tw, "\n%s on %s\n", m.Name, m.Target)
		fmt.Fprintln(tw, "LAYER\tBLOB\tFILE DATA\tHERE\tSTATE")
		for _, l := range m.Layers {
			state := "lazy"
			switch {
			case l.Complete && m.Native:
				state = "complete, without the peer"
			case l.Complete:
				state = "complete"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", shortDigest(l.Digest), formatBytes(l.Size),
				formatBytes(l.DataSize), percent(l.Present, l.DataSize), state)
		}
	}
	return tw.Flush()
}
