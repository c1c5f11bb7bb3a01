//go:build e2e

package swarm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"skimmer/internal/lab"
	"skimmer/internal/lab/cluster"
	"skimmer/internal/testkit"
)

// startStock starts a stock snapshotter on a node, behind the node's mirror, and
// returns a client of it. It cannot reach the registry by itself, to which it
// would speak HTTPS.
func (s *swarm) startStock(program string, n *cluster.Node) snapshots.Snapshotter {
	s.t.Helper()
	// Socket paths are short; directories of nodes need not be.
	dir, err := os.MkdirTemp("", "sks")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	config := "no_background_fetch = true\nnoprefetch = true\n" + lab.StargzMirror(s.host, "127.0.0.1:4001")
	file, socket := filepath.Join(dir, "stargz.toml"), filepath.Join(dir, "s.sock")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	p, err := n.Start(s.t.Context(), cluster.Command{Name: "stargz", Path: program, Args: []string{"--root", filepath.Join(dir, "root"), "--address", socket, "--config", file}})
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		conn.Close()
		if err := p.Stop(); err != nil { // which takes its mounts away
			s.t.Error(err)
		}
	})
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "stargz")
	testkit.Eventually(s.t, patience, "the stock snapshotter answers", func() error {
		_, err := sn.Stat(namespaces.WithNamespace(s.t.Context(), "default"), "none")
		if errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it says %w", err)
	})
	return sn
}

// tocDigest is the annotation of a layer with its TOC's digest.
const tocDigest = "containerd.io/snapshot/stargz/toc.digest"

// mountStock has a stock snapshotter mount the layers of an image, and returns
// where they are.
func mountStock(ctx context.Context, sn snapshots.Snapshotter, ref string, layers []ocispec.Descriptor) (dirs []string, err error) {
	var names []string
	for _, l := range layers {
		names = append(names, l.Digest.String())
	}
	for i, l := range layers {
		// Each by itself: what is mounted is the layer, and not what it is on.
		_, err := sn.Prepare(ctx, fmt.Sprintf("prepare-%d", i), "", snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot.ref":                     l.Digest.String(),
			"containerd.io/snapshot/remote/stargz.reference": ref,
			"containerd.io/snapshot/remote/stargz.digest":    l.Digest.String(),
			"containerd.io/snapshot/remote/stargz.layers":    strings.Join(names, ","),
			tocDigest: l.Annotations[tocDigest],
		}))
		if !errdefs.IsAlreadyExists(err) {
			return nil, fmt.Errorf("layer %v was not mounted lazily: %v", l.Digest, err)
		}
		mounts, err := sn.View(ctx, fmt.Sprintf("view-%d", i), l.Digest.String())
		if err != nil || len(mounts) != 1 {
			return nil, fmt.Errorf("view layer %v: %v, %v", l.Digest, mounts, err)
		}
		dirs = append(dirs, mounts[0].Source)
	}
	return dirs, nil
}

// TestStockStargz runs the stock stargz snapshotter on 8 nodes, each behind the
// mirror of its node, and reads the same files on all: each range leaves the
// origin once.
func TestStockStargz(t *testing.T) {
	program := testkit.BuildStargz(t, "../..")
	s := newSwarm(t, formation{nodes: 8, rate: 200 * mbit})
	img := s.image("library/app")
	layers := s.manifest(img.repo).Layers
	var stock []snapshots.Snapshotter
	for _, p := range s.peers {
		stock = append(stock, s.startStock(program, p.Node()))
	}
	s.origin.Reset()
	read := func(sn snapshots.Snapshotter) error {
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "default"), patience)
		defer cancel()
		dirs, err := mountStock(ctx, sn, img.ref, layers)
		if err != nil {
			return err
		}
		names, _ := img.some()
		for _, name := range names {
			dir := dirs[0]
			if strings.HasPrefix(name, "app/") {
				dir = dirs[1]
			}
			p, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			if sum := sha256.Sum256(p); hex.EncodeToString(sum[:]) != img.files[name].sum {
				return fmt.Errorf("%s has the wrong bytes", name)
			}
		}
		return nil
	}
	if err := read(stock[0]); err != nil {
		t.Fatal(err)
	}
	alone := s.origin.Sent("/v2/" + img.repo + "/blobs/*")
	var wg sync.WaitGroup
	for _, sn := range stock[1:] {
		wg.Go(func() {
			if err := read(sn); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all := s.origin.Sent("/v2/" + img.repo + "/blobs/*")
	t.Logf("%d bytes left the origin for one node, %d for 8; the layers have %d", alone.Bytes, all.Bytes, img.size)
	if float64(all.Bytes) > once*float64(alone.Bytes) {
		t.Errorf("%d bytes left the origin for one node, %d for 8", alone.Bytes, all.Bytes)
	}
	if alone.Bytes == 0 || alone.Bytes > img.size*3/4 {
		t.Errorf("%d bytes left the origin for one node, of %d", alone.Bytes, img.size)
	}
}
