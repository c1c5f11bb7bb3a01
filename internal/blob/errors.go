package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Kind classifies a failure so that a border (HTTP, errno, RPC) can translate
// it without reading its text. A Kind is itself an error, so
// errors.Is(err, blob.NotFound) asks for one.
type Kind uint8

// The kinds. The list is closed: every border has a table over Kinds and a
// test that the table is complete.
const (
	// Internal is a failure nobody classified: a bug, or the local machine.
	Internal Kind = iota
	// Invalid is a request that can never succeed as it was made.
	Invalid
	// NotFound means the origin says there is no such thing.
	NotFound
	// Unauthorized means the origin wants credentials, or refused those given.
	Unauthorized
	// Forbidden means the credentials are good but not enough.
	Forbidden
	// Corrupt means bytes arrived that are not what their name promises.
	Corrupt
	// Unavailable means the source cannot be reached or is failing; a later
	// try may succeed.
	Unavailable
	// Busy means the source asks to be left alone for a while.
	Busy
	// Timeout means a stated time limit ran out.
	Timeout
	// Full means there is no room on the local disk.
	Full
	// Canceled means whoever wanted the bytes does not want them any more.
	Canceled

	kindEnd
)

var kindNames = [kindEnd]string{
	Internal:     "internal error",
	Invalid:      "invalid request",
	NotFound:     "not found",
	Unauthorized: "unauthorized",
	Forbidden:    "forbidden",
	Corrupt:      "corrupt data",
	Unavailable:  "unavailable",
	Busy:         "busy",
	Timeout:      "timed out",
	Full:         "disk full",
	Canceled:     "canceled",
}

// Kinds returns every Kind, for tests of translation tables.
func Kinds() []Kind {
	ks := make([]Kind, kindEnd)
	for i := range ks {
		ks[i] = Kind(i)
	}
	return ks
}

// Error returns the kind's name; it makes a Kind usable with errors.Is.
func (k Kind) Error() string {
	if k < kindEnd {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Temporary reports whether the same request may succeed later.
func (k Kind) Temporary() bool {
	return k == Unavailable || k == Busy || k == Timeout
}

// Error is a failure with a kind. Its text is that of Err alone: the text
// names the cause, the kind is for programs.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the error's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// Errorf returns an error of the given kind whose text is formatted as by
// fmt.Errorf, %w included. Callers write what was being done, lower case, as
// "verb object: cause".
func Errorf(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of err: the outermost Kind in its chain, or what a
// well-known error of the standard library amounts to, or Internal. KindOf
// of nil is Internal; ask only about failures.
func KindOf(err error) Kind {
	var e *Error
	var k Kind
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return Full
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	}
	return Internal
}
