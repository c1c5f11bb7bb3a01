package testkit

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// Action is what a Fault does to an answer.
type Action uint8

// The actions. Those up to Reset replace the answer; the others spoil the
// body of a blob, manifest or storage answer that would have succeeded.
const (
	// Status answers with Fault.Status and, where set, Fault.RetryAfter.
	Status Action = iota + 1
	// HangHeaders accepts the request and never answers.
	HangHeaders
	// Reset closes the connection without an answer.
	Reset

	// HangBody sends Fault.After bytes of the body and then nothing.
	HangBody
	// ShortBody promises all of the body, sends Fault.After bytes and closes
	// the connection.
	ShortBody
	// ExtraBytes sends ten bytes more than there are, without a Content-Length.
	ExtraBytes
	// CorruptBody flips a bit of byte Fault.After of the body.
	CorruptBody
	// NoRanges ignores Range and answers 200 with the whole content.
	NoRanges
	// Multipart answers a single range with multipart/byteranges.
	Multipart
	// WrongRange names the range one byte off in Content-Range.
	WrongRange
	// WrongTotal names a total one byte too long in Content-Range.
	WrongTotal
	// LongLength states a Content-Length of ten bytes more, and sends them.
	LongLength
	// ShortLength states and sends a Content-Length of half the bytes.
	ShortLength
	// NoLength leaves out Content-Length (the body is chunked).
	NoLength
	// NoDigest leaves out Docker-Content-Digest and Content-Type.
	NoDigest

	// The rest strikes requests for several ranges; others use up a strike and
	// are answered well.

	// FirstRange answers the first range alone.
	FirstRange
	// RefuseRanges answers 400.
	RefuseRanges
	// WholeForRanges answers 200 with the whole content.
	WholeForRanges
	// ReversedRanges sends the parts last first.
	ReversedRanges
	// MergedRanges sends every two neighbours, and what is between them, as one.
	MergedRanges
)

// Fault is one misbehaviour: "the first two blob requests are cut short after
// 1000 bytes" is Fault{On: BlobGet, Do: ShortBody, After: 1000, Times: 2}.
type Fault struct {
	// On is the kind of request it strikes.
	On Op
	// Do is what happens.
	Do Action
	// Times is how many requests it strikes; 0 means every one.
	Times int
	// Status is the code of Status.
	Status int
	// RetryAfter is the Retry-After header of Status, verbatim.
	RetryAfter string
	// After is a number of body bytes.
	After int64
}

// Inject adds a fault. Of several for one kind of request the oldest that has
// strikes left plays first.
func (r *Registry) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
}

// ClearFaults removes every fault.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// takeFault uses up one strike of the first fault for op: one that replaces
// the answer, or one that spoils the body.
func (r *Registry) takeFault(op Op, replaces bool) (Fault, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.faults {
		f := &r.faults[i]
		if f.On != op || f.Times < 0 || replaces != (f.Do <= Reset) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				f.Times = -1 // spent
			}
		}
		return *f, true
	}
	return Fault{}, false
}

// bodyWriter counts what is sent of a blob and spoils it as its fault says.
type bodyWriter struct {
	http.ResponseWriter
	r      *Registry
	req    *http.Request
	digest digest.Digest
	size   int64
	fault  Fault

	sent  int64
	limit int64 // ShortLength: bytes to send
}

func (w *bodyWriter) WriteHeader(status int) {
	h := w.Header()
	length, _ := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	var first, last, total int64
	_, _ = fmt.Sscanf(h.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total)
	switch w.fault.Do {
	case NoRanges:
		h.Del("Accept-Ranges")
	case ExtraBytes, NoLength:
		h.Del("Content-Length")
	case WrongRange:
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first+1, last+1, total))
	case WrongTotal:
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, total+1))
	case LongLength:
		h.Set("Content-Length", strconv.FormatInt(length+10, 10))
	case ShortLength:
		w.limit = length / 2
		h.Set("Content-Length", strconv.FormatInt(w.limit, 10))
	case NoDigest:
		h.Del("Docker-Content-Digest")
		h["Content-Type"] = nil // present and empty: not guessed either
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *bodyWriter) Write(p []byte) (int, error) {
	asked := len(p)
	switch w.fault.Do {
	case ShortBody, HangBody:
		p = p[:min(int64(len(p)), max(0, w.fault.After-w.sent))]
	case ShortLength:
		p = p[:min(int64(len(p)), w.limit-w.sent)]
	case CorruptBody:
		if i := w.fault.After - w.sent; i >= 0 && i < int64(len(p)) {
			p = append([]byte(nil), p...)
			p[i] ^= 1
		}
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	w.r.mu.Lock()
	w.r.stats.Bytes[w.digest] += int64(n)
	w.r.mu.Unlock()
	if err == nil && n < asked {
		w.cut()
	}
	return asked, err
}

// cut plays what comes after the last byte that is sent.
func (w *bodyWriter) cut() {
	switch w.fault.Do {
	case ShortBody:
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	case HangBody:
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		w.r.hang(w.req)
		panic(http.ErrAbortHandler)
	}
}

// finish plays what comes after a complete body.
func (w *bodyWriter) finish() {
	if w.req.Method != http.MethodHead && (w.fault.Do == ExtraBytes || w.fault.Do == LongLength) {
		_, _ = w.ResponseWriter.Write([]byte("0123456789"))
	}
}
