package estargz

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"runtime"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
)

const (
	// DefaultChunkSize is the chunk size of layers built without one, in bytes. It
	// is a quarter of what the format's first tools take: programs read less than
	// half of their large files when they start, and more of those chunks are read
	// for nothing than shorter ones cost in requests (docs/benchmarks.md).
	DefaultChunkSize = 1 << 20
	// MaxBuildChunkSize bounds ChunkSize and MinChunkSize of a build, in bytes.
	MaxBuildChunkSize = 64 << 20

	defaultGzipLevel = 8
	defaultZstdLevel = 3
	// maxWorkers bounds the compressors of one build, and so its memory: about
	// two chunks each.
	maxWorkers = 4
)

// BuildOptions say how Build makes a layer. The zero value makes eStargz with
// the defaults. Only what is said here and the tar decides about the bytes of
// the result: not the machine, the number of its processors, or the time.
type BuildOptions struct {
	// ChunkSize is how many bytes of a file are at most compressed and verified
	// as one, up to MaxBuildChunkSize; 0 means DefaultChunkSize.
	ChunkSize int
	// MinChunkSize, where not 0, lets small files share a compressed stream
	// until it holds so many bytes uncompressed, up to MaxBuildChunkSize. The
	// layer becomes smaller, and reading one file inflates its neighbours. Lazy
	// readers from before this feature cannot read such layers.
	MinChunkSize int
	// Level is the compression level: 1 to 9 for gzip, 1 to 22 for zstd; 0
	// means 8 and 3. Level 9 of gzip takes six times as long as 8 for 0.3 %.
	Level int
	// Zstd makes a zstd:chunked layer instead of an eStargz one.
	Zstd bool
	// Prefetch lists paths, relative to the root of the layer, that a container
	// needs early, in that order. They are put at the start of the layer,
	// before a landmark up to which lazy readers fetch ahead.
	Prefetch []string
	// TempDir is where a compressed source layer is unpacked to one temporary
	// file; empty means the system's own.
	TempDir string
	// Progress, where set, is called now and then with the number of bytes of
	// the source layer dealt with since the last call; the sum is its size. Calls
	// do not overlap.
	Progress func(n int64)
}

// Built describes a layer that Build made.
type Built struct {
	// Digest and Size are those of the layer blob.
	Digest digest.Digest
	Size   int64
	// DiffID and UncompressedSize are those of the layer's tar, which differs
	// from the source's: entries may be reordered and some are added.
	DiffID           digest.Digest
	UncompressedSize int64
	// TOCDigest is the digest of the table of contents in JSON.
	TOCDigest digest.Digest
	// MediaType is the OCI media type of the layer.
	MediaType string
	// Annotations are what the manifest must say about the layer for lazy
	// readers.
	Annotations map[string]string
	// PrefetchMissing lists those of BuildOptions.Prefetch that the layer does
	// not have.
	PrefetchMissing []string
}

// Build writes to w, as eStargz or zstd:chunked, the layer whose size bytes
// of tar, plain or compressed with gzip or zstd, are in layer. A table of
// contents and landmarks that the source has from an earlier build are
// replaced. Of entries with the same path the last one is kept, and sparse
// files are stored in full.
//
// Build compresses on several processors. It reads layer twice where that is
// plain tar. When it fails, w has received something useless.
//
// Errors: Invalid for bad options, for what is not a tar, and for entries that
// cannot be in a layer; Corrupt for a compressed source that cannot be
// decompressed; those of layer and w, wrapped.
func Build(ctx context.Context, w io.Writer, layer io.ReaderAt, size int64, opts BuildOptions) (Built, error) {
	b, err := build(ctx, w, layer, size, opts)
	if err != nil {
		return Built{}, fmt.Errorf("build layer: %w", err)
	}
	return b, nil
}

func build(ctx context.Context, w io.Writer, layer io.ReaderAt, size int64, opts BuildOptions) (Built, error) {
	if err := opts.complete(); err != nil {
		return Built{}, err
	}
	src, err := openTar(ctx, layer, size, opts.TempDir)
	if err != nil {
		return Built{}, err
	}
	defer src.Close()
	members, err := src.members(ctx)
	if err != nil {
		return Built{}, err
	}
	members, missing, err := arrange(members, opts.Prefetch)
	if err != nil {
		return Built{}, err
	}
	out := &output{w: w, hash: sha256.New()}
	p, err := newPacker(opts, src)
	if err != nil {
		return Built{}, err
	}
	p.progress = progress{report: opts.Progress, size: size, expect: src.size}
	if err := p.run(ctx, members, out); err != nil {
		return Built{}, err
	}
	return p.finish(out, missing)
}

// complete checks the options and fills in the defaults.
func (o *BuildOptions) complete() error {
	maxLevel := 9
	if o.Zstd {
		maxLevel = 22
	}
	switch {
	case o.ChunkSize < 0 || o.ChunkSize > MaxBuildChunkSize:
		return blob.Errorf(blob.Invalid, "chunk size %d is not between 1 and %d", o.ChunkSize, MaxBuildChunkSize)
	case o.MinChunkSize < 0 || o.MinChunkSize > MaxBuildChunkSize:
		return blob.Errorf(blob.Invalid, "minimum chunk size %d is not between 0 and %d", o.MinChunkSize, MaxBuildChunkSize)
	case o.Level < 0 || o.Level > maxLevel:
		return blob.Errorf(blob.Invalid, "compression level %d is not between 1 and %d", o.Level, maxLevel)
	}
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
	}
	if o.Level == 0 {
		o.Level = defaultGzipLevel
		if o.Zstd {
			o.Level = defaultZstdLevel
		}
	}
	return nil
}

