package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/store"
	"skimmer/internal/testkit"
)

// copied has a file copied as skimmer get does, to where a byte is already.
func copied(t *testing.T, f *File) ([]byte, error) {
	t.Helper()
	defer f.Close()
	to, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := to.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for at := int64(1); ; {
		n, err := f.CopyTo(to, at)
		at += n
		if err != nil {
			p, err2 := os.ReadFile(to.Name())
			if err2 != nil || p[0] != 'x' {
				t.Fatalf("what was there is not any more: %v", err2)
			}
			if err == io.EOF {
				err = nil
			}
			return p[1:], err
		}
	}
}

func TestFileIsHandedOut(t *testing.T) {
	p, c := start(t, nil)
	content := blobtest.Bytes(1, 3<<20+5)
	srv := newWebServer(t, content, `"v1"`)
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", content)
	for _, test := range []struct {
		name     FileName
		part     Part
		want     []byte
		verified bool
	}{
		{FileName{URL: srv.URL + "/dir/file"}, Part{}, content, false},
		{FileName{URL: srv.URL + "/dir/file", Digest: digest.FromBytes(content)}, Part{}, content, true},
		{FileName{URL: srv.URL + "/dir/file", Tag: "part"}, Part{Off: 100_000, Len: 1 << 20}, content[100_000 : 100_000+1<<20], false},
		{FileName{URL: "oci://" + ref.String()}, Part{Off: 7}, content[7:], false},
		{FileName{URL: "oci://" + ref.String()}, Part{}, content, true},
	} {
		for range 2 {
			f, err := c.OpenFile(t.Context(), test.name, test.part)
			if err != nil {
				t.Fatal(err)
			}
			if !f.Handed() {
				t.Errorf("%+v: not handed out", test)
			}
			got, err := copied(t, f)
			if err != nil || !bytes.Equal(got, test.want) || f.Verified != test.verified || f.Kept == 0 {
				t.Errorf("%v %+v: %d bytes, verified %v, kept after %v: %v", test.name, test.part, len(got), f.Verified, f.Kept, err)
			}
			if sum := f.Traffic.Local.Load() + f.Traffic.Origin.Load(); sum < int64(len(test.want)) {
				t.Errorf("%v %+v: only %d bytes are said to come from anywhere", test.name, test.part, sum)
			}
		}
	}
	// What is handed out is for reading, and stays when it is evicted.
	f, err := c.OpenFile(t.Context(), FileName{URL: "oci://" + ref.String()}, Part{})
	if err != nil {
		t.Fatal(err)
	}
	h := f.ReadCloser.(*handed)
	if _, err := h.l.files[0].WriteAt([]byte("x"), 0); err == nil {
		t.Error("a descriptor can be written to")
	}
	testkit.Eventually(t, time.Minute, "the file is removed", func() error { return p.store.Remove(ref.Digest) })
	if got, err := copied(t, f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("after it was removed: %d bytes, %v", len(got), err)
	}
	// Reading and copying may take turns.
	f, err = c.OpenFile(t.Context(), FileName{URL: "oci://" + ref.String()}, Part{})
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 1000)
	if _, err := io.ReadFull(f, head); err != nil || !bytes.Equal(head, content[:1000]) {
		t.Errorf("its head: %v", err)
	}
	if got, err := copied(t, f); err != nil || !bytes.Equal(got, content[1000:]) {
		t.Errorf("the rest: %d bytes, %v", len(got), err)
	}
}

