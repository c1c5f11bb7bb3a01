//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// runPeer runs a peer until the test ends and returns where it logs.
func (n *node) runPeer() (log string) {
	n.t.Helper()
	log = filepath.Join(n.t.TempDir(), "log")
	out, err := os.Create(log)
	if err != nil {
		n.t.Fatal(err)
	}
	// context.Background: the test ends it.
	cmd := exec.CommandContext(context.Background(), binary, "up", "--socket", n.socket, "--data-dir", n.dataDir)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			n.t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			n.t.Errorf("peer: %v", err)
		}
		out.Close()
	})
	testkit.Eventually(n.t, time.Minute, "the peer answers", func() error {
		_, err := n.try("status", "--socket", n.socket)
		return err
	})
	return log
}

// fileServer serves content at every path and counts what it sends.
func fileServer(t *testing.T, content []byte, wrap func(http.ResponseWriter) http.ResponseWriter) (url string, sent *atomic.Int64) {
	sent = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(wrap(counter{w, sent}), req, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/dir/file.bin", sent
}

type counter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

func (c counter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

func asItIs(w http.ResponseWriter) http.ResponseWriter { return w }

func TestGetThroughThePeer(t *testing.T) {
	content := blobtest.Bytes(1, 20<<20+3)
	url, sent := fileServer(t, content, asItIs)
	n := newNode(t)
	log := n.runPeer()
	dir := t.TempDir()
	for i := range 2 {
		file := filepath.Join(dir, fmt.Sprint(i))
		out := n.run("get", "--socket", n.socket, "-o", file, url)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if want := []string{"from the origin 20.0 MiB", "from here 20.0 MiB"}[i]; !strings.Contains(out, want) {
			t.Errorf("printed %q, want %q", out, want)
		}
	}
	if extra := sent.Load() - int64(len(content)); extra > 10 {
		t.Errorf("%d bytes were sent more than there are", extra)
	}
	if text, err := os.ReadFile(log); err != nil || strings.Count(string(text), "download task succeeded") != 2 {
		t.Errorf("logged %v:\n%s", err, text)
	}

	// What is kept can be seen, and removed.
	type blobStatus struct {
		Digest        string
		Size, Present int64
		Complete      bool
		URL           string
	}
	all := decode[[]blobStatus](t, n.run("blob", "ls", "--socket", n.socket, "--output", "json"))
	if len(all) != 1 || !all[0].Complete || all[0].URL != url || all[0].Size != int64(len(content)) {
		t.Fatalf("kept %+v", all)
	}
	short := strings.TrimPrefix(all[0].Digest, "url:")[:12]
	if out := n.run("blob", "stat", "--socket", n.socket, short); !strings.Contains(out, all[0].Digest) {
		t.Errorf("stat: %s", out)
	}
	if out := n.run("blob", "rm", "--socket", n.socket, short); !strings.Contains(out, "removed "+all[0].Digest) {
		t.Errorf("rm: %s", out)
	}
	if out := n.run("blob", "ls", "--socket", n.socket); !strings.Contains(out, "no blobs") {
		t.Errorf("ls: %s", out)
	}
	if _, err := n.try("blob", "rm", "--socket", n.socket, short); err == nil || !strings.Contains(err.Error(), "none that begins so") {
		t.Errorf("rm what is gone: %v", err)
	}
}

// TestGetInterrupted sends the signal of Ctrl-C, alone and with a peer, and
// goes on.
func TestGetInterrupted(t *testing.T) {
	for _, alone := range []bool{true, false} {
		content := blobtest.Bytes(1, 8<<20)
		var hanging atomic.Bool
		hanging.Store(true)
		release := make(chan struct{})
		url, sent := fileServer(t, content, func(w http.ResponseWriter) http.ResponseWriter {
			return &hanger{w, 0, 5 << 20, &hanging, release}
		})
		t.Cleanup(func() { close(release) }) // before the server is closed, which waits
		n, how := newNode(t), "--no-peer"
		if !alone {
			n.runPeer()
			how = "--socket=" + n.socket
		}
		file := filepath.Join(t.TempDir(), "file")
		said := filepath.Join(t.TempDir(), "said")
		stderr, err := os.Create(said)
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		// context.Background: the signal ends it.
		cmd := exec.CommandContext(context.Background(), binary, "get", how, "-o", file, url)
		cmd.Stdout, cmd.Stderr = io.Discard, stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, time.Minute, "some of it has arrived", func() error {
			if st, err := os.Stat(file + ".part"); err != nil || st.Size() < 1<<20 {
				log, _ := os.ReadFile(said) // nothing, if it cannot be read
				return fmt.Errorf("not yet (alone %v, %d bytes were sent): %w; it said %q", alone, sent.Load(), err, log)
			}
			return nil
		})
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		log, readErr := os.ReadFile(said)
		if cmd.ProcessState.ExitCode() != 130 || readErr != nil || !strings.Contains(string(log), "the same command continues it") {
			t.Errorf("alone %v: %v, %v, said %q", alone, err, readErr, log)
		}
		hanging.Store(false)
		before := sent.Load()
		n.run("get", how, "-o", file, url)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
			t.Errorf("alone %v: %d bytes, %v", alone, len(got), err)
		}
		if again := sent.Load() - before; again > int64(len(content))-1<<20+10 {
			t.Errorf("alone %v: %d of %d bytes were sent to complete it", alone, again, len(content))
		}
	}
}

// hanger stops before it sends what is behind an offset of the content while
// hanging, whether that is asked for whole or in parts.
type hanger struct {
	http.ResponseWriter
	off, end int64
	hanging  *atomic.Bool
	release  chan struct{}
}

func (h *hanger) Write(p []byte) (int, error) {
	if h.off == 0 {
		// "bytes FIRST-LAST/SIZE", or nothing, which leaves 0.
		_, _ = fmt.Sscanf(h.Header().Get("Content-Range"), "bytes %d-", &h.off)
	}
	if h.off += int64(len(p)); h.off > h.end && h.hanging.Load() {
		h.ResponseWriter.(http.Flusher).Flush()
		<-h.release
	}
	return h.ResponseWriter.Write(p)
}
