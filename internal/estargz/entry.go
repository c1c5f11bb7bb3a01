package estargz

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// typeOf returns what a TOC's word for a type means, or 0.
func typeOf(word []byte) EntryType {
	switch string(word) {
	case "dir":
		return Dir
	case "reg":
		return Regular
	case "symlink":
		return Symlink
	case "hardlink":
		return Hardlink
	case "char":
		return Char
	case "block":
		return Block
	case "fifo":
		return Fifo
	}
	return 0
}

// entry fills in e, which is empty, without what says where its data is.
func (d *decoder) entry(e *Entry, raw *rawEntry) (err error) {
	e.Type, e.Mode = typeOf(raw.typ), uint32(raw.mode&0o7777)
	if e.Type == 0 {
		return fmt.Errorf("unknown type %q", raw.typ)
	}
	name, linkName := raw.name, raw.linkName
	if raw.rawName != nil {
		name = raw.rawName
	}
	if raw.rawLinkName != nil {
		linkName = raw.rawLinkName
	}
	if e.Name, err = d.entryName(name); err != nil {
		return err
	}
	if e.Name == "" && e.Type != Dir {
		return fmt.Errorf("the root directory cannot be of type %q", raw.typ)
	}
	if raw.uid < 0 || raw.uid > maxID || raw.gid < 0 || raw.gid > maxID {
		return fmt.Errorf("owner %d:%d %w", raw.uid, raw.gid, errRange)
	}
	e.UID, e.GID = uint32(raw.uid), uint32(raw.gid)
	if err := d.mtime(e, raw.modTime); err != nil {
		return err
	}
	if len(raw.xattrs)+len(raw.rawXattrs) > 0 {
		if e.Xattrs, err = xattrs(raw); err != nil {
			return err
		}
	}
	return d.typed(e, raw, linkName)
}

// typed fills in what only some types of entries have.
func (d *decoder) typed(e *Entry, raw *rawEntry, linkName []byte) (err error) {
	switch e.Type {
	case Regular:
		if raw.size < 0 {
			return fmt.Errorf("size %d is negative", raw.size)
		}
		e.Size = raw.size
	case Symlink:
		if len(linkName) == 0 || len(linkName) > maxLink || bytes.IndexByte(linkName, 0) >= 0 {
			return fmt.Errorf("symlink target of %d bytes is empty, too long or holds a NUL", len(linkName))
		}
		e.Link = d.names.add(linkName)
	case Hardlink:
		if e.Link, err = d.names.clean(linkName); err != nil {
			return fmt.Errorf("hard link to: %w", err)
		}
		if e.Link == "" {
			return errors.New("hard link to the root directory")
		}
	case Char, Block:
		if raw.devMajor < 0 || raw.devMajor > maxMajor || raw.devMinor < 0 || raw.devMinor > maxMinor {
			return fmt.Errorf("device number %d:%d %w", raw.devMajor, raw.devMinor, errRange)
		}
		e.DevMajor, e.DevMinor = uint32(raw.devMajor), uint32(raw.devMinor)
	}
	return nil
}

// mtime parses a modification time; none stands for the epoch.
func (d *decoder) mtime(e *Entry, s []byte) error {
	if len(s) == 0 {
		return nil
	}
	if !bytes.Equal(s, d.modTime) {
		t, ok := utc(s)
		if !ok {
			var err error
			if t, err = time.Parse(time.RFC3339, string(s)); err != nil {
				return fmt.Errorf("modification time: %w", err)
			}
		}
		d.modTime, d.sec, d.nsec = s, t.Unix(), uint32(t.Nanosecond())
	}
	e.MTime, e.MTimeNsec = d.sec, d.nsec
	return nil
}

// utc parses a time as most are written, such as 2024-02-29T12:34:56Z.
func utc(s []byte) (time.Time, bool) {
	const form = "0000-00-00T00:00:00Z"
	if len(s) != len(form) {
		return time.Time{}, false
	}
	for i := range len(form) {
		if form[i] == '0' && s[i]-'0' > 9 || form[i] != '0' && s[i] != form[i] {
			return time.Time{}, false
		}
	}
	two := func(i int) int { return int(s[i]-'0')*10 + int(s[i+1]-'0') }
	month, day, hour, minute, second := two(5), two(8), two(11), two(14), two(17)
	if month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	t := time.Date(two(0)*100+two(2), time.Month(month), day, hour, minute, second, 0, time.UTC)
	return t, t.Day() == day // the month may be shorter
}

// xattrs returns the attributes of raw, sorted.
func xattrs(raw *rawEntry) ([]Xattr, error) {
	xs := make([]Xattr, 0, len(raw.xattrs)+len(raw.rawXattrs))
	for _, x := range raw.xattrs {
		xs = append(xs, Xattr{string(x.name), x.value})
	}
	for _, x := range raw.rawXattrs {
		name, err := base64.StdEncoding.AppendDecode(nil, x.name)
		if err != nil {
			return nil, fmt.Errorf("name of extended attribute %q: %w", x.name, err)
		}
		xs = append(xs, Xattr{string(name), x.value})
	}
	slices.SortFunc(xs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	for i, x := range xs {
		switch {
		case x.Name == "" || len(x.Name) > maxXattrName || strings.IndexByte(x.Name, 0) >= 0:
			return nil, fmt.Errorf("name of extended attribute %q is empty, too long or holds a NUL", x.Name)
		case len(x.Value) > maxXattrValue:
			return nil, fmt.Errorf("extended attribute %q has %d bytes, at most %d are possible", x.Name, len(x.Value), maxXattrValue)
		case i > 0 && xs[i-1].Name == x.Name:
			return nil, fmt.Errorf("extended attribute %q %w", x.Name, errTwice)
		}
	}
	return xs, nil
}
