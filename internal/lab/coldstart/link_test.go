package coldstart

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

func TestReserve(t *testing.T) {
	l := lane{bits: 8_000_000} // a byte per microsecond
	start := time.Unix(1000, 0)
	after := func(now time.Duration, n int) time.Duration {
		return l.reserve(start.Add(now), n).Sub(start)
	}
	for _, c := range []struct {
		now  time.Duration
		n    int
		want time.Duration
	}{
		{0, 10_000, 10 * time.Millisecond},                                  // an idle wire has no credit
		{0, 10_000, 20 * time.Millisecond},                                  // who comes next waits for it
		{time.Millisecond, 10_000, 30 * time.Millisecond},                   // whenever that is
		{time.Second, 1000, time.Second + time.Millisecond},                 // nor does it grow with idleness
		{time.Second + time.Minute, 0, time.Second + time.Minute},           // nothing takes no time
		{time.Second, 5000, time.Second + time.Minute + 5*time.Millisecond}, // what was there before comes after it
	} {
		if got := after(c.now, c.n); got != c.want {
			t.Errorf("at %v, %d bytes: sent at %v, want %v", c.now, c.n, got, c.want)
		}
	}
	if got := (&lane{}).reserve(start, 1<<30); got != start {
		t.Errorf("without limit: sent at %v, want at once", got)
	}
}

// TestLink sends a file each way over one connection and looks at what arrives
// and when it cannot have arrived yet.
func TestLink(t *testing.T) {
	path := Path{RTT: 20 * time.Millisecond, Bits: 80_000_000}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB: 105 ms
	server, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	wg.Go(func() { // echoes when it has everything, as an HTTP server does
		conn, err := server.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		data, err := io.ReadAll(conn)
		if err != nil {
			t.Error(err)
		}
		if _, err := conn.Write(data); err != nil {
			t.Error(err)
		}
	})
	l, err := newLink(t.Context(), server.Addr().String(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	start := time.Now()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.host())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back that are not the %d sent", len(got), len(sent))
	}
	// Up and down are one after the other here.
	wire := time.Duration(int64(len(sent)) * 8 * int64(time.Second) / path.Bits)
	if took, least := time.Since(start), 2*(wire-burst)+path.RTT; took < least {
		t.Errorf("took %v, less than the %v that path allows", took, least)
	} else {
		t.Logf("took %v, at least %v", took, least)
	}
}

// TestLinkRoundTrip asks over a link that has been idle: each answer takes a round
// trip at least, and its bytes their time.
func TestLinkRoundTrip(t *testing.T) {
	path := Path{RTT: 10 * time.Millisecond, Bits: 80_000_000}
	server, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l, err := newLink(t.Context(), server.Addr().String(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	near, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.host())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	const size = 40_000 // 4 ms
	answer := make([]byte, size)
	for range 5 {
		begun := time.Now()
		if _, err := near.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write(answer); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(near, answer); err != nil {
			t.Fatal(err)
		}
		if took, least := time.Since(begun), path.RTT+4*time.Millisecond; took < least {
			t.Errorf("took %v, less than the %v that path allows", took, least)
		}
	}
}

// TestLinkWide sends through a wide link what would take minutes through it as
// it is.
func TestLinkWide(t *testing.T) {
	server, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l, err := newLink(t.Context(), server.Addr().String(), Path{RTT: 10 * time.Second, Bits: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.wide.Store(true)
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.host())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	sent := bytes.Repeat([]byte("wide"), 1<<20) // 4 MiB: over 5 minutes
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := far.Write(sent); err != nil {
			t.Error(err)
		}
		_ = far.(*net.TCPConn).CloseWrite() // the reader sees what is missing
	})
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes arrived: %v", len(got), len(sent), err)
	}
}

// TestLinkCloses cuts a connection over which nothing is said.
func TestLinkCloses(t *testing.T) {
	server, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l, err := newLink(t.Context(), server.Addr().String(), Path{RTT: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.host())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	l.close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, error %v, after the link was closed", n, err)
	}
}
