package estargz

import (
	"bytes"
	"encoding/hex"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
)

// refClean is cleanName as one would write it who is in no hurry. It is false
// for names that are to be refused.
func refClean(name string) (string, bool) {
	s := strings.TrimPrefix(path.Clean("/"+name), "/")
	long := slices.ContainsFunc(strings.Split(s, "/"), func(e string) bool { return len(e) > maxNameElement })
	return s, !long && !strings.Contains(s, "\x00")
}

// refDigest is parseDigest in that manner.
func refDigest(s string) (d [32]byte, ok bool) {
	digits, ok := strings.CutPrefix(s, digestPrefix)
	p, err := hex.DecodeString(digits)
	ok = ok && err == nil && len(p) == len(d) && digits == strings.ToLower(digits)
	copy(d[:], p)
	return d, ok
}

// FuzzWords holds how names, times and digests are read against the standard
// library. before is the name of the entry before.
func FuzzWords(f *testing.F) {
	for _, s := range []string{
		"", "/", "a", "a/", "a//", "a/b", "a/c", "a/./b", "../a", "a/..", ".", "a/b/\x00", "usr/lib/x/", "/usr", strings.Repeat("n", 256),
		"2024-02-29T12:34:56Z", "2023-02-29T12:34:56Z", "0000-01-01T00:00:00Z", "2024-13-01T00:00:00Z", "2024-01-01T24:00:00Z",
		"2024-01-01T00:60:00Z", "2024-01-01T00:00:60Z", "2024-01-01T00:00:00+01:00", "2024-04-31T00:00:00Z", "2024-01-0aT00:00:00Z",
		zeroSum, digestPrefix + strings.Repeat("0123456789abcdef", 4), digestPrefix + strings.Repeat("9a", 31) + "9g",
	} {
		f.Add("a/b", s)
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, before, s string) {
		d := &decoder{}
		for _, name := range []string{before, s} {
			want, ok := refClean(name)
			got, err := d.entryName([]byte(name))
			if (err == nil) != ok || ok && got != want {
				t.Fatalf("name %q behind %q is %q, %v; want %q, %v", name, before, got, err, want, ok)
			}
			got, err = cleanName([]byte(name))
			if (err == nil) != ok || ok && got != want {
				t.Fatalf("name %q is %q, %v; want %q, %v", name, got, err, want, ok)
			}
		}
		var got, want Entry
		ref, err := time.Parse(time.RFC3339, s)
		if gotErr := d.mtime(&got, []byte(s)); (gotErr == nil) != (err == nil || s == "") {
			t.Fatalf("time %q: %v; package time: %v", s, gotErr, err)
		} else if err == nil {
			want.MTime, want.MTimeNsec = ref.Unix(), uint32(ref.Nanosecond())
		}
		if got.MTime != want.MTime || got.MTimeNsec != want.MTimeNsec {
			t.Fatalf("time %q: %d.%09d, want %d.%09d", s, got.MTime, got.MTimeNsec, want.MTime, want.MTimeNsec)
		}
		var sum [32]byte
		wantSum, ok := refDigest(s)
		if err := parseDigest(&sum, []byte(s)); (err == nil) != ok || ok && sum != wantSum {
			t.Fatalf("digest %q: %x, %v; want %x, %v", s, sum, err, wantSum, ok)
		}
	})
}

// TestDigestDigits tries every byte as every digit.
func TestDigestDigits(t *testing.T) {
	for at := range 64 {
		for c := range 256 {
			s := bytes.Repeat([]byte{'7'}, 64)
			s[at] = byte(c)
			word := digestPrefix + string(s)
			want, ok := refDigest(word)
			var got [32]byte
			if err := parseDigest(&got, []byte(word)); (err == nil) != ok || ok && got != want {
				t.Fatalf("byte %#x at %d: %x, %v; want %x, %v", c, at, got, err, want, ok)
			}
		}
	}
}

// TestPlainPrefix tries every byte at every place, and behind what borrows.
func TestPlainPrefix(t *testing.T) {
	for size := range 20 {
		for at := range size {
			for c := range 256 {
				for _, fill := range []byte{' ', '#', 'x', 0x7f} {
					p := bytes.Repeat([]byte{fill}, size)
					p[at] = byte(c)
					want := size
					if c < 0x20 || c >= 0x80 || c == '"' || c == '\\' {
						want = at
					}
					if got := plainPrefix(p); got != want {
						t.Fatalf("%q: %d, want %d", p, got, want)
					}
				}
			}
		}
	}
}

// TestUTC says that the times of most layers take the fast way.
func TestUTC(t *testing.T) {
	for day := range 366 * 4 {
		want := time.Date(1999, 1, 1+day*31, 23, 59, day%60, 0, time.UTC)
		got, ok := utc([]byte(want.Format(time.RFC3339)))
		if !ok || !got.Equal(want) {
			t.Fatalf("%v: %v, %v", want, got, ok)
		}
	}
}

// refEntries are the entries and digests of chunks that Decode should return
// for a table it takes.
func refEntries(ref *refTOC) (entries []Entry, sums [][32]byte) {
	hidden := false
	left := int64(0)
	end := int64(0)
	for _, r := range ref.Entries {
		size := r.ChunkSize
		if r.Type != typeChunk {
			e := Entry{Type: typeOf([]byte(r.Type)), Mode: uint32(r.Mode & 0o7777), UID: uint32(r.UID), GID: uint32(r.GID)}
			name, link := r.Name, r.LinkName
			if r.RawName != nil {
				name = string(r.RawName)
			}
			if r.RawLinkName != nil {
				link = string(r.RawLinkName)
			}
			e.Name, _ = refClean(name)
			hidden = e.Name == prefetchLandmark || e.Name == noPrefetchLandmark || e.Name == tocName
			if hidden {
				continue
			}
			if mtime, err := time.Parse(time.RFC3339, r.ModTime); err == nil {
				e.MTime, e.MTimeNsec = mtime.Unix(), uint32(mtime.Nanosecond())
			}
			switch e.Type {
			case Symlink:
				e.Link = link
			case Hardlink:
				e.Link, _ = refClean(link)
			case Char, Block:
				e.DevMajor, e.DevMinor = uint32(r.DevMajor), uint32(r.DevMinor)
			case Regular:
				if e.Size = r.Size; e.Size > 0 {
					e.DataOff = end
					end = alignUp(end + e.Size)
				}
				left = e.Size
			}
			for k, v := range r.Xattrs {
				e.Xattrs = append(e.Xattrs, Xattr{k, v})
			}
			for k, v := range r.RawXattrs {
				var raw refBytes
				if raw.UnmarshalJSON([]byte(`"`+k+`"`)) == nil {
					e.Xattrs = append(e.Xattrs, Xattr{string(raw), v})
				}
			}
			slices.SortFunc(e.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
			entries = append(entries, e)
		}
		if hidden || left == 0 {
			continue
		}
		if size == 0 {
			size = left
		}
		left -= size
		if r.ChunkType == chunkTypeZeros {
			continue
		}
		sum, _ := refDigest(r.ChunkDigest)
		if r.ChunkDigest == "" {
			sum, _ = refDigest(r.Digest)
		}
		sums = append(sums, sum)
	}
	return entries, sums
}
