package origin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"mime"
	"skimmer/internal/origin/exchange"
	"strings"
)

// Limits on what surrounds the bytes of a part.
const (
	maxPartLine    = 1 << 10
	maxPartHeaders = 16
	// maxBoundary is the limit of RFC 2046, section 5.1.1.
	maxBoundary = 70
)

// errFormat is in the chain of an error about an answer that is not
// multipart/byteranges, as opposed to one that is cut off.
var errFormat = errors.New("malformed multipart answer")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errFormat, fmt.Errorf(format, args...))
}

// parts reads multipart/byteranges (RFC 9110, section 14.6). Unlike a reader
// of mail it goes by the lengths the parts state, so what the bytes are makes
// no difference.
type parts struct {
	r     *bufio.Reader
	delim string // "--" and the boundary
	first bool   // no part was read yet
}

// isMultipart reports whether an answer of this content type has parts.
func isMultipart(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(t)), "multipart/")
}

// newParts returns a reader of body, which is of the given content type.
func newParts(contentType string, body io.Reader) (*parts, error) {
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, malformed("content type: %w", err)
	}
	boundary := params["boundary"]
	if t != "multipart/byteranges" || boundary == "" || len(boundary) > maxBoundary {
		return nil, malformed("content type %.100q", contentType)
	}
	return &parts{r: bufio.NewReaderSize(body, 32<<10), delim: "--" + boundary, first: true}, nil
}

// line returns the next line without its end.
func (p *parts) line() (string, error) {
	var line []byte
	for {
		c, err := p.r.ReadByte()
		switch {
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		case c == '\n':
			return strings.TrimSuffix(string(line), "\r"), nil
		case len(line) == maxPartLine:
			return "", malformed("a line is longer than %d bytes", maxPartLine)
		}
		line = append(line, c)
	}
}

// next returns what the next part says of itself. All bytes of the part
// before must have been read from p.r. At the end it returns io.EOF.
func (p *parts) next() (exchange.ContentRange, error) {
	line, err := p.line()
	if err == nil && (line == "" || !p.first) {
		// The line end that belongs to the delimiter; the first may lack it.
		if line != "" {
			return exchange.ContentRange{}, malformed("a part is longer than it says")
		}
		line, err = p.line()
	}
	if err != nil {
		return exchange.ContentRange{}, err
	}
	p.first = false
	switch rest, ok := strings.CutPrefix(line, p.delim); {
	case !ok:
		return exchange.ContentRange{}, malformed("no delimiter where a part should begin")
	case strings.TrimRight(rest, " \t") == "--":
		return exchange.ContentRange{}, io.EOF
	case strings.TrimRight(rest, " \t") != "":
		return exchange.ContentRange{}, malformed("another delimiter than announced")
	}
	return p.header()
}

// header reads the header of a part, of which only the range matters.
func (p *parts) header() (exchange.ContentRange, error) {
	var got exchange.ContentRange
	found := false
	for range maxPartHeaders {
		line, err := p.line()
		if err != nil {
			return got, err
		}
		if line == "" {
			if !found {
				return got, malformed("a part does not say its range")
			}
			return got, nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return got, malformed("a part's header has no colon")
		}
		if !strings.EqualFold(name, "Content-Range") {
			continue
		}
		if got, err = exchange.ParseContentRange(value); err != nil || got.Range.Len == 0 || found {
			return got, malformed("a part has range %.100q", value)
		}
		found = true
	}
	return got, malformed("a part has more than %d headers", maxPartHeaders)
}
