package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestHTTPDrains(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		if r.Context().Err() != nil {
			t.Error("the request's context ended before its time")
		}
		_, _ = io.WriteString(w, "whole answer")
	})
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := (server{h, discard, time.Minute}).serve(ctx, l, func() { close(ready) }); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	<-ready
	wg.Go(func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			t.Errorf("get: %v", err)
			return
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "whole answer" {
			t.Errorf("get: %q, %v", body, err)
		}
	})
	<-arrived
	cancel()
	// The listener is gone before the request is done.
	for {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	close(release)
	wg.Wait()
}

// A request that does not end is cut off, and its context tells it.
func TestHTTPCutsOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{})
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if resp, err := http.Get("http://" + l.Addr().String()); err == nil {
			resp.Body.Close()
		}
	})
	wg.Go(func() {
		<-arrived
		cancel()
	})
	if err := (server{h, discard, time.Millisecond}).serve(ctx, l, func() {}); err != nil {
		t.Errorf("serve: %v", err)
	}
	wg.Wait()
}

func TestHTTPNamesAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = group(HTTP("metrics", l.Addr().String(), http.NotFoundHandler(), discard)).Run(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "run metrics: listen: ") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("got %v, want an error that names metrics and %v", err, l.Addr())
	}
}
