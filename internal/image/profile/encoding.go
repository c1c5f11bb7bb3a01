package profile

import (
	_ "crypto/sha256" // digests of these kinds can be checked
	_ "crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// An encoding is
//
//	"SKPF" version
//	manifest platform recorded starts
//	count-of-layers { digest toc chunks }
//	count-of-reads  { layer first count-1 at starts }
//	CRC-32C of all before, little endian
//
// where numbers are varints of least length, so that a profile has one
// encoding only; a digest is its algorithm's number and its bytes; a text is
// its length and its bytes. Of a read, layer and first are signed differences:
// to the layer of the read before, and to where the last read of the same
// layer ended; at is the milliseconds since the read before.
const (
	magic   = "SKPF"
	version = 1

	sumSize = 4
	// minLayer and minRead are the least bytes one takes.
	minLayer = 2*(1+32) + 1
	minRead  = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var algorithms = []digest.Algorithm{"", digest.SHA256, digest.SHA384, digest.SHA512}

// algorithmNumber returns the number that stands for a, or 0.
func algorithmNumber(a digest.Algorithm) int { return max(0, slices.Index(algorithms, a)) }

// Encode returns the profile as bytes, at most MaxSize. Times are cut to what
// a profile keeps of them: whole seconds and milliseconds. Equal profiles have
// equal encodings.
//
// Errors: Invalid for what Validate finds wrong, or a profile that takes more
// than MaxSize; Fit makes it small enough.
func Encode(p Profile) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	e := newEncoder(p)
	e.buf = binary.AppendUvarint(e.buf, uint64(len(p.Reads)))
	for _, r := range p.Reads {
		e.read(r)
	}
	e.buf = binary.LittleEndian.AppendUint32(e.buf, crc32.Checksum(e.buf, castagnoli))
	if len(e.buf) > MaxSize {
		return nil, blob.Errorf(blob.Invalid, "encode profile of %v: it takes %d bytes, more than %d", p.Manifest, len(e.buf), MaxSize)
	}
	return e.buf, nil
}

// Fit returns the profile without the latest reads, as many as it takes for
// it to be within MaxReads and MaxSize. p is not changed, but shares its
// layers and reads with what is returned.
func (p Profile) Fit() Profile {
	p.Reads = p.Reads[:min(len(p.Reads), MaxReads)]
	e := newEncoder(p)
	for i, r := range p.Reads {
		e.read(r)
		if len(e.buf)+binary.MaxVarintLen16+sumSize > MaxSize {
			p.Reads = p.Reads[:i]
			break
		}
	}
	return p
}

// encoder writes a profile; what reads are written as differences to is here.
type encoder struct {
	buf   []byte
	layer int
	at    int64
	ends  []int
}

// newEncoder returns an encoder that has written all but the reads.
func newEncoder(p Profile) *encoder {
	e := &encoder{ends: make([]int, len(p.Layers))}
	e.buf = append(e.buf, magic...)
	e.buf = append(e.buf, version)
	e.digest(p.Manifest)
	e.buf = binary.AppendUvarint(e.buf, uint64(len(p.Platform)))
	e.buf = append(e.buf, p.Platform...)
	e.buf = binary.AppendUvarint(e.buf, uint64(p.Recorded.Unix()))
	e.buf = binary.AppendUvarint(e.buf, uint64(p.Starts))
	e.buf = binary.AppendUvarint(e.buf, uint64(len(p.Layers)))
	for _, l := range p.Layers {
		e.digest(l.Digest)
		e.digest(l.TOC)
		e.buf = binary.AppendUvarint(e.buf, uint64(l.Chunks))
	}
	return e
}

func (e *encoder) digest(d digest.Digest) {
	if d.Validate() != nil {
		return // only Fit comes here with one: Encode has checked
	}
	sum, _ := hex.DecodeString(d.Encoded()) // Validate says it is hexadecimal
	e.buf = append(e.buf, byte(algorithmNumber(d.Algorithm())))
	e.buf = append(e.buf, sum...)
}

func (e *encoder) read(r Read) {
	at, end := r.At.Milliseconds(), 0
	if r.Layer >= 0 && r.Layer < len(e.ends) {
		end, e.ends[r.Layer] = e.ends[r.Layer], r.end()
	}
	e.buf = binary.AppendVarint(e.buf, int64(r.Layer-e.layer))
	e.buf = binary.AppendVarint(e.buf, int64(r.First-end))
	e.buf = binary.AppendUvarint(e.buf, uint64(r.Count-1))
	e.buf = binary.AppendUvarint(e.buf, uint64(at-e.at))
	e.buf = binary.AppendUvarint(e.buf, uint64(r.Starts))
	e.layer, e.at = r.Layer, at
}

// Decode returns the profile that data is the encoding of. It checks
// everything: what it returns passes Validate, and its encoding is data.
//
// Errors: Corrupt for what is no encoding of a profile, or of one that is
// wrong; Invalid for the encoding of a newer version.
func Decode(data []byte) (Profile, error) {
	if len(data) < len(magic)+1+sumSize || string(data[:len(magic)]) != magic {
		return Profile{}, blob.Errorf(blob.Corrupt, "decode profile: it is none")
	}
	if v := data[len(magic)]; v != version {
		return Profile{}, blob.Errorf(blob.Invalid, "decode profile: it has version %d, this program knows version %d", v, version)
	}
	if len(data) > MaxSize {
		return Profile{}, blob.Errorf(blob.Corrupt, "decode profile: %d bytes, more than %d", len(data), MaxSize)
	}
	body := data[:len(data)-sumSize]
	if binary.LittleEndian.Uint32(data[len(body):]) != crc32.Checksum(body, castagnoli) {
		return Profile{}, blob.Errorf(blob.Corrupt, "decode profile: its checksum does not match")
	}
	d := decoder{buf: body[len(magic)+1:]}
	p := d.profile()
	if d.err == nil && len(d.buf) > 0 {
		d.fail("%d bytes too many", len(d.buf))
	}
	if d.err != nil {
		return Profile{}, d.err
	}
	if err := p.Validate(); err != nil {
		return Profile{}, blob.Errorf(blob.Corrupt, "decode profile: %w", err)
	}
	return p, nil
}

// decoder reads a profile. After the first error it reads zeros.
type decoder struct {
	buf []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = blob.Errorf(blob.Corrupt, "decode profile: "+format, args...)
	}
	d.buf = nil
}

