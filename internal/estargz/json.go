package estargz

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"unicode/utf8"
)

// scanner is a position in JSON text (RFC 8259). Its methods read one value
// each, with the white space before it, and leave the position behind it; a
// null leaves the destination as it is, as encoding/json does.
type scanner struct {
	p []byte
	i int
}

// maxDepth is how deep unknown values may nest.
const maxDepth = 64

var errTooDeep = fmt.Errorf("is nested more than %d deep", maxDepth)

// unexpected is the error for what stands at the position.
func (s *scanner) unexpected(want string) error {
	if s.i >= len(s.p) {
		return fmt.Errorf("text ends where %s should be", want)
	}
	return fmt.Errorf("%q at byte %d where %s should be", s.p[s.i], s.i, want)
}

func (s *scanner) space() {
	const spaces = 1<<' ' | 1<<'\t' | 1<<'\n' | 1<<'\r'
	i := s.i
	for i < len(s.p) && s.p[i] <= ' ' && spaces>>s.p[i]&1 != 0 {
		i++
	}
	s.i = i
}

// take reads c if it is next.
func (s *scanner) take(c byte) bool {
	if s.i >= len(s.p) || s.p[s.i] != c {
		s.space()
	}
	if s.i < len(s.p) && s.p[s.i] == c {
		s.i++
		return true
	}
	return false
}

// word reads w if it is next; there is no space before it.
func (s *scanner) word(w string) bool {
	if len(s.p)-s.i >= len(w) && string(s.p[s.i:s.i+len(w)]) == w {
		s.i += len(w)
		return true
	}
	return false
}

func (s *scanner) null() bool {
	s.space()
	return s.i < len(s.p) && s.p[s.i] == 'n' && s.word("null")
}

// object calls field for each field, which reads its value.
func (s *scanner) object(field func(key []byte) error) error {
	if !s.take('{') {
		return s.unexpected("an object")
	}
	if s.take('}') {
		return nil
	}
	for {
		key, err := s.text()
		if err != nil {
			return err
		}
		if !s.take(':') {
			return s.unexpected("a colon")
		}
		if err := field(key); err != nil {
			return err
		}
		if !s.take(',') {
			break
		}
	}
	if !s.take('}') {
		return s.unexpected("the end of an object")
	}
	return nil
}

// array calls element for each element, which reads it.
func (s *scanner) array(element func() error) error {
	if !s.take('[') {
		return s.unexpected("an array")
	}
	if s.take(']') {
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if !s.take(',') {
			break
		}
	}
	if !s.take(']') {
		return s.unexpected("the end of an array")
	}
	return nil
}

// string reads a string or null.
func (s *scanner) string(dst *[]byte) error {
	if (s.i >= len(s.p) || s.p[s.i] != '"') && s.null() {
		return nil
	}
	b, err := s.text()
	if err == nil {
		*dst = b
	}
	return err
}

// base64 reads bytes written as encoding/json writes them, or null.
func (s *scanner) base64(dst *[]byte) error {
	if s.null() {
		return nil
	}
	b, err := s.text()
	if err != nil {
		return err
	}
	*dst, err = base64.StdEncoding.AppendDecode([]byte{}, b)
	return err
}

// int reads an integer or null.
func (s *scanner) int(dst *int64) error {
	if s.simpleInt(dst) || s.null() {
		return nil
	}
	start := s.i
	if err := s.digits(); err != nil {
		return err
	}
	if s.i < len(s.p) && (s.p[s.i] == '.' || s.p[s.i]|0x20 == 'e') {
		return s.unexpected("the end of an integer")
	}
	digits, neg := s.p[start:s.i], false
	if digits[0] == '-' {
		digits, neg = digits[1:], true
	}
	var v uint64
	for _, c := range digits {
		if v > math.MaxInt64/10 {
			return errRange
		}
		v = v*10 + uint64(c-'0')
	}
	switch {
	case neg && v <= 1<<63:
		*dst = -int64(v)
	case !neg && v <= math.MaxInt64:
		*dst = int64(v)
	default:
		return errRange
	}
	return nil
}

