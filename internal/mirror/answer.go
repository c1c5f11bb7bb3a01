package mirror

import (
	"io"
	"net/http"
	"slices"
)

// answer is a ResponseWriter that remembers what was answered, for the log.
type answer struct {
	http.ResponseWriter
	status int // 0 until it is written
	bytes  int64
	cause  error // of an answer that says that something failed
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom: the server's own may send a file without
// copying it.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := io.Copy(a.ResponseWriter, r)
	a.bytes += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// reset takes back headers of an answer that was not given, but for those that
// go with every answer to the method.
func (a *answer) reset() {
	for key := range a.Header() {
		if !slices.Contains([]string{"Allow", "Date"}, key) {
			a.Header().Del(key)
		}
	}
}
