package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/peer"
)

func newBlobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "blob",
		Short: "Show and remove what the running peer keeps",
		Long: `Show and remove what the running peer keeps on disk: layers and other blobs of
registries, and files of plain URLs.

A blob's digest may be cut short to what no other's begins with, with or without
the algorithm.`,
		Example: `  skimmer blob ls
  skimmer blob stat sha256:4355a46b19d3`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBlobListCommand(a), newBlobStatCommand(a), newBlobRemoveCommand(a))
	return cmd
}

func newBlobListCommand(a *app) *cobra.Command {
	var local localPeer
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List what there is",
		Long: `List all blobs of which the running peer has something, with their size, how
much of it is here, whether an image needs them (pinned), when they were last
used, and where they came from first.

Of a peer with schedulers it also shows how many nodes have all of a blob and how
many have some, this one included.`,
		Example: `  skimmer blob ls
  skimmer blob ls --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := peer.NewClient(local.socket)
			all, err := c.Blobs(cmd.Context())
			if err != nil {
				return err
			}
			reports, note := reportBlobs(cmd.Context(), c, all, "")
			err = a.print(reports, func(w io.Writer) error { return printBlobs(w, reports) })
			return a.printNote(note, err)
		},
	}
	local.socketFlag(cmd)
	return cmd
}

func newBlobStatCommand(a *app) *cobra.Command {
	var local localPeer
	cmd := &cobra.Command{
		Use:   "stat DIGEST",
		Short: "Show what there is of a blob",
		Long: `Show what the running peer has of one blob, and what the scheduler the blob
belongs to knows of it: how many nodes have all of it or some and how many are
being sent some, how many pieces are being read from the origin, and how many
requests are not answered in full.`,
		Example: `  skimmer blob stat 4355a46b19d3
  skimmer blob stat --output json sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: local.completeBlobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := peer.NewClient(local.socket)
			s, err := findBlob(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			reports, note := reportBlobs(cmd.Context(), c, []peer.BlobStatus{s}, s.Digest)
			err = a.print(reports[0], func(w io.Writer) error { return printBlob(w, reports[0]) })
			return a.printNote(note, err)
		},
	}
	local.socketFlag(cmd)
	return cmd
}

func newBlobRemoveCommand(a *app) *cobra.Command {
	var local localPeer
	cmd := &cobra.Command{
		Use:     "rm DIGEST...",
		Aliases: []string{"remove"},
		Short:   "Remove blobs from this machine's disk",
		Long: `Remove blobs from the running peer's disk. What an image needs that is mounted
or pulled, and what is being read, is not removed.`,
		Example: `  skimmer blob rm 4355a46b19d3
  skimmer blob rm sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: local.completeBlobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removeBlobs(cmd.Context(), peer.NewClient(local.socket), args)
		},
	}
	local.socketFlag(cmd)
	return cmd
}

// removeBlobs removes blobs up to the first that cannot be.
func (a *app) removeBlobs(ctx context.Context, c *peer.Client, names []string) error {
	removed := []digest.Digest{}
	var failed error
	for _, name := range names {
		s, err := findBlob(ctx, c, name)
		if err == nil {
			err = c.RemoveBlob(ctx, s.Digest)
		}
		if err != nil {
			failed = err
			break
		}
		removed = append(removed, s.Digest)
	}
	err := a.print(map[string][]digest.Digest{"removed": removed}, func(w io.Writer) error {
		for _, d := range removed {
			if _, err := fmt.Fprintf(w, "removed %s\n", d); err != nil {
				return err
			}
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// findBlob returns the blob that a digest, or the beginning of one, names.
func findBlob(ctx context.Context, c *peer.Client, name string) (peer.BlobStatus, error) {
	if d := digest.Digest(name); blob.CheckDigest(d) == nil {
		return c.Blob(ctx, d)
	}
	all, err := c.Blobs(ctx)
	if err != nil {
		return peer.BlobStatus{}, err
	}
	var found []peer.BlobStatus
	for _, s := range all {
		if beginsWith(s.Digest, name) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return peer.BlobStatus{}, blob.Errorf(blob.NotFound, "find blob %q: the peer has none that begins so", name)
	case 1:
		return found[0], nil
	}
	return peer.BlobStatus{}, blob.Errorf(blob.Invalid, "find blob %q: %d begin so: write more of it", name, len(found))
}

// beginsWith reports whether name is how d begins, with or without algorithm.
func beginsWith(d digest.Digest, name string) bool {
	return name != "" && (len(name) <= len(d) && string(d[:len(name)]) == name ||
		len(name) <= len(d.Encoded()) && d.Encoded()[:len(name)] == name)
}

// completeBlobs completes digests of blobs the peer has.
func (l *localPeer) completeBlobs(cmd *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := peer.NewClient(l.socket).Blobs(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, s := range all {
		if toComplete == "" || beginsWith(s.Digest, toComplete) {
			names = append(names, cobra.CompletionWithDesc(s.Digest.String(), place(s)))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// place says where a blob came from.
func place(s peer.BlobStatus) string {
	if s.URL != "" {
		return s.URL
	}
	return s.Repository
}

func blobState(s peer.BlobStatus) string {
	state := "partial"
	if s.Complete {
		state = "complete"
	}
	if s.Pinned {
		state += ", pinned"
	}
	return state
}

// shortBlob writes as much of an identity as tells blobs apart and what sort
// it is of.
func shortBlob(d digest.Digest) string {
	if blob.CheckDigest(d) != nil {
		return d.String()
	}
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}

// formatAge writes how long ago something was.
func formatAge(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}
