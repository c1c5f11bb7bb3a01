package coldstart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
)

// times is how long the phases of a start took.
type times struct{ pull, create, run time.Duration }

// start starts a container as a kubelet's runtime does: it pulls the image
// (which is one request where everything is here), creates the container with
// its snapshot, and runs args until they end. Then the container is removed,
// which is not counted, and its output returned. The code is the same for every
// snapshotter: the labels that remote ones read mean nothing to others.
func (n *node) start(ctx context.Context, id, ref string, args []string) (t times, output string, err error) {
	snapshotter := n.mode.snapshotter()
	// Connections of the start before would save this one a round trip.
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	hosts := docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchLocalhost),
		docker.WithClient(&http.Client{Transport: transport}))
	if n.mirror != 0 {
		hosts = n.throughMirror(hosts)
	}
	begin := time.Now()
	image, err := n.client.Pull(ctx, ref,
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(snapshotter),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)),
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})))
	if err != nil {
		return t, "", fmt.Errorf("pull %s: %w", ref, err)
	}
	t.pull = time.Since(begin)

	begin = time.Now()
	container, err := n.client.NewContainer(ctx, id,
		containerd.WithImage(image),
		containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs(args...)))
	if err != nil {
		return t, "", fmt.Errorf("create container: %w", err)
	}
	t.create = time.Since(begin)
	defer func() {
		if derr := container.Delete(context.WithoutCancel(ctx), containerd.WithSnapshotCleanup); derr != nil {
			err = errors.Join(err, fmt.Errorf("remove container: %w", derr))
		}
	}()
	begin = time.Now()
	output, ended, err := n.runTask(ctx, container)
	t.run = ended.Sub(begin)
	return t, output, err
}

// throughMirror puts the mirror before the hosts of a registry, as a hosts.toml
// does.
func (n *node) throughMirror(hosts docker.RegistryHosts) docker.RegistryHosts {
	return func(registry string) ([]docker.RegistryHost, error) {
		list, err := hosts(registry)
		if err != nil || len(list) == 0 {
			return list, err
		}
		mirror := list[0]
		mirror.Header = http.Header{"X-Dragonfly-Registry": {mirror.Scheme + "://" + mirror.Host}}
		mirror.Host, mirror.Scheme = fmt.Sprintf("127.0.0.1:%d", n.mirror), "http"
		mirror.Capabilities = docker.HostCapabilityPull | docker.HostCapabilityResolve
		return append([]docker.RegistryHost{mirror}, list...), nil
	}
}

// runTask runs a container's program to its end, and returns when that was.
func (n *node) runTask(ctx context.Context, container containerd.Container) (output string, ended time.Time, err error) {
	var out safeBuffer
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &out, &out), cio.WithFIFODir(n.fifos)))
	if err != nil {
		return "", ended, fmt.Errorf("create task: %w", err)
	}
	defer func() {
		quiet := context.WithoutCancel(ctx)
		if _, derr := task.Delete(quiet, containerd.WithProcessKill); derr != nil {
			err = errors.Join(err, fmt.Errorf("remove task: %w", derr))
		}
		output = strings.TrimSpace(out.String()) // complete only now
		if err == nil && output == "" {
			err = errors.New("run container: it wrote nothing")
		}
	}()
	done, err := task.Wait(ctx)
	if err != nil {
		return "", ended, fmt.Errorf("wait for container: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return "", ended, fmt.Errorf("start container: %w", err)
	}
	select {
	case status := <-done:
		ended = time.Now()
		code, _, err := status.Result()
		if err != nil {
			return "", ended, fmt.Errorf("wait for container: %w", err)
		}
		if code != 0 {
			return "", ended, fmt.Errorf("run container: it ended with %d: %s", code, out.String())
		}
		return "", ended, nil
	case <-ctx.Done():
		_ = task.Kill(context.WithoutCancel(ctx), syscall.SIGKILL) // Delete says what is left
		return "", ended, ctx.Err()
	}
}

// safeBuffer keeps the beginning of what standard output and error write, which come
// from two goroutines.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // mu guards
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len() < 64<<10 {
		b.buf.Write(p)
	}
	return len(p), nil
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
