package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/config"
	"skimmer/internal/install"
	"skimmer/internal/install/doctor"
)

func newDoctorCommand(a *app) *cobra.Command {
	var o doctor.Options
	var file string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything this node depends on",
		Long: `Check the kernel, the disk, the peer, containerd and its configuration, and
the way to a registry, and say of each what was found and what to do about it.
The exit code is 1 if a check failed.`,
		Example: `  skimmer doctor
  skimmer doctor --registry registry.example --scheduler scheduler.example:8002
  skimmer doctor --output json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := config.DefaultPeer()
			if err := config.Load(config.Find(file, "peer"), &cfg); err != nil {
				return err
			}
			o.DataDir, o.Socket, o.Insecure = cfg.DataDir, snapshotterSocket(cfg), cfg.Origin.Insecure
			if !cmd.Flags().Changed("containerd") {
				o.Containerd = cfg.Snapshotter.Containerd
			}
			if !cfg.Snapshotter.Enable {
				o.Socket, o.Containerd, o.ContainerdConfig = "", "", ""
			}
			checks := doctor.Run(cmd.Context(), o)
			if err := a.print(checks, func(w io.Writer) error { return printChecks(w, checks) }); err != nil {
				return err
			}
			if doctor.Failed(checks) {
				return errors.New("check this node: not all is well")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration file (default /etc/skimmer/peer.yaml where it exists)")
	f.StringVar(&o.Containerd, "containerd", "/run/containerd/containerd.sock", "containerd's `SOCKET`, unless the configuration has another")
	f.StringVar(&o.ContainerdConfig, "containerd-config", install.DefaultContainerdConfig, "containerd's configuration `FILE`")
	f.StringSliceVar(&o.Names, "name", []string{"stargz", "skimmer"}, "what containerd may call the snapshotter")
	f.StringVar(&o.Registry, "registry", "", "a registry's `HOST`, or an image's name, to try to reach")
	f.StringVar(&o.Scheduler, "scheduler", "", "a scheduler's `HOST:PORT` to try to reach")
	f.DurationVar(&o.Timeout, "timeout", 5*time.Second, "how long a check may wait for an answer")
	_ = cmd.MarkFlagFilename("config", "yaml")
	_ = cmd.MarkFlagFilename("containerd-config", "toml")
	return cmd
}

// printChecks writes one line for each check, and its advice below it.
func printChecks(w io.Writer, checks []doctor.Check) error {
	for _, c := range checks {
		fmt.Fprintf(w, "%-4s  %-11s  %s\n", strings.ToUpper(string(c.Status)), c.Name, c.Found)
		if c.Advice != "" {
			if _, err := fmt.Fprintf(w, "%19s-> %s\n", "", c.Advice); err != nil {
				return err
			}
		}
	}
	return nil
}
