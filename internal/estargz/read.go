package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// ErrNotLazy is in the chain of an error about a layer that cannot be used
// lazily as it is: it has no table of contents, or the manifest promises no
// digest for it. Such a layer is unpacked instead. Its kind is Invalid.
var ErrNotLazy error = &blob.Error{Kind: blob.Invalid, Err: errors.New("layer is not lazily mountable")}

// The annotations of a layer in an image manifest that promise its table of
// contents.
const (
	// TOCDigestAnnotation holds the digest of the uncompressed TOC JSON.
	TOCDigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"
	// UncompressedSizeAnnotation holds the length of the uncompressed layer in
	// bytes.
	UncompressedSizeAnnotation = "io.containers.estargz.uncompressed-size"
	// ManifestChecksumAnnotation holds the digest of the compressed TOC of a
	// zstd:chunked layer.
	ManifestChecksumAnnotation = "io.containers.zstd-chunked.manifest-checksum"
	// ManifestPositionAnnotation says where the compressed TOC of a
	// zstd:chunked layer is, as "offset:length:uncompressed length:type".
	ManifestPositionAnnotation = "io.containers.zstd-chunked.manifest-position"
	// TOCOffsetAnnotation says where in an eStargz layer its compressed table of
	// contents starts, in decimal, so that one read brings exactly that. It is
	// ours and optional: the footer says the same.
	TOCOffsetAnnotation = "skimmer.estargz.toc-offset"
	// TOCAnnotation holds a small table of contents itself, its JSON compressed
	// with gzip, in base64, so that a layer of a few files needs no request to
	// be mounted. Written by us only, together with TOCOffsetAnnotation.
	TOCAnnotation = "skimmer.estargz.toc"
)

// storagePrefix is what containers/storage starts the zstd:chunked annotations
// with, where stargz-snapshotter has manifestPrefix.
const (
	storagePrefix  = "io.github.containers."
	manifestPrefix = "io.containers."
)

const (
	// Where nobody says how much, the first read asks for one tailShare-th of the
	// blob, within defaultTail and largeTail bytes: that holds the table of contents
	// of most layers. Those of three Debian layers with Python are 0.27 to 0.62 %
	// of them. More costs a slow link longer than asking twice.
	defaultTail = 256 << 10
	largeTail   = 448 << 10
	tailShare   = 150
	// maxTail bounds the first read, hints included.
	maxTail = 64 << 20

	// maxTOC is the largest table of contents in JSON, in bytes; about two
	// million files.
	maxTOC = 512 << 20
	// maxTOCRatio is how many times a table of contents may shrink by
	// compression once it is larger than freeTOC. Real ones shrink 5 to 40
	// times; what exceeds this is made to fill memory.
	maxTOCRatio = 256
	freeTOC     = 16 << 20
)

// ReadOptions tunes ReadTOC; its zero value is good.
type ReadOptions struct {
	// TailSize is how many bytes from the end of the blob the first read asks
	// for; 0 means 256 to 448 KiB. At most 64 MiB are read.
	TailSize int64
	// CompressedDigest is the digest of the compressed table of contents, which
	// some zstd:chunked manifests promise instead of, or besides, that of the JSON.
	CompressedDigest digest.Digest
	// TOCOff and TOCSize say where in the blob a manifest claims the compressed
	// table of contents to be; 0 where it does not. eStargz has no TOCSize. The
	// first read is then exactly what is needed. The claim is not believed: one
	// outside the blob is ignored, and where the blob has a footer that counts.
	TOCOff, TOCSize int64
	// TOC is a TOCAnnotation. It is used if it is what want promises.
	TOC string
}

// Promised returns what the annotations of a layer in its manifest promise:
// the digest of the table of contents, or the empty digest, and the options
// to read it with. It understands the annotations of eStargz and both
// spellings of zstd:chunked, and TOCOffsetAnnotation; a position that cannot be
// read is left out.
func Promised(annotations map[string]string) (digest.Digest, ReadOptions) {
	get := func(name string) string {
		if v, ok := annotations[name]; ok {
			return v
		}
		return annotations[storagePrefix+strings.TrimPrefix(name, manifestPrefix)]
	}
	opts := ReadOptions{CompressedDigest: digest.Digest(get(ManifestChecksumAnnotation))}
	if words := strings.Split(get(ManifestPositionAnnotation), ":"); len(words) == 4 {
		off, err1 := strconv.ParseInt(words[0], 10, 64)
		size, err2 := strconv.ParseInt(words[1], 10, 64)
		if err1 == nil && err2 == nil && off > 0 && size > 0 {
			opts.TOCOff, opts.TOCSize = off, size
		}
	} else if off, err := strconv.ParseInt(annotations[TOCOffsetAnnotation], 10, 64); err == nil && off > 0 {
		opts.TOCOff = off
		opts.TOC = annotations[TOCAnnotation]
	}
	return digest.Digest(annotations[TOCDigestAnnotation]), opts
}

