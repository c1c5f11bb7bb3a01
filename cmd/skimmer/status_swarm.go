package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"skimmer/internal/peer"
)

// printSwarm prints how the node stands in its swarm.
func printSwarm(w io.Writer, s peer.SwarmStatus) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tw, "\n%s %s at %s\n", role(s.Seed), s.ID, s.Address)
	for _, l := range s.Schedulers {
		state := "down"
		if l.Up {
			state = "up"
		}
		fmt.Fprintf(tw, "scheduler\t%s\t%s\n", l.Scheduler, state)
	}
	if s.Unresolved != "" {
		fmt.Fprintf(tw, "scheduler\tnot found\t%s\n", s.Unresolved)
	}
	for _, b := range []struct {
		what      string
		all, rate int64
	}{
		{"from peers", s.Bytes.FromPeers, s.Rates.FromPeers},
		{"from origins", s.Bytes.FromOrigin, s.Rates.FromOrigin},
		{"to others", s.Bytes.ToOthers, s.Rates.ToOthers},
	} {
		fmt.Fprintf(tw, "%s\t%s\t%s/s\n", b.what, formatBytes(b.all), formatBytes(b.rate))
	}
	fmt.Fprintf(tw, "uploads\t%d of %d\n", s.Uploads, s.Slots)
	if err := tw.Flush(); err != nil {
		return err
	}
	printTrouble(w, s)
	if len(s.Fetching) == 0 {
		return nil
	}
	tw = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "\nARRIVING\tSIZE\tHERE\tRATE\tFROM")
	for _, f := range s.Fetching {
		from := f.URL
		if from == "" {
			from = f.Repository
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s/s\t%s\n", shortBlob(f.Digest), formatBytes(f.Size), percent(f.Present, f.Size), formatBytes(f.Rate), from)
	}
	return tw.Flush()
}

// printTrouble prints what did not go as it should, and nothing of what did.
func printTrouble(w io.Writer, s peer.SwarmStatus) {
	for _, t := range []struct {
		n    int64
		what string
	}{
		{s.WithoutScheduler, "reads without a scheduler"},
		{s.WithoutSeeds, "of them without seeds too, from the origin"},
		{s.Corrupt, "sources sent wrong bytes, which were thrown away"},
		{s.PeerFailures, "sources failed and were replaced"},
		{s.OriginFailures, "reads from origins failed"},
		{s.Hedges, "second sources asked because the first took long"},
		{s.Busy, "answers of peers that they are busy"},
	} {
		if t.n > 0 {
			fmt.Fprintf(w, "%d %s\n", t.n, t.what)
		}
	}
}
