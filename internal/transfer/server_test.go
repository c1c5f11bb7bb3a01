package transfer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// raw sends text as a request and returns the answer, its body read.
func raw(t *testing.T, addr, text string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("answer to %q: %v", text, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("answer to %q: %v", text, err)
	}
	return resp, string(body)
}

func TestAnswers(t *testing.T) {
	dir := newFolder(t)
	ref := dir.add(t, blobtest.Bytes(1, 1000))
	s, addr := serve(t, ServerConfig{Source: dir, MaxRange: 500})
	path := blobPath(ref.Digest)
	other := blobPath(digest.FromString("not here"))

	for _, c := range []struct {
		line, header string
		want         int
	}{
		{"GET " + path, "Range: bytes=0-499", 206},
		{"GET " + path, "Range: bytes=999-999", 206},
		{"HEAD " + path, "X: y", 200},
		{"GET " + other, "Range: bytes=0-9", 404},
		{"HEAD " + other, "X: y", 404},
		{"GET " + path, "X: y", 400},
		{"GET " + path, "Range: bytes=0-500", 416},
		{"GET " + path, "Range: bytes=1000-1000", 416},
		{"GET " + path, "Range: bytes=0-", 400},
		{"GET " + path, "Range: bytes=-10", 400},
		{"GET " + path, "Range: bytes=10-9", 400},
		{"GET " + path, "Range: bytes=0-1,5-6", 400},
		{"GET " + path, "Range: items=0-1", 400},
		{"GET " + path, "Range: bytes=0-1\r\nRange: bytes=0-1", 400},
		{"GET " + path, "Range: bytes=0-99999999999999999999", 400},
		{"GET " + path, "Range: bytes=0-9\r\nContent-Length: 3", 400},
		{"GET " + path + "?x=1", "Range: bytes=0-9", 404},
		{"GET " + path + "/", "Range: bytes=0-9", 404},
		{"GET /blobs/../" + path[1:], "Range: bytes=0-9", 404},
		{"GET /blobs/" + ref.Digest.Encoded(), "Range: bytes=0-9", 404},
		{"GET /blobs/sha256:..%2f..%2fetc%2fpasswd", "Range: bytes=0-9", 404},
		{"GET /blobs/sha256%3A" + ref.Digest.Encoded(), "Range: bytes=0-9", 404},
		{"GET /", "Range: bytes=0-9", 404},
		{"GET /metrics", "X: y", 404},
		{"POST " + path, "X: y", 405},
		{"PUT " + path, "X: y", 405},
		{"DELETE " + path, "Range: bytes=0-9", 405},
		{"GET " + path, "X: " + strings.Repeat("y", 10_000), 431},
	} {
		resp, body := raw(t, addr, fmt.Sprintf("%s HTTP/1.1\r\nHost: x\r\n%s\r\nConnection: close\r\n\r\n", c.line, c.header))
		if resp.StatusCode != c.want {
			t.Errorf("%s, %.40s: %d, want %d: %s", c.line, c.header, resp.StatusCode, c.want, body)
		}
	}
	st := s.Stats()
	// One of them is over before it is a request of ours, two 404 are no refusal.
	if got, want := fmt.Sprint(st.Requests, st.Refused, st.Failed), "27 22 2"; got != want {
		t.Errorf("requests, refused, failed: %s, want %s", got, want)
	}
}

func TestSlotsAreRespected(t *testing.T) {
	f, w := piped(make([]byte, 100))
	others := []string{"10.0.0.1:4000", "10.0.0.2:4000"}
	s, addr := serve(t, ServerConfig{Source: f, Slots: 1, PerRemote: -1,
		Others: func(digest.Digest, blob.Range) []string { return others }})
	c := connect(t, ClientConfig{})
	b := open(t, c, addr, someRef(100))

	first := begin(t, b, w)
	for range 3 {
		wantBusy(t, b, busySlots, others)
	}
	end(t, first, w)
	if st := s.Stats(); st.Busy != 3 || st.Failed != 0 || st.Refused != 0 {
		t.Errorf("stats = %+v, want 3 busy", st)
	}
	idle(t, s)
	if n := c.Stats().Busy; n != 3 {
		t.Errorf("client counts %d busy answers, want 3", n)
	}
}

func TestRemotesHaveALimit(t *testing.T) {
	f, w := piped(make([]byte, 100))
	s, addr := serve(t, ServerConfig{Source: f, PerRemote: 1})
	b := open(t, connect(t, ClientConfig{}), addr, someRef(100))
	first := begin(t, b, w)
	wantBusy(t, b, busyRemote, nil)
	end(t, first, w)
	if st := s.Stats(); st.Busy != 1 {
		t.Errorf("stats = %+v, want 1 busy", st)
	}
}

func TestRateIsRespected(t *testing.T) {
	rate := standing(1000)
	dir := newFolder(t)
	ref := dir.add(t, make([]byte, 100))
	_, addr := serve(t, ServerConfig{Source: dir, Rate: rate})
	b := open(t, connect(t, ClientConfig{}), addr, ref)
	if p, err := fetch(t.Context(), b, blob.Range{Len: 50}); err != nil || len(p) != 50 {
		t.Fatalf("within the rate: %d bytes, %v", len(p), err)
	}
	rate.take(1500)
	wantBusy(t, b, busyRate, nil)
	rate.giveBack(1500)
	if _, err := fetch(t.Context(), b, blob.Range{Len: 10}); err != nil {
		t.Errorf("within the rate again: %v", err)
	}
}