// ReadTOC reads, verifies and decodes the table of contents of b. It makes
// one request for the end of the blob, and a second one only when the table
// is longer than what that brought.
//
// want is the digest of the TOC JSON as the manifest promises it (see
// Promised); where it is empty, opts.CompressedDigest must be there. Nothing
// in the table is looked at before its digest has been checked.
//
// Errors: one that is ErrNotLazy for a blob without a footer and for a
// manifest without a promise; Corrupt for content that does not match its
// digest; Invalid for a table of contents that is what was promised but
// makes no sense, or is larger than 512 MiB or compressed more than 256 fold
// (beyond 16 MiB); and what b fails with.
func ReadTOC(ctx context.Context, b blob.Blob, want digest.Digest, opts ReadOptions) (*TOC, error) {
	if want == "" && opts.CompressedDigest == "" {
		return nil, blob.Errorf(blob.Invalid, "read table of contents: manifest promises no digest for it: %w", ErrNotLazy)
	}
	for _, d := range []digest.Digest{want, opts.CompressedDigest} {
		if d == "" {
			continue
		}
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, blob.Errorf(blob.Invalid, "read table of contents: promised digest %q is not a SHA-256 digest", d)
		}
	}
	if toc, ok := inlineTOC(want, b.Size(), opts); ok {
		return toc, nil
	}
	buf := newTOCBuffer()
	defer buf.release()
	tail, err := buf.readTail(ctx, b, opts)
	if err != nil {
		return nil, fmt.Errorf("read table of contents: end of blob: %w", err)
	}
	loc, err := locate(tail, b.Size(), opts)
	if errors.Is(err, errNoFooter) {
		return nil, blob.Errorf(blob.Invalid, "read table of contents: blob has %w: %w", err, ErrNotLazy)
	} else if err != nil {
		return nil, blob.Errorf(blob.Invalid, "read table of contents: %w", err)
	}
	if want == "" && loc.compression != Zstd {
		return nil, blob.Errorf(blob.Invalid, "read table of contents: manifest promises no digest for a gzip layer: %w", ErrNotLazy)
	}
	json, err := buf.read(ctx, b, loc, opts.CompressedDigest)
	if err != nil {
		return nil, fmt.Errorf("read table of contents: %w", err)
	}
	got := digest.FromBytes(json)
	if want != "" && got != want {
		return nil, blob.Errorf(blob.Corrupt, "read table of contents: its digest is %s, the manifest promises %s", got, want)
	}
	toc, err := decode(json, loc.compression, b.Size(), loc.payloadEnd)
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "decode table of contents: %w", err)
	}
	toc.Digest = got
	return toc, nil
}

const (
	// maxInline is the longest TOCAnnotation in bytes: manifests have limits, and
	// are read by everybody.
	maxInline = 1 << 10
	// maxInlineTOC is the most such a table may be in JSON, in bytes.
	maxInlineTOC = 64 << 10
)

// packInline returns a table of contents as a TOCAnnotation; empty if it is
// too large to be one.
func packInline(json []byte) (string, error) {
	if len(json) > maxInlineTOC {
		return "", nil
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(json); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	text := base64.StdEncoding.EncodeToString(packed.Bytes())
	if len(text) > maxInline {
		return "", nil
	}
	return text, nil
}

// inlineTOC returns the table of contents that the manifest itself holds. One
// that is not what the manifest promises is as good as none.
func inlineTOC(want digest.Digest, blobSize int64, opts ReadOptions) (*TOC, bool) {
	if opts.TOC == "" || want == "" || opts.TOCOff >= blobSize || len(opts.TOC) > maxInline {
		return nil, false
	}
	r, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(opts.TOC)))
	if err != nil {
		return nil, false
	}
	json, err := io.ReadAll(io.LimitReader(r, maxInlineTOC))
	if err != nil || digest.FromBytes(json) != want {
		return nil, false
	}
	toc, err := decode(json, Gzip, blobSize, opts.TOCOff)
	if err != nil {
		return nil, false
	}
	toc.Digest = want
	return toc, true
}

