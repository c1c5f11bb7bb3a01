// Command stargz-snapshotter is the baseline of the cold-start experiment: the
// stock stargz snapshotter of github.com/containerd/stargz-snapshotter, put
// together from its own packages in the way its daemon containerd-stargz-grpc
// is, with the same defaults.
//
// SIGTERM and SIGINT end it and take its mounts away.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/fs"
	memorymetadata "github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "stargz-snapshotter: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("stargz-snapshotter", flag.ContinueOnError)
	root := flags.String("root", "/var/lib/containerd-stargz-grpc", "directory for everything that is kept")
	address := flags.String("address", "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock", "unix socket to serve on")
	file := flags.String("config", "", "configuration in TOML; none means the defaults")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := load(*file)
	if err != nil {
		return err
	}
	// Requests under way end with the process, not with its signal: what is
	// mounted has to stay usable until it is unmounted.
	snapshotter, err := service.NewStargzSnapshotterService(context.WithoutCancel(ctx), *root, config,
		service.WithCredsFuncs(dockerconfig.NewDockerconfigKeychain(ctx)),
		service.WithFilesystemOptions(fs.WithMetadataStore(memorymetadata.NewReader)))
	if err != nil {
		return fmt.Errorf("start snapshotter: %w", err)
	}
	defer func() {
		if cerr := snapshotter.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("stop snapshotter: %w", cerr))
		}
	}()
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	return serve(ctx, server, *address)
}

// load reads a configuration file; an empty name is one with nothing in it.
func load(name string) (*service.Config, error) {
	config := &service.Config{}
	if name == "" {
		return config, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := toml.Unmarshal(data, config); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", name, err)
	}
	return config, nil
}

// serve serves on a unix socket until ctx ends.
func serve(ctx context.Context, server *grpc.Server, address string) error {
	if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
		return fmt.Errorf("prepare socket: %w", err)
	}
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("prepare socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer context.AfterFunc(ctx, server.Stop)()
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve on %s: %w", address, err)
	}
	return nil
}
