package transfer

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

func FuzzPath(f *testing.F) {
	f.Add(blobPath(digest.FromString("x")))
	f.Add(blobPath(digest.SHA512.FromString("x")))
	f.Add(blobPath(digest.NewDigestFromEncoded(blob.AlgorithmURL, digest.FromString("x").Encoded())))
	f.Add("/blobs/url:0")
	f.Add("/blobs/sha256:../../../../etc/passwd")
	f.Add("/blobs/")
	f.Fuzz(func(t *testing.T, path string) {
		d, ok := parsePath(path)
		if !ok {
			return
		}
		if blobPath(d) != path || blob.CheckDigest(d) != nil {
			t.Errorf("path %q is taken for blob %q", path, d)
		}
		if name := path[len(pathPrefix):]; strings.ContainsAny(name, "/\\. %\x00") {
			t.Errorf("path %q is accepted", path)
		}
	})
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=5-99", "bytes=-5", "bytes=5-", "bytes=0-1,2-3", "bytes=00-1", "bytes=9-8", "bytes=+1-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r, ok := parseRange(value)
		if !ok {
			return
		}
		if r.Off < 0 || r.Len <= 0 || r.End() < r.Off {
			t.Errorf("range %q is taken for %+v", value, r)
		}
		if "bytes="+r.String() != value {
			t.Errorf("range %q is taken for %v", value, r)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes */10", "bytes 0-9/*", "bytes 0-10/10", "bytes 0-9/010"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r, size, ok := parseContentRange(value)
		if ok && (r.Check(size) != nil || r.Len > 0 && formatContentRange(r, size) != value) {
			t.Errorf("%q is taken for %v of %d", value, r, size)
		}
	})
}

func FuzzSums(f *testing.F) {
	f.Add("0:01234567", int64(0), int64(10))
	f.Add("262144:0123456789abcdef", int64(262143), int64(2))
	f.Add("1:", int64(0), int64(1)<<60)
	f.Fuzz(func(t *testing.T, value string, off, length int64) {
		r := blob.Range{Off: off, Len: length}
		if length <= 0 || r.Check(1<<62) != nil {
			return
		}
		s, sums, ok := parseSums(value, r)
		if !ok {
			return
		}
		if formatSums(s.align, sums) != strings.ToLower(value) {
			t.Errorf("%q is taken for %d, %x", value, s.align, sums)
		}
		// Walking the segments meets as many as there are sums, and the end.
		n := 0
		for at := r.Off; at < r.End(); at = s.end(at) {
			if n++; s.end(at) <= at {
				t.Fatalf("segment at %d ends at %d", at, s.end(at))
			}
		}
		if n != len(sums) {
			t.Errorf("%d segments for %d sums", n, len(sums))
		}
	})
}

func FuzzHeld(f *testing.F) {
	f.Add("0-99,200-299", int64(1000))
	f.Add("5-1", int64(10))
	f.Add("0-1,1-2", int64(10))
	f.Fuzz(func(t *testing.T, value string, size int64) {
		held, ok := parseHeld(value, size)
		if ok && value != "" && formatHeld(held) != value {
			t.Errorf("%q is taken for %v", value, held)
		}
	})
}

func TestHeldIsCut(t *testing.T) {
	var all []blob.Range
	for i := range int64(maxHeld + 100) {
		all = append(all, blob.Range{Off: 2 * i, Len: 1}, blob.Range{Off: 2*i + 1})
	}
	got, ok := parseHeld(formatHeld(all), 1<<20)
	if !ok || len(got) != maxHeld || got[maxHeld-1] != (blob.Range{Off: 2 * (maxHeld - 1), Len: 1}) {
		t.Errorf("%d runs, %v", len(got), ok)
	}
}

func TestPeersAreCut(t *testing.T) {
	many := strings.Split(strings.Repeat("10.0.0.1:4000 ", 20), " ")[:20]
	if got := parsePeers(formatPeers(many)); !slices.Equal(got, many[:maxPeers]) {
		t.Errorf("peers = %q", got)
	}
	if got := parsePeers(strings.Repeat(" ,x:1,", 100)); len(got) > maxPeers {
		t.Errorf("%d peers", len(got))
	}
	if got := parsePeers(""); got != nil {
		t.Errorf("peers of nothing = %q", got)
	}
}

func TestReasonsAreClean(t *testing.T) {
	got := reasonOf(blob.Errorf(blob.NotFound, "line\r\nX-Evil: 1\x00ü%s", strings.Repeat("y", 1000)))
	if len(got) > maxReason || strings.ContainsAny(got, "\r\n\x00") || !strings.HasPrefix(got, "line") {
		t.Errorf("reason = %q", got)
	}
	if got := reasonOf(blob.Errorf(blob.Internal, "open /secret/place")); strings.Contains(got, "secret") {
		t.Errorf("reason = %q", got)
	}
}
