package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/anypb"

	"skimmer/internal/blob"
	"skimmer/internal/image/trace"
	"skimmer/internal/lab"
	"skimmer/internal/peer"
	"skimmer/internal/testkit"
)

// TestImageTrace asks a socket that answers as a peer does.
func TestImageTrace(t *testing.T) {
	start := trace.Start{
		Image: "registry.example/python:3.12", Manifest: digest.FromString("m"), Began: time.Unix(0, 0), Settled: time.Second,
		Events: []trace.Event{{Kind: trace.Fault, Took: 5 * time.Millisecond, File: "usr/bin/python3", Chunks: 1, Bytes: 10, Origin: 7}},
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		switch name := r.URL.Query().Get("name"); {
		case name == "", name == "a/b:c&d":
			_ = json.NewEncoder(w).Encode([]trace.Start{{Image: "earlier"}, start})
		default:
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(map[string]string{"kind": blob.NotFound.Error(), "message": "no start of " + name})
		}
	})
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		a := &app{stdout: &out, stderr: &out}
		root := newRootCommand(a)
		root.SetArgs(append([]string{"image", "trace", "--socket", socket, "--containerd", filepath.Join(dir, "none")}, args...))
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	if got, err := run("a/b:c&d"); err != nil || !strings.Contains(got, "usr/bin/python3") || !strings.Contains(got, "origin 7 B") {
		t.Errorf("text: %v\n%s", err, got)
	}
	if got, err := run(); err != nil || !strings.Contains(got, "registry.example/python:3.12") {
		t.Errorf("list: %v\n%s", err, got)
	}
	got, err := run("a/b:c&d", "--output", "json")
	var back trace.Start
	if err != nil || json.Unmarshal([]byte(got), &back) != nil || len(back.Events) != 1 || back.Events[0].Origin != 7 {
		t.Errorf("JSON: %v\n%s", err, got)
	}
	page := filepath.Join(dir, "start.html")
	if _, err := run("a/b:c&d", "--html", page); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(page); err != nil || !bytes.Contains(data, []byte("usr/bin/python3")) {
		t.Errorf("page: %v\n%s", err, data)
	}
	if _, err := run("nobody"); blob.KindOf(err) != blob.NotFound || !strings.Contains(err.Error(), "no start of nobody") {
		t.Errorf("an image nobody started: %v", err)
	}
	if _, err := run("--html", page); err == nil || !strings.Contains(err.Error(), "--html") {
		t.Errorf("a page of nothing: %v", err)
	}
	_ = server.Close()
	if _, err := run("a/b:c&d"); err == nil || !strings.Contains(err.Error(), peer.ErrNotRunning.Error()) {
		t.Errorf("no peer: %v", err)
	}
}

// TestImageOfContainer looks for containers in a real containerd.
func TestImageOfContainer(t *testing.T) {
	testkit.NeedMount(t)                // containerd needs root
	dir, err := os.MkdirTemp("", "ct-") // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	daemon, err := lab.StartContainerd(t.Context(), lab.ContainerdConfig{Dir: filepath.Join(dir, "c"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := daemon.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := containerd.New(daemon.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	for _, c := range []struct{ space, id, image string }{
		{"k8s.io", "abc123", "registry.example/a:1"}, {"default", "abd456", "registry.example/b:1"}, {"default", "abc", "registry.example/c:1"},
	} {
		record := containers.Container{ID: c.id, Image: c.image, Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}, Spec: new(anypb.Any)}
		if _, err := client.ContainerService().Create(namespaces.WithNamespace(t.Context(), c.space), record); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]string{
		"abc123": "registry.example/a:1", "abc1": "registry.example/a:1", "abd": "registry.example/b:1", "abc": "registry.example/c:1", "nobody": "",
	} {
		if got, err := imageOfContainer(t.Context(), daemon.Address(), id); got != want || err != nil {
			t.Errorf("container %s: image %q, %v; want %q", id, got, err, want)
		}
	}
	if got, err := imageOfContainer(t.Context(), daemon.Address(), "ab"); blob.KindOf(err) != blob.Invalid {
		t.Errorf("three containers begin so: image %q, %v", got, err)
	}
}
