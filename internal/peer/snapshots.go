package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/snapshot"
	"skimmer/internal/snapshot/cri"
)

// SnapshotterConfig says how containerd is served. With an empty Socket it is
// not.
type SnapshotterConfig struct {
	// Socket is the path of the socket for containerd, and for the kubelet's
	// image service.
	Socket string
	// Containerd is the path of containerd's own socket.
	Containerd string
}

// snapshotterDir is where the snapshotter keeps its things in the data
// directory.
func snapshotterDir(dataDir string) string { return filepath.Join(dataDir, "snapshotter") }

// containerd is the node's side towards containerd.
type containerd struct {
	// Constant after newContainerd.
	cfg         SnapshotterConfig
	log         *slog.Logger
	snapshotter *snapshot.Snapshotter
	conn        *grpc.ClientConn // to containerd, made when first needed
	proxy       *cri.Proxy

	known atomic.Bool // containerd has said that it has the snapshotter
}

// newContainerd opens the snapshotter over images.
func (p *Peer) newContainerd(images *image.Library) (*containerd, error) {
	c := &containerd{cfg: p.cfg.Snapshotter, log: p.log}
	var err error
	c.conn, err = grpc.NewClient("unix:"+c.cfg.Containerd, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxManifest+1<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", c.cfg.Containerd, err)
	}
	c.snapshotter, err = snapshot.New(snapshot.Config{
		Root:      snapshotterDir(p.cfg.DataDir),
		Images:    images,
		ParseName: parseName,
		Content:   c.content,
		Logger:    p.log,
	})
	if err == nil {
		c.proxy, err = cri.New(cri.Config{Backend: c.cfg.Containerd, Credentials: p.pulls.put, Logger: p.log})
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *containerd) close() error {
	var errs []error
	if c.proxy != nil {
		errs = append(errs, c.proxy.Close())
	}
	if c.snapshotter != nil {
		errs = append(errs, c.snapshotter.Close())
	}
	return errors.Join(append(errs, c.conn.Close())...)
}

// registered reports whether containerd has this node's snapshotter among its own.
func (c *containerd) registered(ctx context.Context) bool {
	if c.known.Load() {
		return true
	}
	all, err := introspectionapi.NewIntrospectionClient(c.conn).Plugins(ctx,
		&introspectionapi.PluginsRequest{Filters: []string{"type==io.containerd.snapshotter.v1"}})
	if err != nil {
		c.log.Debug("containerd does not say which snapshotters it has", "error", err)
		return false
	}
	if slices.ContainsFunc(all.Plugins, func(p *introspectionapi.Plugin) bool { return p.Exports["address"] == c.cfg.Socket }) {
		c.known.Store(true)
	}
	return c.known.Load()
}

// stopLimit is how long requests under way may take once the node stops.
const stopLimit = 5 * time.Second

// serve answers containerd until ctx ends.
func (c *containerd) serve(ctx context.Context, ln net.Listener) error {
	srv := grpc.NewServer(c.proxy.ServerOptions()...)
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(c.snapshotter))
	// What was removed while no node ran.
	if err := c.snapshotter.Cleanup(ctx); err != nil {
		c.log.Warn("cannot clean up after removed snapshots", "error", err)
	}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		timer := time.AfterFunc(stopLimit, srv.Stop)
		defer timer.Stop()
		srv.GracefulStop()
	})()
	c.log.Info("snapshotter is ready", "socket", c.cfg.Socket)
	err := srv.Serve(ln)
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve containerd on %s: %w", c.cfg.Socket, err)
}

// maxManifest is the largest manifest that is taken from containerd, in bytes.
const maxManifest = 8 << 20

// content reads a manifest or configuration that containerd has fetched
// already, from its content store. The context brings the namespace.
func (c *containerd) content(ctx context.Context, d digest.Digest) ([]byte, error) {
	stream, err := contentapi.NewContentClient(c.conn).Read(ctx, &contentapi.ReadContentRequest{Digest: d.String()})
	if err != nil {
		return nil, fmt.Errorf("read from containerd's content store: %w", err)
	}
	var data []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read from containerd's content store: %w", err)
		}
		if len(data)+len(part.Data) > maxManifest {
			return nil, blob.Errorf(blob.Invalid, "read from containerd's content store: more than %d bytes", maxManifest)
		}
		data = append(data, part.Data...)
	}
}