// idle waits until s has given back all slots: clients have their last byte
// before.
func idle(t *testing.T, s *Server) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "slots are given back", func() error {
		if n := s.Stats().Uploads; n != 0 {
			return fmt.Errorf("%d uploads under way", n)
		}
		return nil
	})
}

// begin starts to read a piped blob of 100 bytes, and returns when its first
// byte has come, ahead of the others.
func begin(t *testing.T, b blob.Blob, w *io.PipeWriter) io.ReadCloser {
	t.Helper()
	go func() { _, _ = w.Write(make([]byte, 1)) }()
	rc, err := b.ReadRange(t.Context(), blob.Range{Len: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rc.Close() })
	if n, err := rc.Read(make([]byte, 100)); n != 1 || err != nil {
		t.Fatalf("first byte: %d, %v", n, err)
	}
	return rc
}

// end reads the rest.
func end(t *testing.T, rc io.Reader, w *io.PipeWriter) {
	t.Helper()
	go func() { _, _ = w.Write(make([]byte, 99)) }()
	if p, err := io.ReadAll(rc); len(p) != 99 || err != nil {
		t.Errorf("rest: %d bytes, %v", len(p), err)
	}
}

func wantBusy(t *testing.T, b blob.Blob, reason string, others []string) {
	t.Helper()
	_, err := fetch(t.Context(), b, blob.Range{Len: 10})
	var busy *BusyError
	if !errors.Is(err, blob.Busy) || !errors.As(err, &busy) {
		t.Fatalf("got %v, want busy", err)
	}
	if busy.Reason != reason || !slices.Equal(busy.Others, others) {
		t.Errorf("busy with %q, others %q; want %q, %q", busy.Reason, busy.Others, reason, others)
	}
}

func TestConnectionsHaveALimit(t *testing.T) {
	dir := newFolder(t)
	ref := dir.add(t, make([]byte, 100))
	s, addr := serve(t, ServerConfig{Source: dir, ConnsPerRemote: 2})
	for range 2 { // idle ones, as of somebody who wants them used up
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	testkit.Eventually(t, 30*time.Second, "connections are accepted", func() error {
		if n := s.Stats().Conns; n != 2 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	b := open(t, connect(t, ClientConfig{}), addr, ref)
	if _, err := fetch(t.Context(), b, blob.Range{Len: 10}); !errors.Is(err, blob.Unavailable) {
		t.Errorf("third connection: %v, want unavailable", err)
	}
}

func TestCloseLetsUploadsEnd(t *testing.T) {
	f, w := piped(make([]byte, 100))
	s, addr := serve(t, ServerConfig{Source: f})
	b := open(t, connect(t, ClientConfig{}), addr, someRef(100))
	first := begin(t, b, w)
	closed := make(chan error)
	go func() { closed <- s.Close(t.Context()) }()
	end(t, first, w)
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := fetch(t.Context(), b, blob.Range{Len: 1}); !errors.Is(err, blob.Unavailable) {
		t.Errorf("after close: %v, want unavailable", err)
	}
}

func TestCloseCutsUploads(t *testing.T) {
	f, w := piped(make([]byte, 100))
	s, addr := serve(t, ServerConfig{Source: f})
	b := open(t, connect(t, ClientConfig{}), addr, someRef(100))
	first := begin(t, b, w)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, blob.Canceled) {
		t.Errorf("close: %v, want canceled", err)
	}
	if _, err := io.ReadAll(first); !errors.Is(err, blob.Unavailable) {
		t.Errorf("upload that was cut: %v, want unavailable", err)
	}
}

// TestKindsCross sends a failure of every kind, before and after the first
// byte.
func TestKindsCross(t *testing.T) {
	seen := make(map[int]blob.Kind)
	for _, kind := range blob.Kinds() {
		status, ok := statusOf[kind]
		if before, twice := seen[status]; !ok || status < 400 || twice {
			t.Errorf("kind %v has status %d, like %v", kind, status, before)
		}
		seen[status] = kind
		want := kind
		if kind == blob.Full || kind == blob.Canceled {
			want = blob.Unavailable // it did not happen here
		}
		failure := blob.Errorf(kind, "the reason\nfor it")
		early := &feed{open: failure}
		late := &feed{size: 100, read: func(context.Context, blob.Range) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("first"), &failing{failure})), nil
		}}
		for name, f := range map[string]*feed{"on opening": early, "on reading": late} {
			_, addr := serve(t, ServerConfig{Source: f})
			p, err := fetch(t.Context(), open(t, connect(t, ClientConfig{}), addr, someRef(100)), blob.Range{Len: 100})
			if !errors.Is(err, want) {
				t.Errorf("kind %v %s arrives as %v (%v)", kind, name, blob.KindOf(err), err)
			}
			if name == "on reading" && string(p) != "first" {
				t.Errorf("kind %v: %q came before it", kind, p)
			}
			if told := strings.Contains(err.Error(), "the reason for it"); told != (kind != blob.Internal && (name == "on reading" || kind != blob.Busy)) {
				t.Errorf("kind %v %s: error %q", kind, name, err)
			}
		}
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestSourceThatEndsEarly(t *testing.T) {
	f := &feed{size: 100, read: func(context.Context, blob.Range) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("short")), nil
	}}
	_, addr := serve(t, ServerConfig{Source: f})
	if _, err := fetch(t.Context(), open(t, connect(t, ClientConfig{}), addr, someRef(100)), blob.Range{Len: 100}); !errors.Is(err, blob.Corrupt) {
		t.Errorf("got %v, want corrupt", err)
	}
}
