package transfer

import (
	"net/http"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func TestOriginCrosses(t *testing.T) {
	for _, c := range []struct{ place, want string }{
		{"registry.example:5000/library/python", "registry.example:5000/library/python"},
		{"https://example.test/a?b=c#d", "https://example.test/a?b=c#d"},
		{"a b", ""},
		{"a\x7f", ""},
		{strings.Repeat("x", maxOrigin+1), ""},
	} {
		req := (&http.Request{Header: http.Header{}}).WithContext(t.Context())
		setOrigin(WithOrigin(t.Context(), c.place, 12345), req.Header)
		place, size := OriginOf(originContext(req))
		if place != c.want || c.want != "" && size != 12345 {
			t.Errorf("%q arrives as %q with %d bytes, want %q", c.place, place, size, c.want)
		}
	}
}

func FuzzOriginHeader(f *testing.F) {
	f.Add("12 registry.example/a")
	f.Add("-1 x")
	f.Add("99999999999999999999 x")
	f.Fuzz(func(t *testing.T, text string) {
		req := (&http.Request{Header: http.Header{headerOrigin: {text}}}).WithContext(t.Context())
		place, size := OriginOf(originContext(req))
		if size < 0 || len(place) > maxOrigin {
			t.Errorf("%q gives %q and %d", text, place, size)
		}
	})
}

// TestWithoutChecksums lets a caller that compares bytes itself have those that
// were damaged on their way.
func TestWithoutChecksums(t *testing.T) {
	c := checker{segments: segments{r: blob.Range{Len: 4}}, loose: true}
	if err := c.expect("0:00000000"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.add([]byte("abcd")); n != 4 || err != nil {
		t.Errorf("got %d, %v; want all bytes and no error", n, err)
	}
	c.loose, c.off = false, 0
	if _, err := c.add([]byte("abcd")); blob.KindOf(err) != blob.Corrupt {
		t.Errorf("got %v, want Corrupt", err)
	}
}
