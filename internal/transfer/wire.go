package transfer

import (
	"fmt"
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// pathPrefix is what all paths begin with.
const pathPrefix = "/blobs/"

// blobPath returns the path of blob d.
func blobPath(d digest.Digest) string { return pathPrefix + d.String() }

// parsePath returns the blob that path names; false for any path blobPath
// does not make of a valid digest.
func parsePath(path string) (digest.Digest, bool) {
	name, ok := strings.CutPrefix(path, pathPrefix)
	if !ok || len(name) > 256 {
		return "", false
	}
	d := digest.Digest(name)
	return d, blob.CheckDigest(d) == nil
}

// parseNumber reads a decimal number as we write them: digits only, no more
// than 18 of them.
func parseNumber(s string) (int64, bool) {
	if s == "" || len(s) > 18 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// parseRun reads "first-last" as a range; never an empty one.
func parseRun(s string) (blob.Range, bool) {
	a, b, ok := strings.Cut(s, "-")
	first, ok1 := parseNumber(a)
	last, ok2 := parseNumber(b)
	if !ok || !ok1 || !ok2 || last < first {
		return blob.Range{}, false
	}
	return blob.Range{Off: first, Len: last - first + 1}, true
}

// parseRange reads the value of a Range header. Lists of ranges, open ends
// and suffixes are refused.
func parseRange(value string) (blob.Range, bool) {
	run, ok := strings.CutPrefix(value, "bytes=")
	if !ok {
		return blob.Range{}, false
	}
	return parseRun(run)
}

// formatContentRange writes the value of Content-Range for r of size bytes.
func formatContentRange(r blob.Range, size int64) string {
	return fmt.Sprintf("bytes %v/%d", r, size)
}

// parseContentRange reads what formatContentRange writes. In the answer to a
// range outside the blob ("bytes */size") the range is empty.
func parseContentRange(value string) (r blob.Range, size int64, ok bool) {
	value, ok = strings.CutPrefix(value, "bytes ")
	run, total, found := strings.Cut(value, "/")
	if !ok || !found {
		return blob.Range{}, 0, false
	}
	if size, ok = parseNumber(total); !ok {
		return blob.Range{}, 0, false
	}
	if run == "*" {
		return blob.Range{}, size, true
	}
	r, ok = parseRun(run)
	return r, size, ok && r.Check(size) == nil
}

// formatHeld writes the value of X-Skimmer-Held. Empty ranges are left out.
func formatHeld(held []blob.Range) string {
	var runs []string
	for _, r := range held {
		if r.Len > 0 && len(runs) < maxHeld {
			runs = append(runs, r.String())
		}
	}
	return strings.Join(runs, ",")
}

// parseHeld reads what formatHeld writes, for a blob of size bytes.
func parseHeld(value string, size int64) ([]blob.Range, bool) {
	if value == "" {
		return nil, true
	}
	runs := strings.SplitN(value, ",", maxHeld+1)
	held := make([]blob.Range, 0, len(runs))
	for _, run := range runs {
		r, ok := parseRun(run)
		if !ok || r.Check(size) != nil {
			return nil, false
		}
		held = append(held, r)
	}
	return held, len(held) <= maxHeld && blob.CheckRanges(held, size) == nil
}

// formatPeers writes the value of X-Skimmer-Peers.
func formatPeers(addrs []string) string {
	return strings.Join(addrs[:min(len(addrs), maxPeers)], ",")
}

// parsePeers reads it. What is no address is for whoever dials to find out.
func parsePeers(value string) []string {
	var addrs []string
	for _, a := range strings.SplitN(value, ",", maxPeers+1) {
		if a = strings.TrimSpace(a); a != "" && len(addrs) < maxPeers {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC32C of the bytes sum is of, followed by p.
func checksum(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

// segments says where the segments of a body end.
type segments struct {
	r     blob.Range // of the blob; not empty
	align int64      // 0: all of r is one
}

// count returns how many segments there are.
func (s segments) count() int64 {
	if s.align == 0 {
		return 1
	}
	return (s.r.End()-1)/s.align - s.r.Off/s.align + 1
}

// end returns where the segment ends that the byte at off, in the range, is
// in.
func (s segments) end(off int64) int64 {
	if s.align == 0 {
		return s.r.End()
	}
	return min(s.r.End(), (off/s.align+1)*s.align)
}

// formatSums writes the value of X-Skimmer-Crc32c.
func formatSums(align int64, sums []uint32) string {
	p := make([]byte, 0, 20+8*len(sums))
	p = append(strconv.AppendInt(p, align, 10), ':')
	for _, sum := range sums {
		p = fmt.Appendf(p, "%08x", sum)
	}
	return string(p)
}

// parseSums reads it, for a body that is r.
func parseSums(value string, r blob.Range) (s segments, sums []uint32, ok bool) {
	a, hex, found := strings.Cut(value, ":")
	align, ok := parseNumber(a)
	s = segments{r, align}
	if !found || !ok || len(hex)%8 != 0 || len(hex) > 8*maxSums || int64(len(hex)/8) != s.count() {
		return segments{}, nil, false
	}
	sums = make([]uint32, len(hex)/8)
	for i := range sums {
		n, err := strconv.ParseUint(hex[8*i:8*i+8], 16, 32)
		if err != nil {
			return segments{}, nil, false
		}
		sums[i] = uint32(n)
	}
	return s, sums, true
}

// statusOf is the table between kinds and HTTP statuses. It is one to one;
// kindOf says what of it arrives.
var statusOf = map[blob.Kind]int{
	blob.Internal:     http.StatusInternalServerError,
	blob.Invalid:      http.StatusBadRequest,
	blob.NotFound:     http.StatusNotFound,
	blob.Unauthorized: http.StatusUnauthorized,
	blob.Forbidden:    http.StatusForbidden,
	blob.Corrupt:      http.StatusUnprocessableEntity,
	blob.Unavailable:  http.StatusBadGateway,
	blob.Busy:         http.StatusServiceUnavailable,
	blob.Timeout:      http.StatusGatewayTimeout,
	blob.Full:         http.StatusInsufficientStorage,
	blob.Canceled:     499, // as others say that a client went away
}

// kindOf is the table's other direction, with the statuses that only a
// server library or something between the peers sends. That the peer's disk is
// full, or that it cancelled, must not look as if it had happened here: that is
// Unavailable.
func kindOf(status int) blob.Kind {
	for kind, s := range statusOf {
		if s == status && kind != blob.Full && kind != blob.Canceled {
			return kind
		}
	}
	switch {
	case status == statusOf[blob.Canceled]:
		return blob.Unavailable
	case status == http.StatusTooManyRequests:
		return blob.Busy
	case status == http.StatusRequestTimeout:
		return blob.Timeout
	case status == http.StatusGone:
		return blob.NotFound
	case status >= 400 && status < 500:
		return blob.Invalid
	}
	return blob.Unavailable
}

// reasonOf returns the text of err as it is sent: one line, and nothing of
// failures that are only about this machine.
func reasonOf(err error) string {
	kind := blob.KindOf(err)
	if kind == blob.Internal {
		return kind.Error()
	}
	return cleanReason(err.Error())
}

// cleanReason cuts s to what can be a header's value and a log's line.
func cleanReason(s string) string {
	s = s[:min(len(s), maxReason)]
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s))
}
