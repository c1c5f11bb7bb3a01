package transfer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// standing returns a Limiter whose time stands still, so that what it counted
// can be read off.
func standing(rate int64) *Limiter {
	l := &Limiter{now: func() time.Time { return time.Unix(1, 0) }}
	l.SetRate(rate)
	return l
}

// TestBothEndsCount proves that every byte of a body passes the limiters, on
// every way it can take.
func TestBothEndsCount(t *testing.T) {
	const size = 1 << 20
	content := blobtest.Bytes(1, size)
	for name, source := range map[string]func(*testing.T, [][]byte) (blob.Source, []blob.Ref){"files": inFiles, "relayed": inMemory} {
		for _, n := range []int64{1000, size} {
			src, refs := source(t, [][]byte{content})
			up, down := standing(1<<30), standing(1<<30)
			_, addr := serve(t, ServerConfig{Source: src, Rate: up})
			b := open(t, connect(t, ClientConfig{Rate: down}), addr, refs[0])
			if _, err := fetch(t.Context(), b, blob.Range{Len: n}); err != nil {
				t.Fatal(err)
			}
			for end, l := range map[string]*Limiter{"server": up, "client": down} {
				if got := int64(l.burst() - l.level); got != n {
					t.Errorf("%s, %d bytes: %s counts %d", name, n, end, got)
				}
			}
		}
	}
}

// TestClientThatDoesNotRead takes up a slot only for so long.
func TestClientThatDoesNotRead(t *testing.T) {
	dir := newFolder(t)
	ref := dir.add(t, make([]byte, 32<<20))
	s, addr := serve(t, ServerConfig{Source: dir, SendTimeout: 100 * time.Millisecond})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nRange: bytes=0-%d\r\n\r\n", blobPath(ref.Digest), ref.Size-1); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the upload is cut", func() error {
		if st := s.Stats(); st.Requests != 1 || st.Failed != 1 || st.Uploads != 0 {
			return fmt.Errorf("stats = %+v", st)
		}
		return nil
	})
	// The connection is of use to nobody any more.
	if n, err := io.Copy(io.Discard, c); n >= ref.Size {
		t.Errorf("%d bytes arrive, %v", n, err)
	}
}

// TestClientThatDoesNotAsk does not keep its connection.
func TestClientThatDoesNotAsk(t *testing.T) {
	_, addr := serve(t, ServerConfig{Source: newFolder(t), HeaderTimeout: 100 * time.Millisecond})
	for _, text := range []string{"", "GET /blobs/sha256:", "GET / HTTP/1.1\r\nHost: x\r\nX: "} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
		// It ends, before the test does; with a reset if it did before the text was read.
		if p, err := io.ReadAll(c); err != nil && !errors.Is(err, unix.ECONNRESET) || len(p) > 200 {
			t.Errorf("after %q: %q, %v", text, p, err)
		}
	}
}
