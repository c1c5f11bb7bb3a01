package estargz

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Names that eStargz reserves in the root directory of a layer.
const (
	tocName            = "stargz.index.json"
	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"
)

// Words of the TOC.
const (
	typeChunk      = "chunk"
	chunkTypeZeros = "zeros"
	digestPrefix   = "sha256:"
)

// What Linux and its file systems can hold, and what we are ready to hold.
const (
	maxNameElement = 255     // NAME_MAX
	maxLink        = 4095    // PATH_MAX without its NUL
	maxXattrName   = 255     // XATTR_NAME_MAX
	maxXattrValue  = 1 << 16 // XATTR_SIZE_MAX
	maxMajor       = 1<<12 - 1
	maxMinor       = 1<<20 - 1
	maxID          = math.MaxUint32
	maxFlatData    = math.MaxInt64 / 4
	maxEntries     = 4 << 20
)

var entryTypes = map[string]EntryType{
	"dir": Dir, "reg": Regular, "symlink": Symlink, "hardlink": Hardlink,
	"char": Char, "block": Block, "fifo": Fifo,
}

// Decode decodes and checks the table of contents of a layer of blobSize
// bytes, whose file data ends at payloadEnd. The result does not refer to
// json. Decode does not look at digests of the JSON; ReadTOC does.
//
// It takes what stargz-snapshotter and containers/storage write, and the
// extensions of Build. Names are cleaned as those tools do it, as paths
// below the root. A file may have holes (chunks of type "zeros"): no Chunk
// covers them. A table that contradicts itself, points outside the payload,
// leaves a byte of a file without a digest, or names what no file system can
// hold is an Invalid error that names the entry. Memory stays proportional
// to len(json).
func Decode(json []byte, c Compression, blobSize, payloadEnd int64) (*TOC, error) {
	toc, err := decode(json, c, blobSize, payloadEnd)
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "decode table of contents: %w", err)
	}
	toc.Digest = digest.FromBytes(json)
	return toc, nil
}

// decode is Decode without Digest.
func decode(json []byte, c Compression, blobSize, payloadEnd int64) (*TOC, error) {
	if payloadEnd < 0 || payloadEnd > blobSize {
		return nil, fmt.Errorf("payload ends at %d in a blob of %d bytes", payloadEnd, blobSize)
	}
	d := &decoder{toc: new(TOC), payloadEnd: payloadEnd, stream: Stream{Off: -1}}
	d.ix = &d.toc.Index
	// Entries take 250 to 400 bytes; one array too large is cheaper than many.
	d.toc.Entries = make([]Entry, 0, len(json)/256)
	d.ix.Chunks = make([]Chunk, 0, len(json)/256)
	d.ix.Compression, d.ix.BlobSize = c, blobSize
	if err := scanTOC(json, d.add); err != nil {
		return nil, err
	}
	return d.toc, d.finish()
}

// decoder turns raw entries into a TOC.
type decoder struct {
	toc        *TOC
	ix         *Index
	payloadEnd int64

	// stream is the one that chunks are being added to; its End is not known
	// yet, and inner is how much of its content is.
	stream Stream
	inner  int64

	// file is the regular file whose chunks are expected. covered is how much
	// of it they have covered.
	file    File
	covered int64
	hidden  bool // the last entry was a landmark: its chunks are of no interest

	modTime []byte // as last parsed, since neighbours share it
	time    time.Time
}

// add takes the next entry.
func (d *decoder) add(raw *rawEntry) error {
	if string(raw.typ) == typeChunk {
		return d.chunk(raw)
	}
	if err := d.endFile(); err != nil {
		return err
	}
	if len(d.toc.Entries) == maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	e, err := d.entry(raw)
	if err != nil {
		return err
	}
	switch e.Name {
	case prefetchLandmark, noPrefetchLandmark, tocName:
		return d.landmark(&e, raw)
	}
	d.hidden = false
	if e.Type == Regular && e.Size > 0 {
		if e.Size > maxFlatData-d.ix.DataSize {
			return fmt.Errorf("size %d %w", e.Size, errRange)
		}
		e.DataOff = d.ix.DataSize
		d.ix.DataSize = alignUp(e.DataOff + e.Size)
		d.file, d.covered = File{Name: e.Name, DataOff: e.DataOff, Size: e.Size}, 0
		d.ix.Files = append(d.ix.Files, d.file)
		if err := d.chunk(raw); err != nil {
			return err
		}
	}
	d.toc.Entries = append(d.toc.Entries, e)
	return nil
}

