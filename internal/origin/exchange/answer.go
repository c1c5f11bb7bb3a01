package exchange

import (
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"skimmer/internal/blob"
)

// Early says it better where err, of reading a body, means that the body
// ended with bytes missing.
func Early(err error, host string, missing int64) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Failure{Again: true, Err: blob.Errorf(blob.Unavailable, "GET %s: the answer ends %d bytes early", host, missing)}
	}
	return err
}

// Sent returns which part of the blob an answer brings, having checked that
// it can be used for want: it starts at want.Off, or at 0 if the server does
// not do ranges. The error is Corrupt where the answer contradicts what was
// asked or what is known of the blob.
func Sent(resp *http.Response, want blob.Range, size int64) (blob.Range, error) {
	corrupt := func(format string, args ...any) (blob.Range, error) {
		return blob.Range{}, blob.Errorf(blob.Corrupt, "GET %s: %w", resp.Request.URL.Host, fmt.Errorf(format, args...))
	}
	said, err := ParseContentRange(resp.Header.Get("Content-Range"))
	got := said.Range
	switch resp.StatusCode {
	case http.StatusOK:
		got = blob.Range{Len: size}
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return corrupt("the blob has %d bytes, not the expected %d", resp.ContentLength, size)
		}
		return got, nil
	case http.StatusPartialContent:
	case http.StatusRequestedRangeNotSatisfiable:
		Discard(resp)
		if err == nil && said.Total != size {
			return corrupt("the blob has %d bytes, not the expected %d", said.Total, size)
		}
		return corrupt("the server has no range %v of a blob of %d bytes", want, size)
	default:
		return got, StatusFailure(resp, time.Now())
	}
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); strings.HasPrefix(t, "multipart/") {
		return corrupt("answered range %v with %s", want, t)
	}
	switch {
	case err != nil:
		return corrupt("answered range %v with a bad header: %w", want, err)
	case said.Total != blob.SizeUnknown && said.Total != size:
		return corrupt("the blob has %d bytes, not the expected %d", said.Total, size)
	case got.Off != want.Off || got.Len == 0 || got.End() > want.End():
		return corrupt("answered range %v with range %v", want, got)
	case resp.ContentLength > got.Len:
		return corrupt("answered range %v with %d bytes", want, resp.ContentLength)
	}
	return got, nil
}

// ContentRange is a parsed Content-Range header.
type ContentRange struct {
	// Range is the part that is sent; for an unsatisfied range ("bytes */N") it
	// has Len 0.
	Range blob.Range
	// Total is the length of the whole, or blob.SizeUnknown.
	Total int64
}

// ParseContentRange reads a Content-Range header (RFC 9110, section 14.4) of
// unit bytes and checks that its figures make sense.
func ParseContentRange(s string) (ContentRange, error) {
	bad := func() (ContentRange, error) {
		return ContentRange{}, fmt.Errorf("%.100q is not a content range in bytes", s)
	}
	unit, rest, ok := strings.Cut(strings.TrimSpace(s), " ")
	part, whole, ok2 := strings.Cut(strings.TrimSpace(rest), "/")
	if !ok || !ok2 || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	c := ContentRange{Total: blob.SizeUnknown}
	if whole != "*" {
		if c.Total, ok = digits(whole); !ok {
			return bad()
		}
	}
	if part == "*" {
		if c.Total == blob.SizeUnknown {
			return bad()
		}
		return c, nil
	}
	first, last, ok := strings.Cut(part, "-")
	if !ok {
		return bad()
	}
	from, ok := digits(first)
	to, ok2 := digits(last)
	if !ok || !ok2 || from > to || to == math.MaxInt64 || c.Total != blob.SizeUnknown && to >= c.Total {
		return bad()
	}
	c.Range = blob.Range{Off: from, Len: to - from + 1}
	return c, nil
}

// digits reads a number that consists of digits alone.
func digits(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && s[0] >= '0' && s[0] <= '9'
}

// Check compares, as an error, what is said with what is known of the blob.
func (c ContentRange) Check(size int64) error {
	if c.Total != blob.SizeUnknown && c.Total != size || c.Range.Check(size) != nil {
		return fmt.Errorf("the blob has %d bytes, a part says %v of %d", size, c.Range, c.Total)
	}
	return nil
}
