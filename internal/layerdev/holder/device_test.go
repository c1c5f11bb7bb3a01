package holder

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/layerdev"
	"skimmer/internal/testkit"
)

// oneFile is layerdev.Files of one file, whose content is never ready in a
// daemon that is to be killed.
type oneFile struct {
	p     []byte
	stuck bool
}

func (f *oneFile) Lookup(name string) (uint64, int64, bool) {
	return layerdev.NodeID("layer"), f.Size(), name == "layer"
}

func (f *oneFile) ByNode(node uint64) (layerdev.File, error) {
	if node != layerdev.NodeID("layer") {
		return nil, blob.Errorf(blob.NotFound, "no file has node %d", node)
	}
	return f, nil
}

func (f *oneFile) Names() []string { return []string{"layer"} }

func (f *oneFile) Size() int64 { return int64(len(f.p)) }

func (f *oneFile) Ready(ctx context.Context, _, _ int64) error {
	if !f.stuck {
		return nil
	}
	fmt.Println("blocked")
	<-ctx.Done()
	return ctx.Err()
}

func (f *oneFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(f.p).ReadAt(p, off)
}

func content() []byte { return bytes.Repeat([]byte("0123456789abcdef"), 64<<10) }

// deviceDaemon serves a layer device until it is killed.
func deviceDaemon(socket, dir string) {
	h, err := Ensure(context.Background(), Config{Socket: socket, Command: []string{"/proc/self/exe"}})
	var d *layerdev.Device
	if err == nil {
		d, err = layerdev.Mount(layerdev.DeviceConfig{Dir: dir, Files: &oneFile{content(), true}})
	}
	var conn *os.File
	if err == nil {
		conn, err = d.Connection()
	}
	if err == nil {
		err = h.Put("layers", conn)
	}
	fmt.Println("put:", err)
	if err != nil {
		os.Exit(1)
	}
	select {}
}

// A reader that waits while the daemon is killed with -9, all of its
// descriptors with it, gets its data from the next daemon.
func TestReaderOutlivesDaemon(t *testing.T) {
	testkit.NeedMount(t)
	socket, dir := filepath.Join(t.TempDir(), "s"), t.TempDir()
	t.Setenv(socketEnv, socket)
	first := exec.Command("/proc/self/exe")
	first.Env = append(os.Environ(), deviceEnv+"="+dir)
	first.Stderr = os.Stderr
	out, err := first.StdoutPipe()
	must(t, err)
	must(t, first.Start())
	said := make([]byte, 100)
	n, err := out.Read(said)
	if err != nil || string(said[:n]) != "put: <nil>\n" {
		t.Fatalf("daemon says %q, %v", said[:n], err)
	}
	reader := exec.Command("cat", filepath.Join(dir, "layer"))
	var got bytes.Buffer
	reader.Stdout = &got
	must(t, reader.Start())
	if _, err := out.Read(said); err != nil {
		t.Fatal(err)
	}
	must(t, first.Process.Kill())
	if err := first.Wait(); err == nil {
		t.Error("killed daemon ended well")
	}
	h, err := Ensure(t.Context(), Config{Socket: socket})
	must(t, err)
	defer func() { must(t, h.Stop()) }()
	conn, err := h.Get("layers")
	must(t, err)
	second, err := layerdev.Mount(layerdev.DeviceConfig{Dir: dir, Files: &oneFile{p: content()}, Connection: conn})
	must(t, err)
	if err := reader.Wait(); err != nil || !bytes.Equal(got.Bytes(), content()) {
		t.Errorf("reader got %d bytes, %v", got.Len(), err)
	}
	must(t, second.Close())
}
