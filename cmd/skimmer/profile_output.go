package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"skimmer/internal/image/profile"
)

func printProfiles(w io.Writer, list []profile.Info) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no profiles: they are learned when images start")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MANIFEST\tPLATFORM\tSTARTS\tLAYERS\tREADS\tCHUNKS\tSIZE\tRECORDED")
	for _, i := range list {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", shortBlob(i.Manifest), i.Platform, i.Starts, i.Layers, i.Reads, i.Chunks,
			formatBytes(i.Bytes), formatAge(time.Since(i.Recorded)))
	}
	return tw.Flush()
}

// printProfile prints a profile's layers and how its reads are spread over
// time, or each of them.
func printProfile(w io.Writer, p profile.Profile, reads bool) error {
	data, err := profile.Encode(p)
	if err != nil {
		return err
	}
	starts := "1 start, on"
	if p.Starts > 1 {
		starts = fmt.Sprintf("%d starts, the last on", p.Starts)
	}
	fmt.Fprintf(w, "%s  %s\nlearned from %s %s; %d reads of %d chunks, %s\n\n",
		p.Manifest, p.Platform, starts, p.Recorded.Format(time.DateTime+" MST"), len(p.Reads), p.Chunks(), formatBytes(int64(len(data))))
	read := make([]int, len(p.Layers))
	for _, r := range p.Reads {
		read[r.Layer] += r.Count
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LAYER\tDIGEST\tCHUNKS\tREAD")
	for i, l := range p.Layers {
		fmt.Fprintf(tw, "%d\t%s\t%d\t%d\n", i, shortBlob(l.Digest), l.Chunks, read[i])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if reads {
		fmt.Fprintln(tw, "AT\tLAYER\tCHUNKS\tSTARTS")
		for _, r := range p.Reads {
			fmt.Fprintf(tw, "%s\t%d\t%d-%d\t%d of %d\n", r.At, r.Layer, r.First, r.First+r.Count-1, r.Starts, p.Starts)
		}
	} else {
		fmt.Fprintln(tw, "FROM\tREADS\tCHUNKS\t")
		for _, b := range timeline(p.Reads) {
			fmt.Fprintf(tw, "%s\t%d\t%d\t%s\n", b.from, b.reads, b.chunks, strings.Repeat("#", b.bar))
		}
	}
	return tw.Flush()
}

// span is a part of a timeline.
type span struct {
	from          time.Duration
	reads, chunks int
	bar           int // how long to draw it
}

// timeline sums up reads by equal parts of time, at most 16. Parts in which
// nothing was read are there, too.
func timeline(reads []profile.Read) []span {
	if len(reads) == 0 {
		return nil
	}
	const most, width = 16, 40
	end := reads[len(reads)-1].At
	step := time.Millisecond
	for scale := []time.Duration{2, 5, 10}; end/step >= most; scale = append(scale[1:], scale[0]*10) {
		step = time.Millisecond * scale[0]
	}
	spans := make([]span, end/step+1)
	longest := 1
	for i := range spans {
		spans[i].from = time.Duration(i) * step
	}
	for _, r := range reads {
		s := &spans[r.At/step]
		s.reads, s.chunks = s.reads+1, s.chunks+r.Count
		longest = max(longest, s.chunks)
	}
	for i := range spans {
		spans[i].bar = (spans[i].chunks*width + longest - 1) / longest
	}
	return spans
}