// output is the blob being written.
type output struct {
	w    io.Writer
	hash hash.Hash
	n    int64
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.hash.Write(p[:n])
	o.n += int64(n)
	if err != nil {
		return n, fmt.Errorf("write layer: %w", err)
	}
	return n, nil
}

// progress spreads the size of the source over the bytes that are expected
// to be packed.
type progress struct {
	report               func(int64)
	size, expect         int64
	packed, reportedSize int64
}

func (p *progress) add(n int64) {
	p.packed += n
	if p.expect > 0 {
		p.reach(int64(float64(p.size) * min(1, float64(p.packed)/float64(p.expect))))
	}
}

func (p *progress) reach(n int64) {
	if p.report != nil && n > p.reportedSize {
		p.report(n - p.reportedSize)
		p.reportedSize = n
	}
}

// run packs members into out. Compressors work in parallel; units enter and
// leave in order, and there are only so many of them.
func (p *packer) run(ctx context.Context, members []*member, out *output) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := min(runtime.GOMAXPROCS(0), maxWorkers)
	units := workers + 2
	p.ctx, p.free = ctx, make(chan *unit, units)
	p.work, p.order = make(chan *unit, units), make(chan *unit, units)
	for range units {
		p.free <- new(unit)
	}
	g.Go(func() error {
		defer close(p.work)
		defer close(p.order)
		return p.pack(members)
	})
	for range workers {
		g.Go(func() error {
			for u := range p.work {
				u.packed <- p.compress(u)
			}
			return nil
		})
	}
	g.Go(func() error {
		for u := range p.order {
			if err := <-u.packed; err != nil {
				return err
			}
			if err := u.writeTo(out); err != nil {
				return err
			}
			p.progress.add(int64(len(u.plain)))
			p.free <- u
		}
		return nil
	})
	return g.Wait()
}

// finish writes the table of contents and the footer.
func (p *packer) finish(out *output, missing []string) (Built, error) {
	payloadEnd := out.n
	toc, err := marshalTOC(p.toc)
	if err != nil {
		return Built{}, err
	}
	b := Built{
		TOCDigest:       digest.FromBytes(toc),
		MediaType:       ocispec.MediaTypeImageLayerGzip,
		Annotations:     make(map[string]string),
		PrefetchMissing: missing,
	}
	compression, end := Gzip, []byte(nil)
	if p.opts.Zstd {
		compression, b.MediaType = Zstd, ocispec.MediaTypeImageLayerZstd
		packed := p.zstd.EncodeAll(toc, nil)
		off := payloadEnd + skippableHeader
		end = appendZstdFooter(appendSkippable(nil, packed), off, int64(len(packed)), int64(len(toc)))
		b.Annotations[ManifestChecksumAnnotation] = digest.FromBytes(packed).String()
		b.Annotations[ManifestPositionAnnotation] = fmt.Sprintf("%d:%d:%d:%d", off, len(packed), len(toc), zstdTOCType)
	} else if end, err = p.gzipTOC(toc); err == nil {
		end = appendGzipFooter(end, payloadEnd)
		b.Annotations[TOCOffsetAnnotation] = strconv.FormatInt(payloadEnd, 10)
		var inline string
		if inline, err = packInline(toc); inline != "" {
			b.Annotations[TOCAnnotation] = inline
		}
	}
	if err != nil {
		return Built{}, err
	}
	if _, err := out.Write(end); err != nil {
		return Built{}, err
	}
	// What was built must be what can be read.
	if _, err := decode(toc, compression, out.n, payloadEnd); err != nil {
		return Built{}, blob.Errorf(blob.Invalid, "check result: %w", err)
	}
	p.progress.reach(p.progress.size)
	b.Digest, b.Size = digest.NewDigest(digest.SHA256, out.hash), out.n
	b.DiffID, b.UncompressedSize = digest.NewDigest(digest.SHA256, p.diffID), p.plain
	b.Annotations[TOCDigestAnnotation] = b.TOCDigest.String()
	b.Annotations[UncompressedSizeAnnotation] = strconv.FormatInt(b.UncompressedSize, 10)
	return b, nil
}

// gzipTOC returns the table of contents as eStargz has it, the last file of
// the tar in a gzip member of its own.
func (p *packer) gzipTOC(toc []byte) ([]byte, error) {
	plain, err := encodeHeader(reservedHeader(tocName, int64(len(toc))))
	if err != nil {
		return nil, err
	}
	plain = append(plain, toc...)
	plain = append(plain, make([]byte, padding(int64(len(toc)))+tarTrailer)...)
	p.diffID.Write(plain)
	p.plain += int64(len(plain))
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, p.opts.Level)
	if err != nil {
		return nil, err
	}
	if _, err := zw.Write(plain); err != nil {
		return nil, err
	}
	err = zw.Close()
	return buf.Bytes(), err
}

// tocEntry is an entry of the TOC as it is written; the fields and their
// order are those of the format.
type tocEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size,omitempty"`
	ModTime     string            `json:"modtime,omitempty"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	UserName    string            `json:"userName,omitempty"`
	GroupName   string            `json:"groupName,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	InnerOffset int64             `json:"innerOffset,omitempty"`
	DevMajor    int64             `json:"devMajor,omitempty"`
	DevMinor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
	RawName     []byte            `json:"skimmer.rawName,omitempty"`
	RawLinkName []byte            `json:"skimmer.rawLinkName,omitempty"`
	RawXattrs   map[string][]byte `json:"skimmer.rawXattrs,omitempty"`
}

// marshalTOC returns the TOC JSON. Nothing may follow the last brace: other
// readers take the digest of what their decoder happens to read.
func marshalTOC(entries []*tocEntry) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		Version int         `json:"version"`
		Entries []*tocEntry `json:"entries"`
	}{1, entries})
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), err
}
