package scheduler_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/blob"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
)

// TestReports asks from without and from within.
func TestReports(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	a := w.join(ways["remote"], hello("a"))
	w.join(ways["in process"], hello("b"))
	a.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	names := []string{"unknown", blobA}
	peers, err := remote.Peers(t.Context(), remote.Config{Addr: w.addr})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := remote.Blobs(t.Context(), remote.Config{Addr: w.addr}, names)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Comparer(func(a, b time.Time) bool { return a.Sub(b).Abs() <= time.Millisecond }) // what is sent
	if d := cmp.Diff(w.service.Peers(), peers, same); d != "" || len(peers) != 2 || peers[0].ID != "a" || peers[0].Blobs != 1 {
		t.Errorf("peers from without (-within +without):\n%s", d)
	}
	if d := cmp.Diff(w.service.Blobs(names), blobs); d != "" || len(blobs) != 1 || blobs[0].Complete != 1 {
		t.Errorf("blobs from without (-within +without):\n%s", d)
	}
	if none, err := remote.Blobs(t.Context(), remote.Config{Addr: w.addr}, nil); err != nil || len(none) != 0 {
		t.Errorf("no blobs: %v, %v", none, err)
	}
}

func TestReportsOfNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	late, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := remote.Peers(late, remote.Config{Addr: addr}); !errors.Is(err, blob.Timeout) {
		t.Errorf("a scheduler that says nothing: %v, want Timeout", err)
	}
	ln.Close()
	if _, err := remote.Blobs(t.Context(), remote.Config{Addr: addr}, []string{blobA}); !errors.Is(err, blob.Unavailable) ||
		!strings.HasPrefix(err.Error(), "talk to scheduler "+addr+": dial tcp "+addr) || strings.Contains(err.Error(), `"`) {
		t.Errorf("nobody there: %v, want Unavailable", err)
	}
}
