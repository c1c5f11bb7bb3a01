package origin

import (
	"maps"
	"slices"
	"strings"
)

// challenge is one demand for authentication: RFC 9110, section 11.6.1.
type challenge struct {
	scheme string            // lower case
	params map[string]string // keys lower case
}

// maxChallenge bounds how many bytes of WWW-Authenticate are looked at.
const maxChallenge = 8 << 10

// parseChallenges reads the WWW-Authenticate headers of an answer. It is
// forgiving: what makes no sense is skipped. A token68 credential (as in
// "Negotiate YII=") is dropped, its scheme kept.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		s := scanner{h[:min(len(h), maxChallenge)]}
		for s.skip(", \t"); s.rest != ""; s.skip(", \t") {
			word := s.token()
			s.skip(" \t")
			value, ok := s.value()
			switch {
			case ok && word != "" && len(all) > 0:
				all[len(all)-1].params[strings.ToLower(word)] = value
			case ok: // a parameter of nothing
			case word == "":
				s.rest = s.rest[1:] // not a token: step over it
			default:
				all = append(all, challenge{strings.ToLower(word), map[string]string{}})
				s.token68()
			}
		}
	}
	return all
}

// String writes the challenge as a header has it.
func (c challenge) String() string {
	var b strings.Builder
	b.WriteString(c.scheme)
	for i, k := range slices.Sorted(maps.Keys(c.params)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(" " + k + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(c.params[k]) + `"`)
	}
	return b.String()
}

// scanner walks over a header's text.
type scanner struct{ rest string }

// skip steps over any of the characters in set.
func (s *scanner) skip(set string) { s.rest = strings.TrimLeft(s.rest, set) }

// token takes a token (RFC 9110, section 5.6.2), or nothing.
func (s *scanner) token() string {
	n := 0
	for n < len(s.rest) && isTokenByte(s.rest[n]) {
		n++
	}
	t := s.rest[:n]
	s.rest = s.rest[n:]
	return t
}

func isTokenByte(c byte) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// value takes "=" and the token or quoted string behind it, if they are next.
func (s *scanner) value() (string, bool) {
	after, ok := strings.CutPrefix(s.rest, "=")
	if !ok {
		return "", false
	}
	s.rest = after
	s.skip(" \t")
	if !strings.HasPrefix(s.rest, `"`) {
		return s.token(), true
	}
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	s.rest = "" // the quote never ends: take what there is
	return b.String(), true
}

// token68 steps over a token68 (RFC 9110, section 11.2), if one is next and
// it is not the name of a parameter.
func (s *scanner) token68() {
	n := 0
	for n < len(s.rest) && (isTokenByte(s.rest[n]) || s.rest[n] == '/') {
		n++
	}
	word := n
	for n < len(s.rest) && s.rest[n] == '=' {
		n++
	}
	end := strings.TrimLeft(s.rest[n:], " \t")
	if word > 0 && (end == "" || end[0] == ',') && !strings.HasPrefix(end, "=") {
		s.rest = s.rest[n:]
	}
}