func (d *decoder) profile() Profile {
	p := Profile{
		Manifest: d.digest("manifest"),
		Platform: string(d.bytes("platform", d.number("platform's length", maxPlatform))),
		Recorded: time.Unix(int64(d.number("time of recording", 1<<40)), 0).UTC(),
		Starts:   d.number("starts", MaxStarts),
	}
	n := d.number("number of layers", len(d.buf)/minLayer)
	if n > 0 {
		p.Layers = make([]Layer, n)
	}
	for i := range p.Layers {
		p.Layers[i] = Layer{Digest: d.digest("layer"), TOC: d.digest("table of contents"), Chunks: d.number("chunks", maxChunks)}
	}
	n = d.number("number of reads", min(MaxReads, len(d.buf)/minRead))
	if n > 0 {
		p.Reads = make([]Read, n)
	}
	layer, at, ends := 0, 0, make([]int, len(p.Layers))
	for i := range p.Reads {
		layer += d.difference("layer", maxLayers)
		if layer < 0 || layer >= len(ends) {
			d.fail("read %d is of layer %d of %d", i, layer, len(ends))
		}
		if d.err != nil {
			break
		}
		r := Read{Layer: layer, First: ends[layer] + d.difference("first chunk", maxChunks), Count: 1 + d.number("number of chunks", maxChunks)}
		at += d.number("time", int(maxAt/time.Millisecond))
		r.At, r.Starts = time.Duration(at)*time.Millisecond, d.number("starts", MaxStarts)
		ends[layer] = r.end()
		p.Reads[i] = r
	}
	return p
}

func (d *decoder) bytes(what string, n int) []byte {
	if n > len(d.buf) {
		d.fail("it ends inside the %s", what)
		return nil
	}
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b
}

func (d *decoder) digest(what string) digest.Digest {
	i := d.number(what+"'s algorithm", len(algorithms)-1)
	if i == 0 {
		d.fail("the %s has no digest", what)
		return ""
	}
	a := algorithms[i]
	b := d.bytes(what+"'s digest", a.Size())
	return digest.NewDigestFromEncoded(a, hex.EncodeToString(b))
}

// number reads one from 0 to most.
func (d *decoder) number(what string, most int) int {
	v, n := binary.Uvarint(d.buf)
	switch {
	case d.err != nil:
		return 0
	case n <= 0 || n > 1 && d.buf[n-1] == 0:
		d.fail("bad %s", what)
		return 0
	case v > uint64(most):
		d.fail("%s %d, want at most %d", what, v, most)
		return 0
	}
	d.buf = d.buf[n:]
	return int(v)
}

// difference reads a number from -most to most.
func (d *decoder) difference(what string, most int) int {
	u := uint64(d.number(what, 2*most+1))
	return int(int64(u>>1) ^ -int64(u&1))
}
