package ranges_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/mirror/ranges"
)

// open opens a blob in memory.
func open(t testing.TB, content []byte) blob.Blob {
	var m blobtest.Memory
	return openRef(t, &m, m.Add(content))
}

func openRef(t testing.TB, src blob.Source, ref blob.Ref) blob.Blob {
	t.Helper()
	b, err := src.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// request returns a request with the fields of h.
func request(t testing.TB, method string, h http.Header) *http.Request {
	req := httptest.NewRequestWithContext(t.Context(), method, "/v2/x", nil)
	req.Header = h
	return req
}

// serve answers one request and checks what holds for all answers.
func serve(t testing.TB, method string, h http.Header, c ranges.Content) *http.Response {
	t.Helper()
	rec := httptest.NewRecorder()
	sent, err := ranges.Serve(rec, request(t, method, h), c)
	resp := rec.Result()
	if err != nil || sent.Status != resp.StatusCode {
		t.Fatalf("%s %v: %+v, %v", method, h, sent, err)
	}
	length := rec.Header().Get("Content-Length")
	switch n := strconv.Itoa(rec.Body.Len()); {
	case resp.StatusCode == 304 && length != "", resp.StatusCode != 304 && method == http.MethodGet && length != n:
		t.Errorf("%s %v: %d with length %q and %s bytes", method, h, resp.StatusCode, length, n)
	case method == http.MethodHead && n != "0":
		t.Errorf("%s %v: %s bytes", method, h, n)
	}
	if resp.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("%s %v: does not say that it takes ranges: %v", method, h, resp.Header)
	}
	return resp
}

// part is a range of an answer.
type part struct {
	contentRange, mediaType, body string
}

// partsOf takes an answer apart.
func partsOf(t testing.TB, resp *http.Response) []part {
	t.Helper()
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return []part{{resp.Header.Get("Content-Range"), resp.Header.Get("Content-Type"), string(body)}}
	}
	if r, ok := resp.Header["Content-Range"]; ok {
		t.Errorf("several parts, and Content-Range %q of the whole", r)
	}
	var all []part
	for r := multipart.NewReader(resp.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, part{p.Header.Get("Content-Range"), p.Header.Get("Content-Type"), string(body)})
	}
}

// randomSet writes a Range header of small numbers, and says whether its
// ranges overlap.
func randomSet(rng *rand.Rand, size int64) (value string, overlap bool) {
	var specs []string
	seen := make([]bool, size)
	for range 1 + rng.IntN(5) {
		from := rng.Int64N(size + size/4)
		to := from + rng.Int64N(size/3)
		spec := fmt.Sprintf("%d-%d", from, to)
		switch rng.IntN(6) {
		case 0:
			spec, to = fmt.Sprintf("%d-", from), size-1
		case 1:
			n := 1 + rng.Int64N(size)
			spec, from, to = fmt.Sprintf("-%d", n), size-n, size-1
		}
		specs = append(specs, spec)
		for i := from; i <= to && i < size; i++ {
			overlap = overlap || seen[i]
			seen[i] = true
		}
	}
	return "bytes=" + strings.Join(specs, []string{",", ", ", " , ,"}[rng.IntN(3)]), overlap
}

// TestServeAsTheStandardLibrary compares with http.ServeContent wherever the
// two read RFC 9110 in the same way: not where ranges overlap, which it sends
// twice.
func TestServeAsTheStandardLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	content := blobtest.Bytes(1, 500)
	b := open(t, content)
	mod := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	dates := []string{mod.Format(http.TimeFormat), mod.Add(time.Hour).Format(http.TimeFormat), mod.Add(-time.Hour).Format(http.TimeFormat), "yesterday"}
	tags := []string{`"a"`, `W/"a"`, `"b"`, `"b", "a"`, `W/"b" , W/"a"`, `"b,c"`, `*`, `a`, `"b", a, "a"`, ``}
	statuses := make(map[int]int)
	for range 8000 {
		c := ranges.Content{Blob: b, MediaType: "application/x-test", ETag: []string{`"a"`, `W/"a"`, ""}[rng.IntN(3)]}
		if rng.IntN(2) == 0 {
			c.ModTime = mod
		}
		h := make(http.Header)
		method := http.MethodGet
		value, overlap := randomSet(rng, int64(len(content)))
		if !overlap && rng.IntN(5) > 0 {
			h.Set("Range", value)
		} else if rng.IntN(2) == 0 {
			method = http.MethodHead
		}
		for _, name := range []string{"If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"} {
			switch {
			case rng.IntN(4) > 0:
			case strings.HasSuffix(name, "Since") || name == "If-Range" && rng.IntN(2) == 0:
				h.Set(name, dates[rng.IntN(len(dates))])
			case name == "If-Range":
				h.Set(name, tags[rng.IntN(3)])
			default:
				h.Set(name, tags[rng.IntN(len(tags))])
			}
		}
		rec := httptest.NewRecorder()
		rec.Header().Set("Content-Type", c.MediaType)
		if c.ETag != "" {
			rec.Header().Set("Etag", c.ETag)
		}
		http.ServeContent(rec, request(t, method, h.Clone()), "", c.ModTime, bytes.NewReader(content))
		want, got := rec.Result(), serve(t, method, h, c)
		statuses[got.StatusCode]++
		if got.StatusCode != want.StatusCode {
			t.Fatalf("%s %v of %+v: %d, want %d", method, h, c, got.StatusCode, want.StatusCode)
		}
		compared := []string{"Etag", "Last-Modified", "Content-Range", "Content-Type"}
		switch got.StatusCode {
		case 412, 416:
			compared = compared[2:3]
		case 200, 206:
			if a, b := partsOf(t, got), partsOf(t, want); !slices.Equal(a, b) {
				t.Fatalf("%v: got %q, want %q", h, a, b)
			}
			if len(value) > 0 && strings.HasPrefix(got.Header.Get("Content-Type"), "multipart/") {
				compared = compared[:3]
			}
			if a, b := got.Header.Get("Content-Length"), want.Header.Get("Content-Length"); a != b && len(compared) == 4 {
				t.Errorf("%s %v: length %s, want %s", method, h, a, b)
			}
		}
		for _, name := range compared {
			if a, b := got.Header.Get(name), want.Header.Get(name); a != b {
				t.Fatalf("%s %v: %d with %s %q, want %q", method, h, got.StatusCode, name, a, b)
			}
		}
	}
	for _, s := range []int{200, 206, 304, 412, 416} {
		if statuses[s] < 50 {
			t.Errorf("only %d of the answers were %d", statuses[s], s)
		}
	}
}

