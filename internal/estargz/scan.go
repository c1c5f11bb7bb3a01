package estargz

import (
	"errors"
	"fmt"
	"strings"
)

// rawEntry is one element of a TOC's "entries" as the JSON has it. Its byte
// slices may point into the JSON; nobody changes them.
type rawEntry struct {
	name, typ, linkName, modTime   []byte
	digest, chunkDigest, chunkType []byte
	size, mode, uid, gid           int64
	offset, innerOffset            int64
	devMajor, devMinor             int64
	chunkOffset, chunkSize         int64
	xattrs, rawXattrs              []rawXattr
	rawName, rawLinkName           []byte // nil where absent
}

// rawXattr is an extended attribute; in rawXattrs the name is still base64.
type rawXattr struct{ name, value []byte }

// The private extensions of the TOC that Build writes and Decode honours.
// JSON cannot hold what is not UTF-8: such names are written twice, damaged
// where every tool looks and in base64 here; such attributes stand here
// alone. Tools that do not know these fields ignore them.
const (
	fieldRawName     = "skimmer.rawName"
	fieldRawLinkName = "skimmer.rawLinkName"
	fieldRawXattrs   = "skimmer.rawXattrs"
)

// entryFields are the fields of an entry, in the order in which the tools
// that build layers write them.
var entryFields = [...]struct {
	name string
	read func(*scanner, *rawEntry) error
}{
	{"name", func(s *scanner, e *rawEntry) error { return s.string(&e.name) }},
	{"type", func(s *scanner, e *rawEntry) error { return s.string(&e.typ) }},
	{"size", func(s *scanner, e *rawEntry) error { return s.int(&e.size) }},
	{"modtime", func(s *scanner, e *rawEntry) error { return s.string(&e.modTime) }},
	{"linkName", func(s *scanner, e *rawEntry) error { return s.string(&e.linkName) }},
	{"mode", func(s *scanner, e *rawEntry) error { return s.int(&e.mode) }},
	{"uid", func(s *scanner, e *rawEntry) error { return s.int(&e.uid) }},
	{"gid", func(s *scanner, e *rawEntry) error { return s.int(&e.gid) }},
	{"offset", func(s *scanner, e *rawEntry) error { return s.int(&e.offset) }},
	{"innerOffset", func(s *scanner, e *rawEntry) error { return s.int(&e.innerOffset) }},
	{"devMajor", func(s *scanner, e *rawEntry) error { return s.int(&e.devMajor) }},
	{"devMinor", func(s *scanner, e *rawEntry) error { return s.int(&e.devMinor) }},
	{"xattrs", func(s *scanner, e *rawEntry) error { return s.xattrs(&e.xattrs) }},
	{"digest", func(s *scanner, e *rawEntry) error { return s.string(&e.digest) }},
	{"chunkOffset", func(s *scanner, e *rawEntry) error { return s.int(&e.chunkOffset) }},
	{"chunkSize", func(s *scanner, e *rawEntry) error { return s.int(&e.chunkSize) }},
	{"chunkDigest", func(s *scanner, e *rawEntry) error { return s.string(&e.chunkDigest) }},
	{"chunkType", func(s *scanner, e *rawEntry) error { return s.string(&e.chunkType) }},
	{fieldRawName, func(s *scanner, e *rawEntry) error { return s.base64(&e.rawName) }},
	{fieldRawLinkName, func(s *scanner, e *rawEntry) error { return s.base64(&e.rawLinkName) }},
	{fieldRawXattrs, func(s *scanner, e *rawEntry) error { return s.xattrs(&e.rawXattrs) }},
}

var (
	errTwice     = errors.New("is given twice")
	errNullEntry = errors.New("is null")
)

// scanTOC calls add for each entry of a TOC; the rawEntry is only valid
// during the call.
//
// It takes the JSON that encoding/json takes for the same struct and reads
// it the same way, down to the case of field names, so that it sees what
// other tools see; except that it refuses fields given twice, entries that
// are null, and unknown values nested absurdly deep.
func scanTOC(p []byte, add func(*rawEntry) error) error {
	s := &scanner{p: p}
	err := s.toc(add)
	if err == nil {
		s.space()
		if s.i < len(s.p) {
			err = fmt.Errorf("something behind the end at byte %d", s.i)
		}
	}
	return err
}

func (s *scanner) toc(add func(*rawEntry) error) error {
	if s.null() {
		return nil
	}
	var hasVersion, hasEntries bool
	once := func(seen *bool, key []byte) error {
		if *seen {
			return fmt.Errorf("field %q %w", key, errTwice)
		}
		*seen = true
		return nil
	}
	return s.object(func(key []byte) error {
		switch {
		case strings.EqualFold(string(key), "version"):
			if err := once(&hasVersion, key); err != nil {
				return err
			}
			return s.int(new(int64))
		case strings.EqualFold(string(key), "entries"):
			if err := once(&hasEntries, key); err != nil {
				return err
			}
			return s.entries(add)
		}
		return s.skip(0)
	})
}

func (s *scanner) entries(add func(*rawEntry) error) error {
	if s.null() {
		return nil
	}
	var e rawEntry
	n := 0
	return s.array(func() error {
		err := s.entry(&e)
		if err == nil {
			err = add(&e)
		}
		if err != nil {
			return fmt.Errorf("entry %d (%q): %w", n, e.name, err)
		}
		n++
		return nil
	})
}

func (s *scanner) entry(e *rawEntry) error {
	*e = rawEntry{xattrs: e.xattrs[:0], rawXattrs: e.rawXattrs[:0]}
	if s.null() {
		return errNullEntry
	}
	var seen uint32
	last := -1
	return s.object(func(key []byte) (err error) {
		f := findField(key, last+1)
		switch {
		case f < 0:
			return s.skip(0)
		case seen&(1<<f) != 0:
			err = errTwice
		default:
			err = entryFields[f].read(s, e)
		}
		if err != nil {
			return fmt.Errorf("field %q %w", key, err)
		}
		seen |= 1 << f
		last = f
		return nil
	})
}

// findField returns which of entryFields key is, or -1; guess is where to
// look first. Like encoding/json it ignores case where nothing matches
// exactly.
func findField(key []byte, guess int) int {
	for i := range entryFields {
		f := i + guess
		if f >= len(entryFields) {
			f -= len(entryFields)
		}
		if string(key) == entryFields[f].name {
			return f
		}
	}
	ascii := plainPrefix(key) == len(key)
	for f := range entryFields {
		name := entryFields[f].name
		// Only what is not ASCII folds to something of another length.
		if (!ascii || len(key) == len(name)) && strings.EqualFold(string(key), name) {
			return f
		}
	}
	return -1
}

// xattrs reads an object whose values are base64. Whether a name comes twice
// is for the reader of the entry to find.
func (s *scanner) xattrs(dst *[]rawXattr) error {
	if s.null() {
		return nil
	}
	return s.object(func(name []byte) error {
		*dst = append(*dst, rawXattr{name: name})
		return s.base64(&(*dst)[len(*dst)-1].value)
	})
}
