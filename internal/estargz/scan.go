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
	nameRawName     = "skimmer.rawName"
	nameRawLinkName = "skimmer.rawLinkName"
	nameRawXattrs   = "skimmer.rawXattrs"
)

// field is a field of an entry.
type field int8

const (
	noField field = iota - 1
	fieldName
	fieldType
	fieldSize
	fieldModTime
	fieldLinkName
	fieldMode
	fieldUID
	fieldGID
	fieldOffset
	fieldInnerOffset
	fieldDevMajor
	fieldDevMinor
	fieldXattrs
	fieldDigest
	fieldChunkOffset
	fieldChunkSize
	fieldChunkDigest
	fieldChunkType
	fieldRawName
	fieldRawLinkName
	fieldRawXattrs
)

// entryFields are the names of the fields.
var entryFields = [...]string{
	fieldName: "name", fieldType: "type", fieldSize: "size", fieldModTime: "modtime", fieldLinkName: "linkName",
	fieldMode: "mode", fieldUID: "uid", fieldGID: "gid", fieldOffset: "offset", fieldInnerOffset: "innerOffset",
	fieldDevMajor: "devMajor", fieldDevMinor: "devMinor", fieldXattrs: "xattrs", fieldDigest: "digest",
	fieldChunkOffset: "chunkOffset", fieldChunkSize: "chunkSize", fieldChunkDigest: "chunkDigest",
	fieldChunkType: "chunkType", fieldRawName: nameRawName, fieldRawLinkName: nameRawLinkName, fieldRawXattrs: nameRawXattrs,
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

// entry reads an entry. It is a loop of its own, not object with a function for
// each field, because most of what decoding costs is here.
func (s *scanner) entry(e *rawEntry) error {
	*e = rawEntry{xattrs: e.xattrs[:0], rawXattrs: e.rawXattrs[:0]}
	if s.null() {
		return errNullEntry
	}
	if !s.take('{') {
		return s.unexpected("an object")
	}
	if s.take('}') {
		return nil
	}
	var seen uint32
	for {
		key, err := s.text()
		if err != nil {
			return err
		}
		if !s.take(':') {
			return s.unexpected("a colon")
		}
		if f := findField(key); f == noField {
			err = s.skip(0)
		} else {
			if err = errTwice; seen&(1<<f) == 0 {
				err = s.field(e, f)
			}
			if err != nil {
				err = fmt.Errorf("field %q %w", key, err)
			}
			seen |= 1 << f
		}
		if err != nil {
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

// field reads the value of f.
func (s *scanner) field(e *rawEntry, f field) error {
	switch f {
	case fieldName:
		return s.string(&e.name)
	case fieldType:
		return s.string(&e.typ)
	case fieldSize:
		return s.int(&e.size)
	case fieldModTime:
		return s.string(&e.modTime)
	case fieldLinkName:
		return s.string(&e.linkName)
	case fieldMode:
		return s.int(&e.mode)
	case fieldUID:
		return s.int(&e.uid)
	case fieldGID:
		return s.int(&e.gid)
	case fieldOffset:
		return s.int(&e.offset)
	case fieldInnerOffset:
		return s.int(&e.innerOffset)
	case fieldDevMajor:
		return s.int(&e.devMajor)
	case fieldDevMinor:
		return s.int(&e.devMinor)
	case fieldXattrs:
		return s.xattrs(&e.xattrs)
	case fieldDigest:
		return s.string(&e.digest)
	case fieldChunkOffset:
		return s.int(&e.chunkOffset)
	case fieldChunkSize:
		return s.int(&e.chunkSize)
	case fieldChunkDigest:
		return s.string(&e.chunkDigest)
	case fieldChunkType:
		return s.string(&e.chunkType)
	case fieldRawName:
		return s.base64(&e.rawName)
	case fieldRawLinkName:
		return s.base64(&e.rawLinkName)
	}
	return s.xattrs(&e.rawXattrs)
}

// findField returns which field key is. Like encoding/json it ignores case
// where nothing matches exactly.
func findField(key []byte) field {
	switch string(key) { // the frequent ones
	case "name":
		return fieldName
	case "type":
		return fieldType
	case "size":
		return fieldSize
	case "modtime":
		return fieldModTime
	case "mode":
		return fieldMode
	case "offset":
		return fieldOffset
	case "digest":
		return fieldDigest
	case "chunkDigest":
		return fieldChunkDigest
	case "linkName":
		return fieldLinkName
	case "NumLink", "userName", "groupName":
		return noField
	}
	for f := range entryFields {
		if string(key) == entryFields[f] {
			return field(f)
		}
	}
	ascii := plainPrefix(key) == len(key)
	for f, name := range entryFields {
		// Only what is not ASCII folds to something of another length.
		if (!ascii || len(key) == len(name)) && strings.EqualFold(string(key), name) {
			return field(f)
		}
	}
	return noField
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