// TestServeWhatIsAskedFor has sets of all kinds, from a store that has some
// of the bytes.
func TestServeWhatIsAskedFor(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	content := blobtest.Bytes(2, 5000)
	size := int64(len(content))
	sources := map[string]blob.Blob{"memory": open(t, content), "backwards": backwards{open(t, content)}}
	src, ref := held(t, content)
	sources["store"] = openRef(t, src, ref)
	for name, b := range sources {
		for range 1000 {
			value, _ := randomSet(rng, size)
			resp := serve(t, http.MethodGet, http.Header{"Range": {value}}, ranges.Content{Blob: b})
			want := wanted(value, size)
			if resp.StatusCode == 416 {
				if slices.Contains(want, true) || resp.Header.Get("Content-Range") != "bytes */5000" {
					t.Errorf("%s: %q: 416 %v", name, value, resp.Header)
				}
				continue
			}
			if resp.StatusCode != 206 {
				t.Fatalf("%s: %q: %d", name, value, resp.StatusCode)
			}
			for _, p := range partsOf(t, resp) {
				var from, to, of int64
				if _, err := fmt.Sscanf(p.contentRange, "bytes %d-%d/%d", &from, &to, &of); err != nil || of != size {
					t.Fatalf("%s: %q: Content-Range %q, %v", name, value, p.contentRange, err)
				}
				if p.body != string(content[from:to+1]) {
					t.Errorf("%s: %q: wrong bytes for %q", name, value, p.contentRange)
				}
				for i := from; i <= to; i++ {
					if !want[i] {
						t.Fatalf("%s: %q: byte %d came, unasked or a second time", name, value, i)
					}
					want[i] = false
				}
			}
			if i := slices.Index(want, true); i >= 0 {
				t.Errorf("%s: %q: byte %d did not come", name, value, i)
			}
		}
	}
}

// TestServeHundredsOfRanges asks as a lazy snapshotter does.
func TestServeHundredsOfRanges(t *testing.T) {
	content := blobtest.Bytes(3, 16<<20)
	var specs []string
	var want []part
	for off := 100; len(specs) < 500; off += 20 << 10 {
		end := off + 11<<10
		if len(specs) == 250 {
			end = off + 5<<20 // more than is read together
		}
		r := fmt.Sprintf("%d-%d", off, end-1)
		specs = append(specs, r)
		want = append(want, part{fmt.Sprintf("bytes %s/%d", r, len(content)), "application/x-layer", string(content[off:end])})
		off = end - 11<<10
	}
	h := http.Header{"Range": {"bytes=" + strings.Join(specs, ",")}}
	src, ref := held(t, content)
	for name, b := range map[string]blob.Blob{"memory": open(t, content), "backwards": backwards{open(t, content)}, "store": openRef(t, src, ref)} {
		resp := serve(t, http.MethodGet, h, ranges.Content{Blob: b, MediaType: "application/x-layer"})
		if got := partsOf(t, resp); resp.StatusCode != 206 || !slices.Equal(got, want) {
			t.Errorf("%s: %d with %d parts, which are not those asked for", name, resp.StatusCode, len(got))
		}
	}
}

