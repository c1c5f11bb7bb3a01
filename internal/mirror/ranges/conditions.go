package ranges

import (
	"net/http"
	"strings"
	"time"
)

// precondition returns the status that the conditions of a GET or HEAD lead
// to, in the order of RFC 9110 13.2.2: 412, 304, or 0 if it is to be done.
func precondition(h http.Header, c *Content) int {
	if list, ok := joined(h, "If-Match"); ok {
		if !listed(list, c.ETag, false) {
			return http.StatusPreconditionFailed
		}
	} else if t, ok := date(h, "If-Unmodified-Since"); ok && !c.ModTime.IsZero() && seconds(c.ModTime).After(t) {
		return http.StatusPreconditionFailed
	}
	if list, ok := joined(h, "If-None-Match"); ok {
		if listed(list, c.ETag, true) {
			return http.StatusNotModified
		}
	} else if t, ok := date(h, "If-Modified-Since"); ok && !c.ModTime.IsZero() && !seconds(c.ModTime).After(t) {
		return http.StatusNotModified
	}
	return 0
}

// rangeAsked returns the value of the Range header, if it counts: there is
// one, and If-Range, where there is one, names what c is now.
func rangeAsked(h http.Header, c *Content) (value string, ok bool) {
	values := h["Range"]
	if len(values) != 1 {
		return "", false // it is not a list
	}
	cond := h["If-Range"]
	switch {
	case len(cond) == 0:
		return values[0], true
	case len(cond) > 1:
		return "", false
	}
	if tag, rest, ok := entityTag(strings.Trim(cond[0], " \t")); ok {
		return values[0], rest == "" && same(tag, c.ETag, false)
	}
	t, err := http.ParseTime(cond[0])
	return values[0], err == nil && !c.ModTime.IsZero() && t.Equal(seconds(c.ModTime))
}

// joined returns the value of a field that is a list; an empty one is none.
func joined(h http.Header, name string) (list string, ok bool) {
	list = strings.Join(h[name], ",")
	return list, list != ""
}

// date returns the value of a field that is a date; what is none is ignored.
func date(h http.Header, name string) (t time.Time, ok bool) {
	values := h[name]
	if len(values) != 1 {
		return time.Time{}, false
	}
	t, err := http.ParseTime(values[0])
	return t, err == nil
}

// seconds is t as a header has it.
func seconds(t time.Time) time.Time { return t.Truncate(time.Second) }

// listed reports whether a list of entity tags has tag, or is "*". What comes
// after a malformed element is not looked at.
func listed(list, tag string, weak bool) bool {
	if strings.Trim(list, " \t") == "*" {
		return true
	}
	for {
		list = strings.TrimLeft(list, " \t,")
		t, rest, ok := entityTag(list)
		if !ok {
			return false
		}
		if same(t, tag, weak) {
			return true
		}
		list = strings.TrimLeft(rest, " \t")
		if list != "" && list[0] != ',' {
			return false
		}
	}
}

// same compares entity tags, as RFC 9110 8.8.3.2 does: weakly, or so that weak
// ones never are the same.
func same(a, b string, weak bool) bool {
	if weak {
		return b != "" && strings.TrimPrefix(a, "W/") == strings.TrimPrefix(b, "W/")
	}
	return b != "" && a == b && !strings.HasPrefix(a, "W/")
}

// entityTag cuts the entity tag off with which s begins.
func entityTag(s string) (tag, rest string, ok bool) {
	start := 0
	if strings.HasPrefix(s, "W/") {
		start = 2
	}
	if start == len(s) || s[start] != '"' {
		return "", s, false
	}
	for i := start + 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return s[:i+1], s[i+1:], true
		case c < 0x21 || c == 0x7f:
			return "", s, false
		}
	}
	return "", s, false
}