// TestHandedOutWithoutRoom has a store that becomes full: the rest comes over the
// socket, and cannot be kept.
func TestHandedOutWithoutRoom(t *testing.T) {
	var left atomic.Int64
	left.Store(1 << 30)
	_, c := start(t, func(cfg *Config) {
		cfg.Store.MinFree = 1 << 20
		cfg.Store.FS.Space = func(string) (int64, int64, error) { return 1 << 30, left.Load(), nil }
		cfg.Store.FS.Before = func(op store.Op) error {
			if op.Name == store.OpWrite && strings.HasSuffix(op.Path, "/data") && op.Off >= 2<<20 {
				left.Store(0)
			}
			if op.Name == store.OpWrite && left.Load() == 0 {
				return errors.New("no room")
			}
			return nil
		}
	})
	t.Cleanup(func() { left.Store(1 << 30) }) // or the store could not be closed
	content := blobtest.Bytes(1, 5<<20)
	srv := newWebServer(t, content, `"v1"`)
	name := FileName{URL: srv.URL + "/dir/file", Digest: digest.FromBytes(content)}
	f, err := c.OpenFile(t.Context(), name, Part{})
	if err != nil {
		t.Fatal(err)
	}
	if !f.Handed() {
		t.Error("not handed out though there is room at first")
	}
	got, err := copied(t, f)
	if err != nil || !bytes.Equal(got, content) || f.Verified || f.Kept != 0 {
		t.Errorf("%d bytes, verified %v, kept %v: %v", len(got), f.Verified, f.Kept, err)
	}
	got, f, err = fetch(t, c.OpenFile, name, Part{})
	if err != nil || !bytes.Equal(got, content) || f.Verified {
		t.Errorf("again: %d bytes, %v", len(got), err)
	}
	k, err := c.KeepFile(t.Context(), name, Part{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err = kept(k); !errors.Is(err, blob.Full) {
		t.Errorf("keep: %v", err)
	}
}

// kept follows k to its end.
func kept(k *Keeping) (off int64, err error) {
	for {
		if off, err = k.Next(); err == io.EOF {
			return off, nil
		} else if err != nil {
			return off, err
		}
	}
}

func TestFileIsKept(t *testing.T) {
	p, c := start(t, nil)
	content := blobtest.Bytes(1, 3<<20+5)
	srv := newWebServer(t, content, `"v1"`)
	for _, test := range []struct {
		name FileName
		part Part
	}{
		{FileName{URL: srv.URL + "/dir/file", Tag: "part"}, Part{Off: 1 << 20}},
		{FileName{URL: srv.URL + "/dir/file", Digest: digest.FromBytes(content)}, Part{}},
	} {
		k, err := c.KeepFile(t.Context(), test.name, test.part)
		if err != nil {
			t.Fatal(err)
		}
		off, err := kept(k)
		if err != nil || off != int64(len(content)) || k.Verified != (test.part == Part{}) || k.Kept == 0 || k.Traffic.Origin.Load() < k.Range.Len {
			t.Errorf("%+v: %d, %+v, %v", test, off, k, err)
		}
		if missing, err := p.store.Missing(blob.Ref{Digest: k.Digest, Size: k.Size}, k.Range); err != nil || len(missing) > 0 {
			t.Errorf("%+v: %v are missing, %v", test, missing, err)
		}
		if _, err := k.Read(make([]byte, 1)); err == nil {
			t.Error("what is only kept can be read")
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	sent := srv.sent.Load()
	if got, f, err := fetch(t, c.OpenFile, FileName{URL: srv.URL + "/dir/file", Digest: digest.FromBytes(content)}, Part{}); err != nil ||
		!bytes.Equal(got, content) || f.Traffic.Local.Load() != f.Size || srv.sent.Load() != sent {
		t.Errorf("what was kept is fetched again: %v", err)
	}

	srv.set(content, `"v2"`, 1000)
	k, err := c.KeepFile(t.Context(), FileName{URL: srv.URL + "/dir/file"}, Part{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := kept(k); !errors.Is(err, blob.Unavailable) || !strings.Contains(err.Error(), "early") {
		t.Errorf("cut short: %v", err)
	}
	srv.set(content, "", 0)
	if _, err := c.KeepFile(t.Context(), FileName{URL: srv.URL + "/dir/file"}, Part{}); !errors.Is(err, blob.Invalid) {
		t.Errorf("of no version: %v", err)
	}
	if _, err := c.KeepFile(t.Context(), FileName{URL: srv.URL + "/none"}, Part{}); !errors.Is(err, blob.NotFound) {
		t.Errorf("of nothing: %v", err)
	}
}

// hanging sends half of a file and then nothing.
type hanging struct {
	content []byte
	gone    chan struct{} // closed when somebody who was served goes away
}

func (s *hanging) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("ETag", `"v1"`)
	if r := req.Header.Get("Range"); r != "" && r != "bytes=0-" {
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(s.content))
		return
	}
	w.Header().Set("Content-Length", "4194304")
	_, _ = w.Write(s.content[:2<<20])
	w.(http.Flusher).Flush()
	<-req.Context().Done()
	close(s.gone)
}

// TestHandedOutToSomebodyWhoGoes ends the fetching when the client does, and the
// client's reading when its context does.
func TestHandedOutToSomebodyWhoGoes(t *testing.T) {
	_, c := start(t, nil)
	srv := &hanging{content: blobtest.Bytes(1, 4<<20), gone: make(chan struct{})}
	web := httptest.NewServer(srv)
	t.Cleanup(web.Close)
	ctx, cancel := context.WithCancel(t.Context())
	f, err := c.OpenFile(ctx, FileName{URL: web.URL + "/dir/file"}, Part{})
	if err != nil {
		t.Fatal(err)
	}
	if !f.Handed() {
		t.Error("not handed out")
	}
	if _, err := io.ReadFull(f, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(f); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
	f.Close()
	<-srv.gone
}

func FuzzReadMessage(f *testing.F) {
	for _, s := range []string{"have 5\n", "data 0\n", "end {}\n", `end {"local":1,"kind":"corrupt","message":"no"}` + "\n", "have\n", "have -1\n", "end {\n", "x 1\n", "have 5"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := readMessage(bufio.NewReaderSize(bytes.NewReader(p), 64))
		if err != nil {
			return
		}
		if m.n < 0 || m.kind != "have" && m.kind != "data" && m.kind != "end" {
			t.Errorf("%q: %+v", p, m)
		}
		if err := m.end.err(); (err == nil) != (m.end.Message == "") {
			t.Errorf("%q: %v", p, err)
		}
	})
}