// landmark takes an entry that only speaks to the format. Its content takes
// room in the payload but not in the flat data.
func (d *decoder) landmark(e *Entry, raw *rawEntry) error {
	d.hidden = true
	if e.Name == noPrefetchLandmark {
		d.toc.NoPrefetch = true
	}
	if e.Type != Regular || e.Size == 0 {
		return nil
	}
	if err := d.openStream(raw.offset); err != nil {
		return err
	}
	if e.Name == prefetchLandmark {
		d.ix.PrefetchEnd = raw.offset
	}
	return nil
}

// openStream makes the stream at off the one chunks are added to.
func (d *decoder) openStream(off int64) error {
	switch {
	case off < 0 || off >= d.payloadEnd:
		return fmt.Errorf("offset %d is outside the payload of %d bytes", off, d.payloadEnd)
	case off == d.stream.Off:
		return nil
	case off < d.stream.Off:
		return fmt.Errorf("offset %d is before that of the entry before it, %d", off, d.stream.Off)
	}
	d.closeStream(off)
	d.stream = Stream{Off: off, FirstChunk: uint32(len(d.ix.Chunks))}
	d.inner = 0
	return nil
}

// closeStream says that the current stream ends at end.
func (d *decoder) closeStream(end int64) {
	if d.stream.NumChunks > 0 {
		d.stream.End = end
		d.ix.Streams = append(d.ix.Streams, d.stream)
	}
}

// chunk takes the next chunk of the current file.
func (d *decoder) chunk(raw *rawEntry) error {
	if d.hidden {
		return nil
	}
	left := d.file.Size - d.covered
	size := raw.chunkSize
	if size == 0 {
		size = left
	}
	switch {
	case left == 0:
		return errors.New("chunk does not follow a file that it could belong to")
	case raw.chunkOffset != d.covered:
		return fmt.Errorf("chunk starts at %d of its file, where %d should be", raw.chunkOffset, d.covered)
	case size < 0 || size > left:
		return fmt.Errorf("chunk of %d bytes where %d are left of the file", size, left)
	}
	c := Chunk{InnerOff: raw.innerOffset, DataOff: d.file.DataOff + d.covered, Size: size}
	d.covered += size
	switch string(raw.chunkType) {
	case "":
	case chunkTypeZeros:
		return nil
	default:
		return fmt.Errorf("unknown chunk type %q", raw.chunkType)
	}
	if size > maxChunk {
		return fmt.Errorf("chunk of %d bytes, at most %d are supported", size, int64(maxChunk))
	}
	sum := raw.chunkDigest
	if len(sum) == 0 && size == d.file.Size {
		sum = raw.digest // the digest of the file is that of its only chunk
	}
	if err := parseDigest(&c.Digest, sum); err != nil {
		return err
	}
	if err := d.openStream(raw.offset); err != nil {
		return err
	}
	if c.InnerOff < d.inner || c.InnerOff > math.MaxInt64-size {
		return fmt.Errorf("inner offset %d, but the chunk before it ends at %d of the same stream", c.InnerOff, d.inner)
	}
	d.inner = c.InnerOff + size
	d.ix.Chunks = append(d.ix.Chunks, c)
	d.stream.NumChunks++
	return nil
}

func (d *decoder) endFile() error {
	if d.covered < d.file.Size {
		return fmt.Errorf("file %q before it: chunks cover %d of its %d bytes", d.file.Name, d.covered, d.file.Size)
	}
	return nil
}

func (d *decoder) finish() error {
	if err := d.endFile(); err != nil {
		return err
	}
	d.closeStream(d.payloadEnd)
	return d.ix.check()
}

