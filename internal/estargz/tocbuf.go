package estargz

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"sync"

	"skimmer/internal/estargz/gunzip"
)

// tocBuffer is what reading a table of contents needs for a moment. The layers
// of an image are read one after another and side by side; new memory, which
// the kernel has to clear, costs more than half of what decompressing does.
type tocBuffer struct {
	gz   gunzip.Reader
	tail []byte // the end of the blob
	text []byte // the table, decompressed
}

var tocBuffers sync.Pool // of *tocBuffer

// maxKept is how many bytes a buffer may have to be kept for the next table.
const maxKept = 8 << 20

func newTOCBuffer() *tocBuffer {
	if b, ok := tocBuffers.Get().(*tocBuffer); ok {
		return b
	}
	return new(tocBuffer)
}

// release gives b back; nobody may hold what was in it.
func (b *tocBuffer) release() {
	if cap(b.tail)+cap(b.text) <= maxKept {
		tocBuffers.Put(b)
	}
}

// sized returns buf, or a new one that is large enough, with n bytes.
func sized(buf []byte, n int) []byte {
	if cap(buf) < n {
		return make([]byte, n)
	}
	return buf[:n]
}

// unpack returns the table of contents in p, a gzip member. It is good until
// release. unpack is false for what it cannot make sense of at once, for tables
// of more than limit bytes, and for such as are not alone in an ordinary tar.
func (b *tocBuffer) unpack(p []byte, limit int64) ([]byte, bool) {
	const lengthSize = 4 // of the content, at the end of a member
	if len(p) < lengthSize {
		return nil, false
	}
	plain := int64(binary.LittleEndian.Uint32(p[len(p)-lengthSize:]))
	if plain < tarBlock || plain > limit {
		return nil, false
	}
	b.text = sized(b.text, int(plain)+gunzip.Slack)
	n, err := b.gz.Unpack(b.text, p)
	if err != nil || n < tarBlock {
		return nil, false
	}
	r := bytes.NewReader(b.text[:n])
	h, err := tar.NewReader(r).Next()
	if err != nil || h.Name != tocName || h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 {
		return nil, false
	}
	if r.Len() != n-tarBlock || h.Size > int64(r.Len()) {
		return nil, false
	}
	return b.text[tarBlock:][:h.Size], true
}
