package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/testkit"
)

// hears is a scheduler's handler that passes on what it is told.
type hears struct{ ups, downs chan error }

func (h hears) Act(schedule.Action) {}
func (h hears) Up()                 { h.ups <- nil }
func (h hears) Down(err error)      { h.downs <- err }

// TestScheduler runs the command as a person does, with a peer that joins, and
// ends it with Ctrl-C.
func TestScheduler(t *testing.T) {
	port, metricsPort, healthPort := testkit.FreePort(t), testkit.FreePort(t), testkit.FreePort(t)
	file := filepath.Join(t.TempDir(), "scheduler.yaml")
	text := fmt.Sprintf(`
server: {ip: 127.0.0.1, port: %d}
metrics: {server: {ip: 127.0.0.1, port: %d}}
health: {server: {ip: 127.0.0.1, port: %d}}
limits: {peers: 10}
`, port, metricsPort, healthPort)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newApp()
	a.stdout, a.stderr = io.Discard, io.Discard
	root := newRootCommand(a)
	root.SetArgs([]string{"scheduler", "--config", file})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()

	h := hears{make(chan error, 100), make(chan error, 100)}
	s, err := remote.Dial(remote.Config{
		Addr: fmt.Sprintf("127.0.0.1:%d", port), Hello: remote.Hello{ID: "a", Addr: ":4000"}, Handler: h,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wait := func(c chan error) error {
		t.Helper()
		select {
		case err := <-c:
			return err
		case err := <-ended:
			t.Fatalf("command ended with %v", err)
		case <-time.After(time.Minute):
			t.Fatal("nothing happens")
		}
		return nil
	}
	_ = wait(h.ups)
	for len(h.downs) > 0 {
		<-h.downs // it tried before the scheduler was there
	}
	for url, want := range map[string]string{
		fmt.Sprintf("http://127.0.0.1:%d/metrics", metricsPort): "\nskimmer_scheduler_peers 1\n",
		fmt.Sprintf("http://127.0.0.1:%d/healthz", healthPort):  "",
	} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: status %d, %v, no %q in it", url, resp.StatusCode, err, want)
		}
	}
	stop()
	for what, c := range map[string]chan error{"the peer": h.downs, "the command": ended} {
		select {
		case err := <-c:
			if c == ended && err != nil {
				t.Errorf("command ended with %v", err)
			}
			if c == h.downs && (!errors.Is(err, blob.Unavailable) || !strings.Contains(err.Error(), "stops")) {
				t.Errorf("peer was told %v, want that the scheduler stops", err)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s hears nothing", what)
		}
	}
}

func TestSchedulerRefusesMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"servr: {port: 1}":              "servr",
		"server: {port: 0}":             "server.port",
		"limits: {peers: 0}":            "limits.peers",
		"limits: {queue: 1KiB}":         "limits.queue",
		"limits: {leaseLife: 0s}":       "limits.leaseLife",
		"limits: {wants: 0}":            "limits.wants",
		"limits: {transfers: 0}":        "limits.transfers",
		"limits: {transferSize: 16}":    "limits.transferSize",
		"tls: {cert: /a.pem}":           "tls.key",
		"tls: {serverName: peers.test}": "tls.ca",
	} {
		file := filepath.Join(t.TempDir(), "scheduler.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a := newApp()
		a.stdout, a.stderr = io.Discard, io.Discard
		root := newRootCommand(a)
		root.SetArgs([]string{"scheduler", "--config", file})
		if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: ended with %v, want one about %s", text, err, want)
		}
	}
	missing := filepath.Join(t.TempDir(), "tls.yaml")
	if err := os.WriteFile(missing, []byte("tls: {cert: /no/c.pem, key: /no/k.pem, ca: /no/ca.pem}"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newApp()
	a.stdout, a.stderr = io.Discard, io.Discard
	root := newRootCommand(a)
	root.SetArgs([]string{"scheduler", "--config", missing})
	if err := root.ExecuteContext(t.Context()); !errors.Is(err, blob.Invalid) {
		t.Errorf("missing certificates: ended with %v, want Invalid", err)
	}
}
