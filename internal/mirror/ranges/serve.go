package ranges

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"skimmer/internal/blob"
)

// Content is what a request is answered with.
type Content struct {
	// Blob is the bytes. Serve does not close it.
	Blob blob.Blob
	// ETag is the entity tag as it stands in the header, quotes included; empty
	// if there is none. With "W/" before it, it is a weak one, which If-Match
	// and If-Range never find equal.
	ETag string
	// MediaType is the Content-Type of the whole; empty for
	// application/octet-stream.
	MediaType string
	// ModTime is the Last-Modified time; zero if it is not known. Blobs that
	// differ must not have the same, nor differ in less than a second.
	ModTime time.Time
	// Header is further fields of every answer that Serve begins. Those that
	// are Serve's to set are left out.
	Header http.Header
}

// Sent says what became of an answer.
type Sent struct {
	// Status of the answer; 0 if none was begun.
	Status int
	// Bytes is how many bytes of the blob were sent, without what stands
	// between several parts.
	Bytes int64
}

// Serve answers a GET or HEAD with c, or with a part of it.
//
// The reads are made with req's context. Bytes are passed on as they arrive. A
// slow client slows the reading down; what is kept for it in memory is at most
// some MiB, whatever it asked for.
//
// An error says what failed of reading, with its kind, or that the client went
// away (Canceled), or that req has another method (Invalid). The answer is not
// begun before its first byte is at hand, so an error with Sent.Status 0 means
// that nothing was written to w, its header included, and the caller can answer
// in another way. After any other error the caller must end the connection,
// with panic(http.ErrAbortHandler), for otherwise a part of the blob could be
// taken for all of it.
//
// A HEAD reads nothing. Its Range header is ignored, as RFC 9110 14.2 demands,
// so its answer is about the whole.
//
// Answers 304, 412 and 416 have no body, and are no error.
func Serve(w http.ResponseWriter, req *http.Request, c Content) (Sent, error) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return Sent{}, blob.Errorf(blob.Invalid, "serve a blob: method %q is neither GET nor HEAD", req.Method)
	}
	a := &answer{w: w, c: &c, size: c.Blob.Size()}
	if a.status = precondition(req.Header, &c); a.status != 0 {
		a.begin()
		return a.sent, nil
	}
	a.status = http.StatusOK
	set := []blob.Range{{Len: a.size}}
	if value, ok := rangeAsked(req.Header, &c); ok && req.Method == http.MethodGet {
		asked, status := Parse(value, a.size)
		a.status = status
		if status != http.StatusOK {
			set = asked
		}
	}
	if len(set) > 1 {
		a.boundary = newBoundary()
	}
	a.measure(set)
	if req.Method == http.MethodHead || a.length == 0 {
		a.begin()
		return a.sent, nil
	}
	err := a.send(req.Context(), set)
	return a.sent, err
}

// answer is one answer to a request.
type answer struct {
	// Constant when the first byte is sent.
	w        http.ResponseWriter
	c        *Content
	size     int64  // of the blob
	status   int    // it has when it is begun
	boundary string // between parts; empty if there are none
	only     blob.Range
	length   int64 // of the body

	sent   Sent
	left   int64  // bytes of the range that is being sent
	before []byte // what the next byte of the blob has to wait for
	failed error  // of the client
	excess error  // of a source that sends more than it was asked for
}

// own lists the fields that Content.Header cannot set.
var own = []string{"Accept-Ranges", "Content-Length", "Content-Range", "Content-Type", "Etag", "Last-Modified", "Trailer", "Transfer-Encoding"}

// measure finds out how long the body is that has the ranges of set.
func (a *answer) measure(set []blob.Range) {
	if len(set) == 1 {
		a.only, a.length = set[0], set[0].Len
		return
	}
	var p []byte
	for i, r := range set {
		p = a.appendPart(p[:0], r, i == 0)
		a.length += int64(len(p)) + r.Len
	}
	if len(set) > 0 {
		a.length += int64(len(a.appendEnd(p[:0])))
	}
}

// begin writes status and header.
func (a *answer) begin() {
	h := a.w.Header()
	for name, values := range a.c.Header {
		if !slices.Contains(own, http.CanonicalHeaderKey(name)) {
			h[name] = values
		}
	}
	set := func(name, value string) { h[name] = []string{value} } // the names are canonical
	set("Accept-Ranges", "bytes")
	if a.c.ETag != "" {
		set("Etag", a.c.ETag)
	}
	if !a.c.ModTime.IsZero() && (a.status != http.StatusNotModified || a.c.ETag == "") {
		set("Last-Modified", a.c.ModTime.UTC().Format(http.TimeFormat))
	}
	switch a.status {
	case http.StatusNotModified:
		// It says nothing of a body.
	case http.StatusRequestedRangeNotSatisfiable:
		set("Content-Range", "bytes */"+strconv.FormatInt(a.size, 10))
		set("Content-Length", "0")
	case http.StatusPreconditionFailed:
		set("Content-Length", "0")
	default:
		set("Content-Length", strconv.FormatInt(a.length, 10))
		set("Content-Type", a.contentType())
		if a.status == http.StatusPartialContent && a.boundary == "" {
			set("Content-Range", string(appendRange(nil, a.only, a.size)))
		}
	}
	a.sent.Status = a.status
	a.w.WriteHeader(a.status)
}

func (a *answer) contentType() string {
	if a.boundary != "" {
		return "multipart/byteranges; boundary=" + a.boundary
	}
	return a.mediaType()
}

// mediaType returns the type of the blob, which stands in the header or in
// those of the parts. It may come from a manifest, with whatever in it.
func (a *answer) mediaType() string {
	t := a.c.MediaType
	for _, c := range []byte(t) {
		if c < ' ' || c >= 0x7f {
			t = ""
			break
		}
	}
	if t == "" {
		return "application/octet-stream"
	}
	return t
}

// appendRange appends the value of Content-Range to p.
func appendRange(p []byte, r blob.Range, size int64) []byte {
	p = append(p, "bytes "...)
	p = strconv.AppendInt(p, r.Off, 10)
	p = append(p, '-')
	p = strconv.AppendInt(p, r.End()-1, 10)
	p = append(p, '/')
	return strconv.AppendInt(p, size, 10)
}