// parseDigest reads a SHA-256 digest as OCI writes it.
func parseDigest(dst *[32]byte, s []byte) error {
	if len(s) == 0 {
		return errors.New("has no chunk digest, so its content cannot be verified")
	}
	if len(s) == len(digestPrefix)+2*len(dst) && string(s[:len(digestPrefix)]) == digestPrefix {
		var bad byte
		for i := range dst {
			hi, lo := unhex[s[len(digestPrefix)+2*i]], unhex[s[len(digestPrefix)+2*i+1]]
			bad |= hi | lo
			dst[i] = hi<<4 | lo&0xf
		}
		if bad < 16 {
			return nil
		}
	}
	return fmt.Errorf("chunk digest %q is not a SHA-256 digest", s)
}

// unhex is the value of a lower-case hexadecimal digit, or 255.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i, c := range []byte("0123456789abcdef") {
		t[c] = byte(i)
	}
	return t
}()

// entry returns the entry without what says where its data is.
func (d *decoder) entry(raw *rawEntry) (Entry, error) {
	e := Entry{Type: entryTypes[string(raw.typ)], Mode: uint32(raw.mode & 0o7777)}
	if e.Type == 0 {
		return e, fmt.Errorf("unknown type %q", raw.typ)
	}
	name, linkName := raw.name, raw.linkName
	if raw.rawName != nil {
		name = raw.rawName
	}
	if raw.rawLinkName != nil {
		linkName = raw.rawLinkName
	}
	var err error
	if e.Name, err = cleanName(name); err != nil {
		return e, err
	}
	if e.Name == "" && e.Type != Dir {
		return e, fmt.Errorf("the root directory cannot be of type %q", raw.typ)
	}
	if raw.uid < 0 || raw.uid > maxID || raw.gid < 0 || raw.gid > maxID {
		return e, fmt.Errorf("owner %d:%d %w", raw.uid, raw.gid, errRange)
	}
	e.UID, e.GID = uint32(raw.uid), uint32(raw.gid)
	if err := d.mtime(&e, raw.modTime); err != nil {
		return e, err
	}
	if e.Xattrs, err = xattrs(raw); err != nil {
		return e, err
	}
	return e, typed(&e, raw, linkName)
}

// typed fills in what only some types of entries have.
func typed(e *Entry, raw *rawEntry, linkName []byte) (err error) {
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
		e.Link = string(linkName)
	case Hardlink:
		if e.Link, err = cleanName(linkName); err != nil {
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
		t, err := time.Parse(time.RFC3339, string(s))
		if err != nil {
			return fmt.Errorf("modification time: %w", err)
		}
		d.modTime, d.time = s, t
	}
	e.MTime, e.MTimeNsec = d.time.Unix(), uint32(d.time.Nanosecond())
	return nil
}

// xattrs returns the attributes of raw, sorted.
func xattrs(raw *rawEntry) ([]Xattr, error) {
	n := len(raw.xattrs) + len(raw.rawXattrs)
	if n == 0 {
		return nil, nil
	}
	xs := make([]Xattr, 0, n)
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

// cleanName returns name as a path below the root, as Entry.Name has it.
func cleanName(name []byte) (string, error) {
	if n := len(name); n > 0 && name[n-1] == '/' {
		name = name[:n-1] // as directories usually have it
	}
	if isClean(name) {
		return string(name), nil
	}
	s := strings.TrimPrefix(path.Clean("/"+string(name)), "/")
	if s == "" || isClean([]byte(s)) {
		return s, nil
	}
	return "", fmt.Errorf("name %q holds a NUL or an element of more than %d bytes", s, maxNameElement)
}

// isClean reports whether name is, as it stands, a path below the root that
// a file system can hold.
func isClean(name []byte) bool {
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			if name[i] == 0 {
				return false
			}
			continue
		}
		switch element := name[start:i]; {
		case len(element) == 0, len(element) > maxNameElement,
			element[0] == '.' && (len(element) == 1 || string(element) == ".."):
			return false
		}
		start = i + 1
	}
	return true
}