// readTail makes the speculative first read.
func (buf *tocBuffer) readTail(ctx context.Context, b blob.Blob, opts ReadOptions) ([]byte, error) {
	size := b.Size()
	n := max(defaultTail, min(size/tailShare, largeTail))
	switch {
	case opts.TOCOff > 0 && opts.TOCOff < size:
		n = size - opts.TOCOff
	case opts.TailSize > 0:
		n = opts.TailSize
	}
	buf.tail = sized(buf.tail, int(min(size, maxTail, max(n, maxFooterSize))))
	return buf.tail, blob.ReadFull(ctx, b, buf.tail, size-int64(len(buf.tail)))
}

// extend reads n bytes more, before the tail: one piece is decompressed several
// times as fast as a stream of two.
func (buf *tocBuffer) extend(ctx context.Context, b blob.Blob, n int64) error {
	whole := make([]byte, n+int64(len(buf.tail)))
	copy(whole[n:], buf.tail)
	buf.tail = whole
	return blob.ReadFull(ctx, b, whole[:n], b.Size()-int64(len(whole)))
}

// locate says where the table of contents is. The footer has the first word;
// containers/storage may leave it out and rely on the manifest.
func locate(tail []byte, size int64, opts ReadOptions) (location, error) {
	loc, err := parseFooter(tail, size)
	if errors.Is(err, errNoFooter) && opts.TOCOff > 0 && opts.TOCSize > 0 {
		return zstdRange(uint64(opts.TOCOff), uint64(opts.TOCSize), size)
	}
	return loc, err
}

// read returns the TOC JSON at l of b, whose last bytes are in buf. It may be in
// buf too. The compressed bytes are held against compressed unless that is empty.
func (buf *tocBuffer) read(ctx context.Context, b blob.Blob, l location, compressed digest.Digest) ([]byte, error) {
	start := b.Size() - int64(len(buf.tail))
	if l.off < start && l.compression == Gzip && l.size <= maxTail {
		if err := buf.extend(ctx, b, start-l.off); err != nil {
			return nil, err
		}
		start = l.off
	}
	tail := buf.tail
	if l.compression == Gzip && l.off >= start {
		if json, ok := buf.unpack(tail[l.off-start:][:l.size], l.limit()); ok {
			return json, nil
		}
	}
	src := &source{r: bytes.NewReader(nil)}
	if l.off < start {
		rc, err := b.ReadRange(ctx, blob.Range{Off: l.off, Len: min(l.size, start-l.off)})
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		src.r = rc
	}
	if end := l.off + l.size; end > start {
		src.r = io.MultiReader(src.r, bytes.NewReader(tail[max(0, l.off-start):end-start]))
	}
	if compressed == "" || l.compression != Zstd {
		json, err := l.decompress(src)
		return json, readError(src, err)
	}
	verifier := compressed.Verifier()
	json, err := l.decompress(io.TeeReader(src, verifier))
	if err == nil {
		_, err = io.Copy(verifier, src) // the decoder may stop before the end
	}
	if err == nil && !verifier.Verified() {
		err = blob.Errorf(blob.Corrupt, "its compressed bytes do not have the digest %s that the manifest promises", compressed)
	}
	return json, readError(src, err)
}

// readError gives an error of decompressing src its kind.
func readError(src *source, err error) error {
	var be *blob.Error
	switch {
	case err == nil:
		return nil
	case src.err != nil:
		return src.err
	case errors.As(err, &be):
		return err
	}
	return blob.Errorf(blob.Corrupt, "decompress it: %w", err)
}

// limit is how long, in bytes, the TOC JSON may be.
func (l location) limit() int64 {
	if l.size < maxTOC/maxTOCRatio {
		return max(freeTOC, l.size*maxTOCRatio)
	}
	return maxTOC
}

// decompress returns the TOC JSON in the compressed bytes of r.
func (l location) decompress(r io.Reader) ([]byte, error) {
	limit := l.limit()
	if l.compression == Zstd {
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		defer zr.Close()
		return readLimited(zr, 0, limit)
	}
	zr, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	if err != nil {
		return nil, err
	}
	if h.Name != tocName {
		return nil, fmt.Errorf("tar entry %q where %q should be", h.Name, tocName)
	}
	return readLimited(tr, h.Size, limit)
}

// readLimited reads r to its end, which must come within limit. About so many
// bytes are expected; more only takes longer.
func readLimited(r io.Reader, expected, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(int(min(max(expected, 0), limit)) + bytes.MinRead)
	n, err := buf.ReadFrom(io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = blob.Errorf(blob.Invalid, "it is larger than the %d bytes allowed for it", limit)
	}
	return buf.Bytes(), err
}
