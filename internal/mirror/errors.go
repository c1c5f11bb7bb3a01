package mirror

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"skimmer/internal/blob"
)

// failure is an error with an answer of its own.
type failure struct {
	error
	status int
	code   string
}

// Unwrap returns the error with its kind.
func (f *failure) Unwrap() error { return f.error }

// coded returns an Invalid error that is answered with a status, and a code of
// the distribution specification.
func coded(status int, code, format string, args ...any) error {
	return &failure{blob.Errorf(blob.Invalid, format, args...), status, code}
}

// status is how a Kind is answered.
type status struct {
	status int
	code   string // of OCI distribution specification 1.1, "Error Codes", where it has one that fits
}

// statuses is the table from kinds to answers. It is for what the mirror says
// itself: what an upstream said goes to the client as it is.
var statuses = map[blob.Kind]status{
	blob.Internal:     {http.StatusInternalServerError, "UNKNOWN"},
	blob.Invalid:      {http.StatusBadRequest, "UNSUPPORTED"},
	blob.NotFound:     {http.StatusNotFound, "NAME_UNKNOWN"},
	blob.Unauthorized: {http.StatusUnauthorized, "UNAUTHORIZED"},
	blob.Forbidden:    {http.StatusForbidden, "DENIED"},
	blob.Corrupt:      {http.StatusBadGateway, "UNKNOWN"},
	blob.Unavailable:  {http.StatusBadGateway, "UNAVAILABLE"},
	blob.Busy:         {http.StatusTooManyRequests, "TOOMANYREQUESTS"},
	blob.Timeout:      {http.StatusGatewayTimeout, "UNAVAILABLE"},
	blob.Full:         {http.StatusInsufficientStorage, "UNKNOWN"},
	// Nobody reads this one; 499 is what proxies write into their logs for it.
	blob.Canceled: {499, "UNKNOWN"},
}

// statusOf returns how an error is answered.
func statusOf(err error) status {
	var f *failure
	if errors.As(err, &f) {
		return status{f.status, f.code}
	}
	return statuses[blob.KindOf(err)]
}

// writeError answers with an error as the distribution specification has it.
func writeError(w *answer, req *http.Request, err error) {
	s := statusOf(err)
	w.cause = err
	w.reset()
	w.Header().Set("Content-Type", "application/json")
	body, _ := json.Marshal(map[string]any{"errors": []map[string]any{{ // strings alone: nothing fails
		"code": s.code, "message": "skimmer mirror: " + strings.ToValidUTF8(err.Error(), "?"), "detail": nil,
	}}})
	w.WriteHeader(s.status)
	if req.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n')) // a client that is gone does not miss it
	}
}
