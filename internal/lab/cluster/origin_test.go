package cluster

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestOriginCounts(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 3*Block/16)
	if err := os.WriteFile(filepath.Join(dir, "f"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/files/", Files(dir))
	mux.HandleFunc("/text", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	mux.HandleFunc("/wrong", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) })
	for _, c := range []struct {
		name   string
		gets   []string // ranges
		method string
		path   string
		want   Sent
	}{
		{"whole", []string{""}, "GET", "/files/f", Sent{1, 3 * Block, 0}},
		{"halves", []string{"bytes=0-6000", "bytes=6001-"}, "GET", "/files/f", Sent{2, 3 * Block, 0}},
		{"twice", []string{"", ""}, "GET", "/files/f", Sent{2, 6 * Block, 3 * Block}},
		{"overlap", []string{"", "bytes=4096-4105"}, "GET", "/files/f", Sent{2, 3*Block + 10, 10}},
		{"no more than a block", []string{"bytes=0-99", "bytes=0-99"}, "GET", "/files/f", Sent{2, 200, 0}},
		{"beyond", []string{"bytes=99999-"}, "GET", "/files/f", Sent{}},
		{"head", []string{""}, "HEAD", "/files/f", Sent{}},
		{"missing", []string{""}, "GET", "/files/g", Sent{}},
		{"text", []string{""}, "GET", "/text", Sent{1, 5, 0}},
		{"error", []string{""}, "GET", "/wrong", Sent{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := NewOrigin(mux)
			server := httptest.NewServer(o)
			defer server.Close()
			for _, span := range c.gets {
				req, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+c.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if span != "" {
					req.Header.Set("Range", span)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
				resp.Body.Close()
			}
			server.Close() // waits for handlers: what they sent is counted
			if got := o.Sent(c.path); got != c.want {
				t.Errorf("sent %+v, want %+v", got, c.want)
			}
			if got := o.Sent("/*"); got != c.want {
				t.Errorf("sent of all paths %+v, want %+v", got, c.want)
			}
			o.Reset()
			if got := o.Sent("/*"); got != (Sent{}) {
				t.Errorf("sent after a reset %+v", got)
			}
		})
	}
}

func TestOriginOnANode(t *testing.T) {
	w := newWorld(t, Link{}, "origin", "a")
	if err := os.WriteFile(filepath.Join(w.Dir(), "f"), make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	o := NewOrigin(Files(w.Dir()))
	stop, err := o.Serve(t.Context(), w.Node("origin"), 80, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: w.Node("a").DialContext}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + w.Node("origin").HostPort(80) + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != 5<<20 || err != nil {
		t.Errorf("received %d bytes: %v", n, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got, want := o.Sent("/f"), (Sent{1, 5 << 20, 0}); got != want {
		t.Errorf("sent %+v, want %+v", got, want)
	}
	if err := stop(); err != nil {
		t.Errorf("stopping again: %v", err)
	}
}