// TestServeByTheBook has what http.ServeContent sees differently.
func TestServeByTheBook(t *testing.T) {
	content := blobtest.Bytes(1, 1000)
	c := ranges.Content{Blob: open(t, content), ETag: `"a"`, Header: http.Header{"X-More": {"yes"}, "Content-Range": {"no"}, "Content-Length": {"7"}}}
	empty := ranges.Content{Blob: open(t, nil)}
	for _, test := range []struct {
		name   string
		method string
		header http.Header
		c      ranges.Content
		status int
		length string
		ranges string
	}{
		{"no range of a head", "HEAD", http.Header{"Range": {"bytes=0-9"}}, c, 200, "1000", ""},
		{"malformed", "GET", http.Header{"Range": {"bytes=9-8"}}, c, 200, "1000", ""},
		{"two fields", "GET", http.Header{"Range": {"bytes=0-0", "bytes=2-2"}}, c, 200, "1000", ""},
		{"any case", "GET", http.Header{"Range": {"Bytes=0-0"}}, c, 206, "1", "bytes 0-0/1000"},
		{"zero bytes of the end", "GET", http.Header{"Range": {"bytes=-0"}}, c, 416, "0", "bytes */1000"},
		{"overlapping", "GET", http.Header{"Range": {"bytes=0-9,5-14"}}, c, 206, "15", "bytes 0-14/1000"},
		{"one left", "GET", http.Header{"Range": {"bytes=5000-,5-14"}}, c, 206, "10", "bytes 5-14/1000"},
		{"lists in two fields", "GET", http.Header{"If-None-Match": {`"b"`, `"a"`}}, c, 304, "", ""},
		{"no comma", "GET", http.Header{"If-None-Match": {`"b" "a"`}}, c, 200, "1000", ""},
		{"precondition before range", "GET", http.Header{"If-Match": {`"b"`}, "Range": {"bytes=5000-"}}, c, 412, "0", ""},
		{"tag and more in if-range", "GET", http.Header{"If-Range": {`"a", "a"`}, "Range": {"bytes=0-0"}}, c, 200, "1000", ""},
		{"two if-ranges", "GET", http.Header{"If-Range": {`"a"`, `"a"`}, "Range": {"bytes=0-0"}}, c, 200, "1000", ""},
		{"whole of nothing", "GET", http.Header{}, empty, 200, "0", ""},
		{"part of nothing", "GET", http.Header{"Range": {"bytes=0-"}}, empty, 416, "0", "bytes */0"},
		{"end of nothing", "GET", http.Header{"Range": {"bytes=-5"}}, empty, 200, "0", ""},
	} {
		resp := serve(t, test.method, test.header, test.c)
		h := resp.Header
		if resp.StatusCode != test.status || h.Get("Content-Length") != test.length || h.Get("Content-Range") != test.ranges {
			t.Errorf("%s: %d %v", test.name, resp.StatusCode, h)
		}
		if h.Get("X-More") != test.c.Header.Get("X-More") {
			t.Errorf("%s: Content.Header was not sent: %v", test.name, h)
		}
		if kind := h.Get("Content-Type"); test.status < 300 && kind != "application/octet-stream" {
			t.Errorf("%s: Content-Type %q", test.name, kind)
		}
	}
}

// TestServeNoForeignLines has a media type, which a manifest can set, that
// would end the header of a part.
func TestServeNoForeignLines(t *testing.T) {
	c := ranges.Content{Blob: open(t, blobtest.Bytes(1, 100)), MediaType: "text/html\r\nContent-Range: bytes 7-7/8\r\n\r\nx"}
	resp := serve(t, http.MethodGet, http.Header{"Range": {"bytes=0-0,2-2"}}, c)
	for _, p := range partsOf(t, resp) {
		if p.mediaType != "application/octet-stream" || len(p.body) != 1 {
			t.Errorf("got %+v", p)
		}
	}
}

// FuzzServe has headers with anything in them, as clients can send.
func FuzzServe(f *testing.F) {
	for _, s := range []string{"", `"a"`, `W/"a"`, `"b" , "a"`, "*", `"`, `W/`, "Fri, 02 Jan 2026 03:04:05 GMT"} {
		f.Add("bytes=0-3,7-9,-5", s, s, s)
		f.Add("bytes=5-", "", s, "")
	}
	content := blobtest.Bytes(1, 100)
	b := open(f, content)
	f.Fuzz(func(t *testing.T, value, ifRange, ifMatch, ifNoneMatch string) {
		h := http.Header{"Range": {value}, "If-Range": {ifRange}, "If-Match": {ifMatch}, "If-None-Match": {ifNoneMatch}, "If-Modified-Since": {ifRange}}
		resp := serve(t, http.MethodGet, h, ranges.Content{Blob: b, ETag: `"a"`, ModTime: time.Unix(1767323045, 0)})
		if resp.StatusCode != 200 && resp.StatusCode != 206 {
			return
		}
		for _, p := range partsOf(t, resp) {
			from, to := 0, len(content)-1
			if _, err := fmt.Sscanf(p.contentRange, "bytes %d-%d/100", &from, &to); err != nil && resp.StatusCode == 206 {
				t.Fatalf("%v: %q: %v", h, p.contentRange, err)
			}
			if p.body != string(content[from:to+1]) {
				t.Fatalf("%v: wrong bytes for %q", h, p.contentRange)
			}
		}
	})
}