// simpleInt reads an integer if it is next, written as most are: without sign,
// leading zero and space around it, and short enough not to overflow.
func (s *scanner) simpleInt(dst *int64) bool {
	p := s.p[min(s.i, len(s.p)):]
	if len(p) < 20 || p[0]-'1' > 8 {
		return false
	}
	v, n := int64(0), 0
	for ; n < 18 && p[n]-'0' <= 9; n++ {
		v = v*10 + int64(p[n]-'0')
	}
	if p[n] != ',' && p[n] != '}' {
		return false
	}
	*dst = v
	s.i += n
	return true
}

var errRange = errors.New("is out of range")

// digits reads the integer part of a number.
func (s *scanner) digits() error {
	if s.i < len(s.p) && s.p[s.i] == '-' {
		s.i++
	}
	if s.word("0") {
		return nil
	}
	return s.digitRun()
}

// digitRun reads one or more digits.
func (s *scanner) digitRun() error {
	start := s.i
	for s.i < len(s.p) && s.p[s.i]-'0' <= 9 {
		s.i++
	}
	if s.i == start {
		return s.unexpected("a digit")
	}
	return nil
}

// skip reads any value; depth is how many values it is inside of.
func (s *scanner) skip(depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	s.space()
	if s.i >= len(s.p) {
		return s.unexpected("a value")
	}
	switch s.p[s.i] {
	case '{':
		return s.object(func([]byte) error { return s.skip(depth + 1) })
	case '[':
		return s.array(func() error { return s.skip(depth + 1) })
	case '"':
		_, err := s.text()
		return err
	}
	if s.word("null") || s.word("true") || s.word("false") {
		return nil
	}
	return s.skipNumber()
}

func (s *scanner) skipNumber() error {
	if err := s.digits(); err != nil {
		return err
	}
	if s.word(".") {
		if err := s.digitRun(); err != nil {
			return err
		}
	}
	if s.word("e") || s.word("E") {
		if !s.word("+") {
			s.word("-")
		}
		return s.digitRun()
	}
	return nil
}

// text reads a string. The result points into the JSON unless the string
// has escapes or bytes that are not UTF-8, which become U+FFFD.
func (s *scanner) text() ([]byte, error) {
	if !s.take('"') {
		return nil, s.unexpected("a string")
	}
	start, ascii := s.i, true
	for {
		s.i += plainPrefix(s.p[s.i:])
		if s.i >= len(s.p) {
			return nil, s.unexpected("the end of a string")
		}
		switch c := s.p[s.i]; {
		case c == '"':
			b := s.p[start:s.i]
			s.i++
			if ascii || utf8.Valid(b) {
				return b, nil
			}
			return s.unquote(start)
		case c == '\\':
			return s.unquote(start)
		case c < 0x20:
			return nil, s.unexpected("a character of a string")
		}
		ascii = false
		s.i++
	}
}

// plainPrefix returns how many bytes at the start of p are ASCII that needs
// no attention inside a string. It looks at eight bytes at a time.
func plainPrefix(p []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; len(p)-n >= 8; n += 8 {
		x := binary.LittleEndian.Uint64(p[n:])
		// The top bit of a byte is set where it is too large or, with something
		// subtracted, below zero. Borrowing only spoils what comes after that.
		special := (x | (x - ones*0x20) | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) & tops
		if special != 0 {
			return n + bits.TrailingZeros64(special)/8
		}
	}
	for ; n < len(p); n++ {
		if c := p[n]; c < 0x20 || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			break
		}
	}
	return n
}

// unquote reads the string that starts at start the slow way, as
// encoding/json does.
func (s *scanner) unquote(start int) ([]byte, error) {
	s.i = start
	for s.i < len(s.p) && s.p[s.i] != '"' {
		if s.p[s.i] == '\\' {
			s.i++
		}
		s.i++
	}
	if s.i >= len(s.p) {
		s.i = len(s.p)
		return nil, s.unexpected("the end of a string")
	}
	s.i++
	var str string
	if err := json.Unmarshal(s.p[start-1:s.i], &str); err != nil {
		return nil, err
	}
	return []byte(str), nil
}
