package exchange

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"skimmer/internal/blob"
	"strings"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	for _, c := range []struct {
		in   string
		want ContentRange
	}{
		{"bytes 0-0/1", ContentRange{blob.Range{Len: 1}, 1}},
		{"bytes 5-9/10", ContentRange{blob.Range{Off: 5, Len: 5}, 10}},
		{" Bytes 5-9/* ", ContentRange{blob.Range{Off: 5, Len: 5}, blob.SizeUnknown}},
		{"bytes */10", ContentRange{blob.Range{}, 10}},
		{"bytes 0-9223372036854775806/9223372036854775807", ContentRange{blob.Range{Len: 1<<63 - 1}, 1<<63 - 1}},
	} {
		if got, err := ParseContentRange(c.in); err != nil || got != c.want {
			t.Errorf("%q: got %v, want %v: %v", c.in, got, c.want, err)
		}
	}
	for _, in := range []string{"", "bytes", "bytes 1-2", "bytes 2-1/5", "bytes 1-5/5", "bytes */*", "bytes -1-2/5", "bytes +1-2/5", "bytes 1-2/-5",
		"items 1-2/5", "bytes 1-2/5/6", "bytes 0-9223372036854775807/*", "bytes 0-99999999999999999999/*", "bytes=1-2/5", "bytes 1 - 2/5"} {
		if got, err := ParseContentRange(in); err == nil {
			t.Errorf("%q was accepted as %v", in, got)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-1/2", "bytes */5", "bytes 1-2/*", "bytes 0-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseContentRange(s)
		if err != nil {
			return
		}
		total := "*"
		if c.Total != blob.SizeUnknown {
			total = fmt.Sprint(c.Total)
			if err := c.Range.Check(c.Total); err != nil {
				t.Errorf("%q: %v", s, err)
			}
		}
		part := "*"
		if c.Range.Len > 0 {
			part = c.Range.String()
		}
		if again, err := ParseContentRange("bytes " + part + "/" + total); err != nil || again != c {
			t.Errorf("%q is %v, written again %v: %v", s, c, again, err)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, " 120 ": 2 * time.Minute, "-5": 0, "1.5": 0, "soon": 0,
		"99999999999999999999999": MaxWait, "18446744073709551615": MaxWait,
		"Sat, 01 Jan 2000 00:00:10 GMT": 10 * time.Second, "Fri, 31 Dec 1999 00:00:00 GMT": 0,
		"Fri, 31 Dec 9999 23:59:59 GMT": MaxWait, "Saturday, 01-Jan-00 00:01:00 GMT": time.Minute,
	} {
		if got := parseRetryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"5", "Sat, 01 Jan 2000 00:00:10 GMT", "99999999999999999999", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := parseRetryAfter(s, time.Unix(0, 0)); d < 0 || d > MaxWait {
			t.Errorf("%q: %v", s, d)
		}
	})
}

func TestBackoff(t *testing.T) {
	const base, limit = 200 * time.Millisecond, 10 * time.Second
	for n := 1; n < 100; n++ {
		want := limit
		if n <= 6 {
			want = base << (n - 1)
		}
		for range 50 {
			if d := backoff(n, base, limit); d < want/2 || d > want {
				t.Fatalf("wait after failure %d: %v, want half of %v to all of it", n, d, want)
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "{}": "", "null": "", "<html>": "", `{"errors":[{}]}`: "",
		`{"errors":[{"code":"A","message":"b"},{"message":"c"},{"code":"D"}]}`: "b (A); c; D",
		`{"errors":[{"message":"two\nlines\u001b[31m"}]}`:                      "two lines [31m",
		`{"details":"incorrect username or password"}`:                         "incorrect username or password",
		`{"error":"invalid_grant","error_description":"expired"}`:              "expired",
		`{"errors":[{"message":"` + strings.Repeat("é", 400) + `"}]}`:          strings.Repeat("é", maxErrorText) + "...",
	} {
		if got := parseErrors([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParseErrors(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"A","message":"b"}],"details":"x"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if got := parseErrors(body); len([]rune(got)) > maxErrorText+3 || strings.ContainsAny(got, "\r\n\x1b") {
			t.Errorf("%q: %q", body, got)
		}
	})
}

// TestSent holds answers in parts to what was asked: range 10-19 of 100 bytes.
func TestSent(t *testing.T) {
	want := blob.Range{Off: 10, Len: 10}
	for header, ok := range map[string]bool{
		"bytes 10-19/100": true, "bytes 10-19/*": true, "bytes 10-14/100": true,
		"bytes 9-19/100": false, "bytes 9-18/100": false, "bytes 11-19/100": false, "bytes 10-20/100": false,
		"bytes 10-19/99": false, "bytes */100": false, "": false, "bytes 0-9/100": false,
	} {
		resp := &http.Response{
			StatusCode: http.StatusPartialContent, ContentLength: -1, Body: http.NoBody,
			Header: http.Header{"Content-Range": {header}}, Request: httptest.NewRequest(http.MethodGet, "/", nil),
		}
		got, err := Sent(resp, want, 100)
		if ok && (err != nil || got.Off != want.Off) || !ok && blob.KindOf(err) != blob.Corrupt {
			t.Errorf("%q: got %v, %v", header, got, err)
		}
	}
}
