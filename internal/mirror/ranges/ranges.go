// Package ranges answers requests for parts of a blob as RFC 9110 has it:
// preconditions (section 13), the Range header (14) and the answers 200, 206
// with one part or several, 304, 412 and 416 (15).
//
// It is to a [blob.Blob] what http.ServeContent is to a file, with what a
// source over the network needs besides: bytes are passed on as they arrive,
// several ranges are asked for together, an answer is not begun before there
// is something to put into it, and what fails has a kind.
package ranges

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"skimmer/internal/blob"
)

// MaxRanges is how many ranges one request can have. Lazy snapshotters send
// some hundreds of them.
const MaxRanges = 1024

// Parse reads the value of a Range header for a blob of size bytes, and
// returns the status an answer has, if no precondition forbids it:
//
//   - 206: set has the ranges to send, at least one. None is empty and no two
//     overlap. They stand in the order in which they were asked for, except
//     that those that overlap became one, in the place of the first.
//   - 416: none of the ranges is inside the blob; set is empty.
//   - 200: the header is to be ignored, because it is malformed, has a unit
//     other than bytes or more than MaxRanges ranges, or wants the end of an
//     empty blob, which no Content-Range can name; set is empty.
func Parse(value string, size int64) (set []blob.Range, status int) {
	unit, list, ok := strings.Cut(value, "=")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return nil, http.StatusOK
	}
	specs, ended := 0, false
	for spec := range strings.SplitSeq(list, ",") {
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue // an empty element is to be ignored
		}
		if specs++; specs > MaxRanges {
			return nil, http.StatusOK
		}
		r, ok := parseSpec(spec, size)
		if !ok {
			return nil, http.StatusOK
		}
		ended = ended || size == 0 && r.Off < 0
		if r.Off >= 0 && r.Len > 0 {
			set = append(set, r)
		}
	}
	switch {
	case specs == 0 || ended:
		return nil, http.StatusOK
	case len(set) == 0:
		return nil, http.StatusRequestedRangeNotSatisfiable
	}
	return coalesce(set), http.StatusPartialContent
}

// parseSpec reads one range of a set. What is not satisfiable is an empty
// range; of an empty blob, its end is one at -1.
func parseSpec(spec string, size int64) (r blob.Range, ok bool) {
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return blob.Range{}, false
	}
	if first == "" {
		n, ok := number(last)
		if n > 0 && size == 0 {
			return blob.Range{Off: -1}, ok
		}
		n = min(n, size)
		return blob.Range{Off: size - n, Len: n}, ok
	}
	from, ok := number(first)
	if !ok {
		return blob.Range{}, false
	}
	to := size - 1
	if last != "" {
		n, ok := number(last)
		if !ok || less(last, first) {
			return blob.Range{}, false
		}
		to = min(n, to)
	}
	if from >= size {
		return blob.Range{}, true
	}
	return blob.Range{Off: from, Len: to - from + 1}, true
}

// number reads a number that consists of digits alone. One that an int64 cannot
// hold is the largest of those, and beyond every blob.
func number(s string) (n int64, ok bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	u, err := strconv.ParseUint(s, 10, 63)
	return int64(u), err == nil || errors.Is(err, strconv.ErrRange)
}

// less compares two numbers of any length.
func less(a, b string) bool {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return len(a) < len(b) || len(a) == len(b) && a < b
}

// coalesce joins the ranges of set that overlap. It keeps those that only
// touch, because they may be asked for in that way on purpose.
func coalesce(set []blob.Range) []blob.Range {
	ascending := true
	for i := 1; i < len(set) && ascending; i++ {
		ascending = set[i].Off >= set[i-1].End()
	}
	if ascending {
		return set
	}
	type placed struct {
		blob.Range
		place int // in set, of the first of those that it joins
	}
	all := make([]placed, len(set))
	for i, r := range set {
		all[i] = placed{r, i}
	}
	slices.SortFunc(all, func(a, b placed) int { return cmp.Compare(a.Off, b.Off) })
	joined := all[:1]
	for _, r := range all[1:] {
		if last := &joined[len(joined)-1]; r.Off < last.End() {
			last.Len = max(last.End(), r.End()) - last.Off
			last.place = min(last.place, r.place)
		} else {
			joined = append(joined, r)
		}
	}
	slices.SortFunc(joined, func(a, b placed) int { return cmp.Compare(a.place, b.place) })
	set = set[:len(joined)]
	for i, r := range joined {
		set[i] = r.Range
	}
	return set
}
