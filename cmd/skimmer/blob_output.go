package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/peer"
)

// blobReport is what is known of a blob here and elsewhere.
type blobReport struct {
	peer.BlobStatus
	// Swarm is what its scheduler knows; nil if it does not, or is not asked.
	Swarm *peer.SwarmBlob `json:"swarm,omitempty"`
}

// reportBlobs adds what schedulers know of the blob d, or, for "", of all. The
// note says in a line what is left out and why; it is empty if nothing is, and
// for nodes without schedulers.
func reportBlobs(ctx context.Context, c *peer.Client, all []peer.BlobStatus, d digest.Digest) (reports []blobReport, note string) {
	var known peer.SwarmBlobs
	var err error
	if len(all) > 0 {
		known, err = c.SwarmBlobs(ctx, d)
	}
	switch {
	case errors.Is(err, blob.NotFound): // no schedulers
	case err != nil:
		note = "what other nodes have is not known: " + err.Error()
	}
	for _, s := range known.Schedulers {
		if s.Error != "" {
			note = fmt.Sprintf("what other nodes have is not all known: scheduler %s does not answer: %s", s.Scheduler, s.Error)
		}
	}
	reports = make([]blobReport, 0, len(all))
	for _, s := range all {
		r := blobReport{BlobStatus: s}
		if b, ok := known.Blobs[s.Digest]; ok {
			r.Swarm = &b
		}
		reports = append(reports, r)
	}
	return reports, note
}

// printNote prints a note where it is no part of the result, unless printing
// that failed with err, which it returns.
func (a *app) printNote(note string, err error) error {
	if err != nil || note == "" {
		return err
	}
	_, err = fmt.Fprintln(a.stderr, note)
	return err
}

func printBlobs(w io.Writer, all []blobReport) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no blobs are kept")
		return err
	}
	inSwarm := false
	for _, s := range all {
		inSwarm = inSwarm || s.Swarm != nil
	}
	holders := func(s string) string {
		if !inSwarm {
			return ""
		}
		return s + "\t"
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tw, "BLOB\tSIZE\tHERE\tSTATE\t%sLAST USED\tFROM\n", holders("NODES"))
	for _, s := range all {
		nodes := "-"
		if b := s.Swarm; b != nil {
			nodes = fmt.Sprintf("%d, %d partly", b.Complete, b.Partial)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s%s\t%s\n", shortBlob(s.Digest), formatBytes(s.Size), percent(s.Present, s.Size),
			blobState(s.BlobStatus), holders(nodes), formatAge(time.Since(s.LastUsed)), place(s.BlobStatus))
	}
	return tw.Flush()
}

func printBlob(w io.Writer, s blobReport) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tw, "blob\t%s\n", s.Digest)
	fmt.Fprintf(tw, "size\t%s (%d bytes)\n", formatBytes(s.Size), s.Size)
	fmt.Fprintf(tw, "here\t%s, %s\n", formatBytes(s.Present), percent(s.Present, s.Size))
	fmt.Fprintf(tw, "state\t%s\n", blobState(s.BlobStatus))
	fmt.Fprintf(tw, "last used\t%s\n", s.LastUsed.Local().Format(time.DateTime))
	if s.MediaType != "" {
		fmt.Fprintf(tw, "media type\t%s\n", s.MediaType)
	}
	fmt.Fprintf(tw, "from\t%s\n", place(s.BlobStatus))
	if b := s.Swarm; b != nil {
		fmt.Fprintf(tw, "nodes\t%d have all of it, %d some, %d are being sent some\n", b.Complete, b.Partial, b.Receiving)
		fmt.Fprintf(tw, "from origin\t%d pieces of %s are being read\n", b.Leased, formatBytes(b.PieceSize))
		fmt.Fprintf(tw, "wants\t%d not answered in full\n", b.Wants)
		fmt.Fprintf(tw, "scheduler\t%s\n", b.Scheduler)
	}
	return tw.Flush()
}
