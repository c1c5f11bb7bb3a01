package exchange

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"skimmer/internal/blob"
)

// Failure is why one attempt failed, and whether another may succeed.
type Failure struct {
	// Err has a blob.Kind.
	Err error
	// Again says that the same request may succeed later, After how long the
	// server asked to be left alone; 0 if it did not.
	Again bool
	After time.Duration
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// The limits that end an attempt; they travel as the cause of its context.
var (
	errNoHeaders = errors.New("no answer within the time limit")
	errNoBytes   = errors.New("no bytes of the answer within the time limit")
)

// transportFailure classifies an error of a request or of reading its body.
// ctx is that of the attempt, within that of the request.
func transportFailure(ctx context.Context, req *http.Request, err error) *Failure {
	if req.Context().Err() != nil {
		return &Failure{Err: Ended(req.Context())}
	}
	what := req.Method + " " + req.URL.Host
	if cause := context.Cause(ctx); cause == errNoHeaders || cause == errNoBytes {
		return &Failure{Err: blob.Errorf(blob.Timeout, "%s: %w", what, cause), Again: true}
	}
	var (
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		network net.Error
	)
	switch {
	case errors.As(err, &cert):
		return &Failure{Err: blob.Errorf(blob.Unavailable, "%s: %w; add the authority's file to the host's CA files", what, err)}
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return &Failure{Err: blob.Errorf(blob.Unavailable, "%s: the server speaks plain HTTP; list the host as insecure if that is meant", what)}
	case errors.As(err, &network) && network.Timeout():
		return &Failure{Err: blob.Errorf(blob.Timeout, "%s: %w", what, err), Again: true}
	case errors.Is(err, blob.Forbidden): // whoever dials may say so
		return &Failure{Err: blob.Errorf(blob.Forbidden, "%s: %w", what, err)}
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF // nothing above may take it for an end
	}
	return &Failure{Err: blob.Errorf(blob.Unavailable, "%s: %w", what, err), Again: true}
}

// Ended says, with a Kind, why ctx is over.
func Ended(ctx context.Context) error {
	return blob.Errorf(blob.KindOf(ctx.Err()), "%w", context.Cause(ctx))
}

// StatusFailure classifies an answer whose status is an error. It reads and
// closes the body.
func StatusFailure(resp *http.Response, now time.Time) *Failure {
	method, host := resp.Request.Method, resp.Request.URL.Host
	text := fmt.Sprintf("%s %s: %s", method, host, StatusText(resp.StatusCode))
	if m := message(resp); m != "" {
		text += ": " + m
	}
	f := &Failure{}
	kind := StatusKind(resp.StatusCode)
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		f.Again = true
		f.After = parseRetryAfter(resp.Header.Get("Retry-After"), now)
	}
	f.Err = blob.Errorf(kind, "%s", text)
	return f
}

// StatusKind is the table from HTTP status to Kind for answers that are not
// what was asked for.
func StatusKind(status int) blob.Kind {
	switch status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		return blob.Unauthorized
	case http.StatusForbidden, http.StatusUnavailableForLegalReasons:
		return blob.Forbidden
	case http.StatusNotFound, http.StatusGone:
		return blob.NotFound
	case http.StatusRequestTimeout:
		return blob.Timeout
	case http.StatusRequestedRangeNotSatisfiable:
		return blob.Corrupt
	case http.StatusTooManyRequests:
		return blob.Busy
	}
	if 400 <= status && status < 500 {
		return blob.Invalid
	}
	return blob.Unavailable
}

// StatusText writes a status as people read it: number and name.
func StatusText(status int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
}

// MaxErrorBody is how much of an error answer is read, in bytes, and of one
// that nobody wants so that its connection can be used again.
const MaxErrorBody = 8 << 10

// maxErrorText is how much of what a server says of an error is shown.
const maxErrorText = 300

// message returns what the registry itself says about an error, from the
// JSON of the distribution specification ("Error Codes"). Bodies in other
// formats are not shown: those of storage servers echo signed requests. It
// reads and closes the body, so that the connection can be used again.
func message(resp *http.Response) string {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, MaxErrorBody))
	resp.Body.Close()
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t != "application/json" && !strings.HasSuffix(t, "+json") {
		return ""
	}
	return parseErrors(body)
}

// parseErrors reads the errors document of the distribution specification,
// or that of token services which have only "details" or "error_description".
func parseErrors(body []byte) string {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details     string `json:"details"`
		Description string `json:"error_description"`
	}
	// A document that has a part we cannot read may still have said enough.
	_ = json.Unmarshal(body, &doc)
	var parts []string
	for _, e := range doc.Errors {
		switch {
		case e.Message == "":
			parts = append(parts, e.Code)
		case e.Code == "":
			parts = append(parts, e.Message)
		default:
			parts = append(parts, e.Message+" ("+e.Code+")")
		}
	}
	if len(parts) == 0 {
		parts = []string{doc.Details + doc.Description}
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.Join(parts, "; "))
	if runes := []rune(text); len(runes) > maxErrorText {
		text = string(runes[:maxErrorText]) + "..."
	}
	return strings.TrimSpace(text)
}

// Discard reads what little is left of an answer nobody wants and closes it.
func Discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, MaxErrorBody)
	resp.Body.Close()
}
