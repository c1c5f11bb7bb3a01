package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/peer"
)

func newPeersCommand(a *app) *cobra.Command {
	var local localPeer
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the nodes that exchange blobs with this one",
		Long: `List the members of the swarm: what the schedulers of the running peer know of
the nodes that have joined them. UPLOADS is how many transfers a node serves now,
and how many it serves at most; BLOBS is of how many it has something.

A scheduler that does not answer is named, with the cause. The command fails
where none does.`,
		Example: `  skimmer peers
  skimmer peers --output json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := peer.NewClient(local.socket).SwarmPeers(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.print(s, func(w io.Writer) error { return printPeers(w, s) }); err != nil {
				return err
			}
			for _, asked := range s.Schedulers {
				if asked.Error == "" {
					return nil
				}
			}
			return blob.Errorf(blob.Unavailable, "list peers: none of %d schedulers answers", len(s.Schedulers))
		},
	}
	local.socketFlag(cmd)
	return cmd
}

func printPeers(w io.Writer, s peer.SwarmPeers) error {
	if len(s.Peers) > 0 {
		tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		fmt.Fprintln(tw, "PEER\tHOSTNAME\tADDRESS\tLOCATION\tROLE\tUPLOADS\tBLOBS\tVERSION\tSINCE")
		for _, p := range s.Peers {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d/%d\t%d\t%s\t%s\n", p.ID, p.Hostname, p.Addr, location(p.Zone, p.Rack), role(p.Seed),
				p.Uploads, p.Slots, p.Blobs, p.Version, formatAge(time.Since(p.Since)))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return printUnasked(w, s.Schedulers)
}

// printUnasked says which schedulers did not answer.
func printUnasked(w io.Writer, all []peer.Asked) error {
	for _, s := range all {
		if s.Error == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "scheduler %s does not answer: %s\n", s.Scheduler, s.Error); err != nil {
			return err
		}
	}
	return nil
}

// location writes where a node stands.
func location(zone, rack string) string {
	switch {
	case zone == "" && rack == "":
		return "-"
	case rack == "":
		return zone
	}
	return zone + "/" + rack
}

func role(seed bool) string {
	if seed {
		return "seed"
	}
	return "peer"
}
