package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"skimmer/internal/layerdev/holder"
)

// newHoldCommand returns the command of the process that keeps the layer
// device alive while no daemon serves it. The daemon starts it; people do not
// need it.
func newHoldCommand(a *app) *cobra.Command {
	cfg := holder.ServerConfig{}
	cmd := &cobra.Command{
		Use:     "hold --socket PATH",
		Short:   "Keep descriptors for the daemon while it is being replaced",
		Example: "  skimmer hold --socket /var/lib/skimmer/device.sock",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Logger = slog.New(slog.NewTextHandler(a.stderr, nil))
			return holder.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&cfg.Socket, "socket", "", "absolute path of the socket to listen on")
	cmd.Flags().DurationVar(&cfg.Idle, "idle", holder.DefaultIdle, "end after holding nothing for so long")
	_ = cmd.MarkFlagRequired("socket")
	return cmd
}
