//go:build e2e

package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skimmer/internal/testkit"
)

// kubelet speaks to a node as a kubelet does that was started with
// --image-service-endpoint: images through the snapshotter, the rest to
// containerd.
type kubelet struct {
	t       *testing.T
	ctx     context.Context
	images  runtime.ImageServiceClient
	runtime runtime.RuntimeServiceClient
	logs    string
}

func newKubelet(t *testing.T, n *node) *kubelet {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	return &kubelet{
		t: t, ctx: ctx, logs: t.TempDir(),
		images:  runtime.NewImageServiceClient(dial(t, n.socket())),
		runtime: runtime.NewRuntimeServiceClient(dial(t, n.containerd.Address())),
	}
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (k *kubelet) sandboxConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: newID("uid"), Namespace: "default"},
		LogDirectory: k.logs,
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
		}},
	}
}

// runPod runs a sandbox, which is removed with all in it when the test ends.
func (k *kubelet) runPod(config *runtime.PodSandboxConfig) string {
	k.t.Helper()
	pod, err := k.runtime.RunPodSandbox(k.ctx, &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		k.t.Fatalf("run sandbox: %v", err)
	}
	k.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
		defer cancel()
		if _, err := k.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			k.t.Errorf("stop sandbox: %v", err)
		}
		if _, err := k.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			k.t.Errorf("remove sandbox: %v", err)
		}
	})
	return pod.PodSandboxId
}

// TestKubelet runs a pod of an image in a registry that wants credentials,
// which the kubelet sends with the pull and with nothing else.
func TestKubelet(t *testing.T) {
	for auth, name := range map[testkit.Auth]string{testkit.BasicAuth: "basic", testkit.TokenAuth: "token"} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, v version) { testKubelet(t, v, auth) })
		})
	}
}

func testKubelet(t *testing.T, v version, auth testkit.Auth) {
	open := testkit.NewRegistry(t, testkit.Options{})
	private := testkit.NewRegistry(t, testkit.Options{
		Auth: auth, Users: map[string]string{"kube": "secret"}, Private: []string{"cri/app", "cri/two"}})
	pause := newImage(t, open, imageSpec{repo: "cri/pause", mid: "cri-pause", top: "pause"})
	app := newImage(t, open, imageSpec{repo: "cri/app", mid: "cri-app", top: "app", big: 10}).copyTo(t, private, "cri/app")
	n := newNode(t, v, options{cri: true, pause: pause.ref, registries: []string{open.Host(), private.Host()},
		peer: "lazy: {background: false}"})
	k := newKubelet(t, n)
	spec := &runtime.ImageSpec{Image: app.ref}

	config := k.sandboxConfig("pod")
	pod := k.runPod(config)
	if _, err := k.images.PullImage(k.ctx, &runtime.PullImageRequest{Image: spec, SandboxConfig: config}); err == nil {
		t.Error("a pull without credentials of a private image succeeded")
	}
	private.ResetStats()
	pulled, err := k.images.PullImage(k.ctx, &runtime.PullImageRequest{Image: spec, SandboxConfig: config,
		Auth: &runtime.AuthConfig{Username: "kube", Password: "secret"}})
	if err != nil {
		t.Fatalf("pull with credentials: %v", err)
	}
	if got := app.fetched(); got > app.size()/4 {
		t.Errorf("the pull fetched %d of %d bytes", got, app.size())
	}
	for i, d := range app.layerDigests() {
		if len(n.grep("prepared remote snapshot", d.String())) == 0 {
			t.Errorf("layer %d was not prepared as a remote snapshot", i)
		}
	}

	container := k.startContainer(pod, config, pulled.ImageRef)
	exec := func(cmd ...string) string {
		t.Helper()
		resp, err := k.runtime.ExecSync(k.ctx, &runtime.ExecSyncRequest{ContainerId: container, Cmd: cmd, Timeout: 60})
		if err != nil || resp.ExitCode != 0 {
			t.Fatalf("exec %v: %v, %v", cmd, resp, err)
		}
		return string(resp.Stdout)
	}
	private.RevokeTokens()
	app.compare(t, exec(append([]string{"/tool", "sha"}, app.files()...)...), app.files())
	eventually(t, "the log file has what the container wrote", func() error {
		p, err := os.ReadFile(filepath.Join(k.logs, "app.log"))
		if err != nil {
			return err
		}
		if !strings.Contains(string(p), "stdout F ready") {
			return fmt.Errorf("it has %q", p)
		}
		return nil
	})
	k.collectImages(n, app, container)
}

func (k *kubelet) startContainer(pod string, config *runtime.PodSandboxConfig, image string) string {
	k.t.Helper()
	made, err := k.runtime.CreateContainer(k.ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "app"}, Image: &runtime.ImageSpec{Image: image},
			LogPath: "app.log", Linux: &runtime.LinuxContainerConfig{},
		}})
	if err != nil {
		k.t.Fatalf("create container: %v", err)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &runtime.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		k.t.Fatalf("start container: %v", err)
	}
	return made.ContainerId
}

// collectImages does what a kubelet does when the disk fills: it asks what
// images take, and removes those that no container uses.
func (k *kubelet) collectImages(n *node, app *testImage, container string) {
	k.t.Helper()
	list := func() (tags []string) {
		resp, err := k.images.ListImages(k.ctx, &runtime.ListImagesRequest{})
		if err != nil {
			k.t.Fatalf("list images: %v", err)
		}
		for _, i := range resp.Images {
			tags = append(tags, i.RepoTags...)
		}
		return tags
	}
	if tags := list(); !slices.Contains(tags, app.ref) {
		k.t.Errorf("images are %v, without %s", tags, app.ref)
	}
	used := func() (bytes uint64) {
		resp, err := k.images.ImageFsInfo(k.ctx, &runtime.ImageFsInfoRequest{})
		if err != nil || len(resp.ImageFilesystems) == 0 {
			k.t.Fatalf("image file system: %v, %v", resp, err)
		}
		for _, fs := range resp.ImageFilesystems {
			bytes += fs.UsedBytes.GetValue()
		}
		return bytes
	}
	// CRI collects what snapshots take every ten seconds.
	eventually(k.t, "the image file system counts the image", func() error {
		if got := used(); got < 8<<20 {
			return fmt.Errorf("%d bytes are used with 16 MiB read", got)
		}
		return nil
	})
	status, err := k.images.ImageStatus(k.ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: app.ref}})
	if err != nil || status.Image == nil {
		k.t.Errorf("image status: %v, %v", status, err)
	}
	if _, err := k.runtime.StopContainer(k.ctx, &runtime.StopContainerRequest{ContainerId: container, Timeout: 10}); err != nil {
		k.t.Fatalf("stop container: %v", err)
	}
	if _, err := k.runtime.RemoveContainer(k.ctx, &runtime.RemoveContainerRequest{ContainerId: container}); err != nil {
		k.t.Fatalf("remove container: %v", err)
	}
	before, _ := usage(n.dataDir)
	if _, err := k.images.RemoveImage(k.ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: app.ref}}); err != nil {
		k.t.Fatalf("remove image: %v", err)
	}
	if tags := list(); slices.Contains(tags, app.ref) {
		k.t.Errorf("images after the removal are %v", tags)
	}
	eventually(k.t, "the data directory shrinks", func() error {
		if size, _ := usage(n.dataDir); size > before-8<<20 {
			return fmt.Errorf("it has %d bytes and had %d", size, before)
		}
		return nil
	})
}
