package ranges_test

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/mirror/ranges"
)

func TestParse(t *testing.T) {
	many := func(n int) string {
		var s []string
		for i := range n {
			s = append(s, strconv.Itoa(2*i)+"-"+strconv.Itoa(2*i))
		}
		return "bytes=" + strings.Join(s, ",")
	}
	const huge = "99999999999999999999999"
	for _, c := range []struct {
		value  string
		size   int64
		status int
		want   []blob.Range // of 206
	}{
		{"bytes=0-0", 10, 206, []blob.Range{{Off: 0, Len: 1}}},
		{"bytes=0-", 10, 206, []blob.Range{{Off: 0, Len: 10}}},
		{"bytes=9-", 10, 206, []blob.Range{{Off: 9, Len: 1}}},
		{"bytes=3-100", 10, 206, []blob.Range{{Off: 3, Len: 7}}},
		{"bytes=3-" + huge, 10, 206, []blob.Range{{Off: 3, Len: 7}}},
		{"bytes=-3", 10, 206, []blob.Range{{Off: 7, Len: 3}}},
		{"bytes=-" + huge, 10, 206, []blob.Range{{Off: 0, Len: 10}}},
		{"bytes=00003-0004", 10, 206, []blob.Range{{Off: 3, Len: 2}}},
		{"BYTES=0-0", 10, 206, []blob.Range{{Off: 0, Len: 1}}},
		{"bytes=0-0, ,\t4-5 ,", 10, 206, []blob.Range{{Off: 0, Len: 1}, {Off: 4, Len: 2}}},
		{"bytes=5-6,0-1", 10, 206, []blob.Range{{Off: 5, Len: 2}, {Off: 0, Len: 2}}},
		{"bytes=0-1,20-30,-0", 10, 206, []blob.Range{{Off: 0, Len: 2}}},
		{"bytes=0-1,2-3", 10, 206, []blob.Range{{Off: 0, Len: 2}, {Off: 2, Len: 2}}},
		{"bytes=0-5,2-3", 10, 206, []blob.Range{{Off: 0, Len: 6}}},
		{"bytes=8-9,4-5,0-2,5-6,2-3", 10, 206, []blob.Range{{Off: 8, Len: 2}, {Off: 4, Len: 3}, {Off: 0, Len: 4}}},
		{"bytes=0-,0-,0-,-1", 10, 206, []blob.Range{{Off: 0, Len: 10}}},
		{"bytes=9-9,-1", 10, 206, []blob.Range{{Off: 9, Len: 1}}},
		{"bytes=9223372036854775806-9223372036854775807", 1<<63 - 1, 206, []blob.Range{{Off: 1<<63 - 2, Len: 1}}},
		{"bytes=10-", 10, 416, nil},
		{"bytes=-0", 10, 416, nil},
		{"bytes=" + huge + "-", 10, 416, nil},
		{"bytes=" + huge + "-" + huge, 1<<63 - 1, 416, nil},
		{"bytes=10-11,20-30,-0", 10, 416, nil},
		{"bytes=0-", 0, 416, nil},
		{"bytes=-0", 0, 416, nil},
		{"bytes=-5", 0, 200, nil},
		{"bytes=0-,-5", 0, 200, nil},
		{"", 10, 200, nil},
		{"bytes", 10, 200, nil},
		{"bytes=", 10, 200, nil},
		{"bytes=,,", 10, 200, nil},
		{"bytes=-", 10, 200, nil},
		{"bytes=3", 10, 200, nil},
		{"bytes=9-8", 10, 200, nil},
		{"bytes=99" + huge + "-" + huge, 10, 200, nil},
		{"bytes=--1", 10, 200, nil},
		{"bytes=+1-2", 10, 200, nil},
		{"bytes=1-2-3", 10, 200, nil},
		{"bytes=1 - 2", 10, 200, nil},
		{"bytes=0-1;2-3", 10, 200, nil},
		{"bytes=0-1,x", 10, 200, nil},
		{"bytes=100-,x", 10, 200, nil},
		{"bytes =0-1", 10, 200, nil},
		{"lines=0-1", 10, 200, nil},
		{"bytes=0x1-0x2", 10, 200, nil},
		{many(ranges.MaxRanges + 1), 1 << 20, 200, nil},
	} {
		set, status := ranges.Parse(c.value, c.size)
		if status != c.status || !slices.Equal(set, c.want) {
			t.Errorf("%q of %d: %d %v, want %d %v", c.value, c.size, status, set, c.status, c.want)
		}
	}
	set, status := ranges.Parse(many(ranges.MaxRanges), 1<<20)
	if status != http.StatusPartialContent || len(set) != ranges.MaxRanges {
		t.Errorf("as many ranges as there can be: %d with %d ranges", status, len(set))
	}
}

// wanted marks the bytes that a well-formed header of small numbers asks for.
func wanted(value string, size int64) []bool {
	all := make([]bool, size)
	for spec := range strings.SplitSeq(strings.TrimPrefix(value, "bytes="), ",") {
		first, last, _ := strings.Cut(strings.TrimSpace(spec), "-")
		from, _ := strconv.ParseInt(first, 10, 64)
		to, err := strconv.ParseInt(last, 10, 64)
		switch {
		case first == "":
			from, to = max(0, size-to), size-1
		case err != nil:
			to = size - 1
		}
		for i := from; i <= to && i < size; i++ {
			all[i] = true
		}
	}
	return all
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=-5", "bytes=5-", "bytes=0-1,2-3", "bytes=9-8", "bytes=-0", "bytes=-",
		"bytes=9223372036854775807-", "bytes=+1-2", "bytes=5-6,0-5, ,3-4", "bytes=0-99999999999999999999"} {
		f.Add(s, int64(10))
		f.Add(s, int64(0))
	}
	f.Fuzz(func(t *testing.T, value string, size int64) {
		if size < 0 {
			size = -(size + 1)
		}
		set, status := ranges.Parse(value, size)
		if (status == http.StatusPartialContent) != (len(set) > 0) || len(set) > ranges.MaxRanges {
			t.Fatalf("%q of %d: %d with %d ranges", value, size, status, len(set))
		}
		sorted := slices.SortedFunc(slices.Values(set), func(a, b blob.Range) int { return int(min(max(a.Off-b.Off, -1), 1)) })
		if err := blob.CheckRanges(sorted, size); err != nil {
			t.Fatalf("%q of %d: %v: %v", value, size, set, err)
		}
		// What it wrote itself it reads as the same.
		var back []string
		for _, r := range set {
			back = append(back, r.String())
		}
		if len(set) > 0 {
			again, status := ranges.Parse("bytes="+strings.Join(back, ","), size)
			if status != http.StatusPartialContent || !slices.Equal(again, set) {
				t.Errorf("%q of %d: %v, and that is read as %v with %d", value, size, set, again, status)
			}
		}
	})
}
