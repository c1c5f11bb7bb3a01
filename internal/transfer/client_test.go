package transfer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
)

// answerOnce reads a request from c and sends the bytes of answer.
func answerOnce(c net.Conn, answer string) {
	if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		_, _ = io.WriteString(c, answer)
	}
}

// rawPeer answers every request with the bytes of answer and then closes the
// connection.
func rawPeer(t *testing.T, answer string) string {
	l := listen(t)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				answerOnce(c, answer)
			})
		}
	})
	return l.Addr().String()
}

// stuckPeer has c reach, whatever it dials, a peer that answers with the bytes of
// answer and then sends nothing for ever. It is reached through pipes: time
// can be that of a bubble.
func stuckPeer(t *testing.T, c *Client, answer string) {
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	ctx := t.Context()
	c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		wg.Go(func() {
			defer there.Close()
			answerOnce(there, answer)
			<-ctx.Done()
		})
		return here, nil
	}
}

// partial puts an answer together.
func partial(headers, body string) string {
	return "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/100\r\n" + headers + "\r\n" + body
}

// quirk is how a peer answers a request for bytes 0-9 of 100.
type quirk struct {
	answer string
	hang   bool  // goes on for ever after it
	want   error // nil for none
	bytes  string
}

// quirks are what peers do.
func quirks() map[string]quirk {
	const body = "0123456789"
	sums := headerCRC + ": " + formatSums(0, []uint32{checksum(0, []byte(body))}) + "\r\n"
	halves := headerCRC + ": " + formatSums(5, []uint32{checksum(0, []byte("01234")), checksum(0, []byte("56789"))}) + "\r\n"
	length := "Content-Length: 10\r\n"
	chunked := "Transfer-Encoding: chunked\r\nTrailer: " + headerCRC + "\r\n"
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

	return map[string]quirk{
		"is fine":                       {partial(length+sums, body), false, nil, body},
		"has two sums":                  {partial(length+halves, body), false, nil, body},
		"relays":                        {partial(chunked, chunk("01234")+chunk("56789")+"0\r\n"+sums+"\r\n"), false, nil, body},
		"stalls at once":                {"", true, blob.Timeout, ""},
		"stalls in the header":          {"HTTP/1.1 206 Part", true, blob.Timeout, ""},
		"stalls in the body":            {partial(length+sums, "01234"), true, blob.Timeout, "01234"},
		"stalls between chunks":         {partial(chunked, chunk("01234")), true, blob.Timeout, "01234"},
		"stalls before the trailer":     {partial(chunked, chunk(body)), true, blob.Timeout, ""},
		"closes at once":                {"", false, blob.Unavailable, ""},
		"closes in the body":            {partial(length+sums, "01234"), false, blob.Unavailable, "01234"},
		"closes between chunks":         {partial(chunked, chunk("01234")), false, blob.Unavailable, "01234"},
		"closes before the trailer":     {partial(chunked, chunk(body)), false, blob.Unavailable, ""},
		"announces less":                {partial("Content-Length: 9\r\n"+sums, "012345678"), false, blob.Corrupt, ""},
		"announces more":                {partial("Content-Length: 11\r\n"+sums, body+"!"), false, blob.Corrupt, ""},
		"relays less":                   {partial(chunked, chunk("01234")+"0\r\n"+sums+"\r\n"), false, blob.Corrupt, "01234"},
		"relays more":                   {partial(chunked, chunk(body+"!")+"0\r\n"+sums+"\r\n"), false, blob.Corrupt, ""},
		"relays until its source fails": {partial(chunked, chunk("01234")+"0\r\n"+headerStatus+": 504\r\n\r\n"), false, blob.Timeout, "01234"},
		"lies":                          {partial(length+sums, "0123456780"), false, blob.Corrupt, ""},
		"lies in the second half":       {partial(length+halves, "0123456780"), false, blob.Corrupt, "01234"},
		"lies while it relays":          {partial(chunked, chunk("0123456780")+"0\r\n"+sums+"\r\n"), false, blob.Corrupt, ""},
		"has no sum":                    {partial(length, body), false, blob.Corrupt, ""},
		"has no sum behind":             {partial(chunked, chunk(body)+"0\r\n\r\n"), false, blob.Corrupt, ""},
		"has a bad sum":                 {partial(length+headerCRC+": 0:zzzzzzzz\r\n", body), false, blob.Corrupt, ""},
		"has too many sums":             {partial(length+headerCRC+": 0:0000000000000000\r\n", body), false, blob.Corrupt, ""},
		"sends all of it":               {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n" + sums + "\r\n" + body, false, blob.Corrupt, ""},
		"sends another range":           {strings.Replace(partial(length+sums, body), "0-9", "1-10", 1), false, blob.Corrupt, ""},
		"has another size":              {strings.Replace(partial(length+sums, body), "/100", "/101", 1), false, blob.Corrupt, ""},
		"is busy":                       {"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", false, blob.Busy, ""},
		"is busy with us":               {"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n", false, blob.Busy, ""},
		"does not have it":              {"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false, blob.NotFound, ""},
		"has less than we know":         {"HTTP/1.1 416 No\r\nContent-Range: bytes */5\r\nContent-Length: 0\r\n\r\n", false, blob.Corrupt, ""},
		"takes smaller ranges only":     {"HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n", false, blob.Invalid, ""},
		"sends us elsewhere":            {"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", false, blob.Unavailable, ""},
		"fails and stalls":              {"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n", true, blob.Internal, ""},
		"does not speak HTTP":           {"220 mail.example ESMTP\r\n", false, blob.Unavailable, ""},
		"talks too much":                {"HTTP/1.1 206 Partial Content\r\nX: " + strings.Repeat("y", 100_000) + "\r\n\r\n", false, blob.Unavailable, ""},
	}
}

func TestQuirks(t *testing.T) {
	for name, q := range quirks() {
		check := func(t *testing.T, c *Client, addr string) {
			p, err := fetch(t.Context(), open(t, c, addr, someRef(100)), blob.Range{Len: 10})
			if q.want == nil && err != nil || q.want != nil && !errors.Is(err, q.want) {
				t.Errorf("a peer that %s: %v, want %v", name, err, q.want)
			}
			if string(p) != q.bytes {
				t.Errorf("a peer that %s: %q came, want %q", name, p, q.bytes)
			}
		}
		t.Run(name, func(t *testing.T) {
			if !q.hang {
				check(t, connect(t, ClientConfig{StallTimeout: time.Minute}), rawPeer(t, q.answer))
				return
			}
			synctest.Test(t, func(t *testing.T) {
				c := connect(t, ClientConfig{StallTimeout: time.Minute})
				stuckPeer(t, c, q.answer)
				begun := time.Now()
				check(t, c, "peer.test:1")
				if took := time.Since(begun); took != time.Minute {
					t.Errorf("a peer that %s was waited for for %v, want a minute", name, took)
				}
			})
		})
	}
}

func TestRefusedConnection(t *testing.T) {
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	c := connect(t, ClientConfig{})
	if _, err := fetch(t.Context(), open(t, c, addr, someRef(100)), blob.Range{Len: 10}); !errors.Is(err, blob.Unavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	if st := c.Stats(); st.Failed != 1 || st.Requests != 1 {
		t.Errorf("stats = %+v", st)
	}
}

// TestOpenAsksNothing opens a blob of known size at a peer that is not there.
func TestOpenAsksNothing(t *testing.T) {
	c := connect(t, ClientConfig{})
	b := open(t, c, "127.0.0.1:1", someRef(100))
	if p, err := fetch(t.Context(), b, blob.Range{Off: 100}); err != nil || len(p) != 0 {
		t.Errorf("empty range: %v", err)
	}
	if n := c.Stats().Requests; n != 0 || b.Size() != 100 {
		t.Errorf("%d requests, size %d", n, b.Size())
	}
}

func TestConnectionsAreKept(t *testing.T) {
	dir := newFolder(t)
	ref := dir.add(t, make([]byte, 1<<20))
	s, addr := serve(t, ServerConfig{Source: dir})
	b := open(t, connect(t, ClientConfig{}), addr, ref)
	for i := range 20 {
		if _, err := fetch(t.Context(), b, blob.Range{Off: int64(i), Len: 300_000}); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Stats().Conns; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestProxiesAreNotUsed(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	if c := connect(t, ClientConfig{}); c.transport.Proxy != nil {
		t.Error("the client asks for a proxy")
	}
}
