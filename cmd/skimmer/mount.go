package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/erofs"
	"skimmer/internal/peer"
)

func newMountCommand(a *app) *cobra.Command {
	var local localPeer
	cmd := &cobra.Command{
		Use:   "mount IMAGE DIR",
		Short: "Mount an image lazily on a directory",
		Long: `Mount an image, all its layers merged, read-only on a directory, and return as
soon as it is usable. File data is fetched when it is read, verified, and kept.

The running peer does the work ("skimmer up"). Where there is none, one is
started in the background for as long as anything is mounted.

The image must be lazily mountable (eStargz or zstd:chunked); make it so with
"skimmer image convert".`,
		Example: `  skimmer mount registry.example/python:3.12-esgz /mnt/python
  chroot /mnt/python python3 --version
  skimmer status
  skimmer umount /mnt/python`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeDirAt(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mount(cmd.Context(), local, args[0], args[1])
		},
	}
	local.flags(cmd)
	return cmd
}

func (a *app) mount(ctx context.Context, local localPeer, name, dir string) error {
	target, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	start := time.Now()
	m, err := peer.NewClient(local.socket).Mount(ctx, name, target)
	if errors.Is(err, peer.ErrNotRunning) {
		if err := local.start(ctx, a); err != nil {
			return err
		}
		start = time.Now()
		m, err = peer.NewClient(local.socket).Mount(ctx, name, target)
	}
	if err != nil {
		return err
	}
	took := time.Since(start)
	if here, err := erofs.Mounted(target); err == nil && !here {
		return fmt.Errorf("mount on %s: the peer on %s mounted it in another mount namespace, where this one cannot see it; "+
			"start a peer of your own with: skimmer up --socket PATH --data-dir DIR", target, local.socket)
	}
	return a.print(m, func(w io.Writer) error {
		data := formatBytes(m.Size) + " in all, fetched as it is read"
		if m.Native {
			data = "all of it is here"
		}
		_, err := fmt.Fprintf(w, "mounted %s on %s in %s: %d layers, %s\n"+
			"resolve %s, manifest %s, index %s, metadata %s, mount %s\n",
			m.Name, m.Target, millis(took), m.Layers, data,
			millis(m.Timing.Resolve), millis(m.Timing.Manifest), millis(m.Timing.Index),
			millis(m.Timing.Metadata), millis(m.Timing.Mount))
		return err
	})
}

func newUmountCommand(a *app) *cobra.Command {
	var local localPeer
	var lazily bool
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Take a mounted image away",
		Long: `Unmount an image that "skimmer mount" mounted. What was fetched of it is kept
for the next mount.`,
		Example: `  skimmer umount /mnt/python
  skimmer umount --lazy /mnt/python`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDirAt(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("unmount %s: %w", args[0], err)
			}
			err = peer.NewClient(local.socket).Unmount(cmd.Context(), target, lazily)
			if errors.Is(err, peer.ErrNotRunning) {
				// Complete images stay mounted when their peer is gone.
				if here, merr := erofs.Mounted(target); merr == nil && here {
					err = erofs.Unmount(target, lazily)
				}
			}
			if err != nil {
				return err
			}
			return a.print(map[string]string{"unmounted": target}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "unmounted %s\n", target)
				return err
			})
		},
	}
	local.socketFlag(cmd)
	cmd.Flags().BoolVar(&lazily, "lazy", false, "detach it now even if files in it are open; they stay readable until closed")
	return cmd
}

// completeDirAt completes argument number i as a directory and the others as
// nothing.
func completeDirAt(i int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == i {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}
