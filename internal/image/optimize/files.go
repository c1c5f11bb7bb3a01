package optimize

import (
	"cmp"
	"slices"
	"sort"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image/profile"
)

const (
	// wholeFile is up to which size a file is wanted early once any of it was
	// read; of a larger one at least 1/wholeShare must have been. Prefetching is
	// by files, and a start that reads a page of a library of 100 MiB is not
	// helped by having all of it fetched.
	wholeFile  = 1 << 20
	wholeShare = 2
)

// File is a file that a workload read.
type File struct {
	// Layer is an index into the profile's layers, Name the path within it.
	Layer int
	Name  string
	// At is when it was first read, Read how many bytes of its Size were, in
	// whole chunks.
	At         time.Duration
	Read, Size int64
}

// early reports whether the file should be fetched before anybody asks.
func (f File) early() bool { return f.Size <= wholeFile || f.Read >= f.Size/wholeShare }

// Files returns the files that a profile's reads are of, in the order in which
// each was first read. tocs are the tables of contents of the profile's layers.
// Errors: Invalid if they do not belong together.
func Files(p profile.Profile, tocs []*estargz.TOC) ([]File, error) {
	if err := matches(p, tocs); err != nil {
		return nil, err
	}
	type place struct {
		layer int
		off   int64
	}
	var files []File
	index := make(map[place]int)
	for _, r := range p.Reads {
		ix := &tocs[r.Layer].Index
		for _, c := range ix.Chunks[r.First : r.First+r.Count] {
			f, ok := ix.FileAt(c.DataOff)
			if !ok {
				continue // padding; an index does not have such chunks
			}
			at := place{r.Layer, f.DataOff}
			i, known := index[at]
			if !known {
				i = len(files)
				index[at] = i
				files = append(files, File{Layer: r.Layer, Name: f.Name, At: r.At, Size: f.Size})
			}
			files[i].Read += c.Size
		}
	}
	return files, nil
}

// matches reports tables of contents that are not those of p's layers.
func matches(p profile.Profile, tocs []*estargz.TOC) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if len(p.Layers) != len(tocs) {
		return blob.Errorf(blob.Invalid, "map profile to files: it has %d layers, the image %d", len(p.Layers), len(tocs))
	}
	for i, l := range p.Layers {
		if tocs[i].Digest != l.TOC || len(tocs[i].Index.Chunks) != l.Chunks {
			return blob.Errorf(blob.Invalid, "map profile to files: layer %d has table of contents %v with %d chunks, the profile wants %v with %d",
				i, tocs[i].Digest, len(tocs[i].Index.Chunks), l.TOC, l.Chunks)
		}
	}
	return nil
}

// Prefetch returns, for each layer, the paths of the files to be fetched early,
// in their order.
func Prefetch(files []File, layers int) [][]string {
	lists := make([][]string, layers)
	for _, f := range files {
		if f.early() {
			lists[f.Layer] = append(lists[f.Layer], f.Name)
		}
	}
	return lists
}

// Target is an image with the files of another, arranged in another way.
type Target struct {
	Manifest digest.Digest
	// Layers and TOCs are those of the image, layer by layer as the other's.
	Layers []digest.Digest
	TOCs   []*estargz.TOC
}

// Translate returns what p, a profile of an image whose layers have the tables
// of contents tocs, means for another image with the same files: it names
// the chunks in which the same parts of the same files are. What the other
// image does not have is left out. Errors: Invalid if p and tocs, or the
// images, do not belong together.
func Translate(p profile.Profile, tocs []*estargz.TOC, to Target) (profile.Profile, error) {
	if err := matches(p, tocs); err != nil {
		return profile.Profile{}, err
	}
	if len(to.TOCs) != len(tocs) || len(to.Layers) != len(tocs) {
		return profile.Profile{}, blob.Errorf(blob.Invalid, "translate profile: the images have %d and %d layers", len(tocs), len(to.TOCs))
	}
	out := profile.Profile{Manifest: to.Manifest, Platform: p.Platform, Recorded: p.Recorded, Starts: p.Starts}
	files := make([]map[string]estargz.File, len(tocs))
	seen := make([]map[int]bool, len(tocs))
	for i, toc := range to.TOCs {
		out.Layers = append(out.Layers, profile.Layer{Digest: to.Layers[i], TOC: toc.Digest, Chunks: len(toc.Index.Chunks)})
		seen[i], files[i] = make(map[int]bool), make(map[string]estargz.File, len(toc.Index.Files))
		for _, f := range toc.Index.Files {
			files[i][f.Name] = f
		}
	}
	for _, r := range p.Reads {
		from, ix := &tocs[r.Layer].Index, &to.TOCs[r.Layer].Index
		var chunks []int
		for _, c := range from.Chunks[r.First : r.First+r.Count] {
			old, _ := from.FileAt(c.DataOff)
			if f, ok := files[r.Layer][old.Name]; ok && f.Size == old.Size {
				chunks = appendChunks(chunks, ix, f.DataOff+c.DataOff-old.DataOff, c.Size, seen[r.Layer])
			}
		}
		out.Reads = append(out.Reads, runs(chunks, r)...)
	}
	slices.SortStableFunc(out.Reads, func(a, b profile.Read) int { return cmp.Compare(a.At, b.At) })
	out = out.Fit()
	return out, out.Validate()
}

// appendChunks adds the chunks that have a part of the flat data and were not
// seen before.
func appendChunks(chunks []int, ix *estargz.Index, off, size int64, seen map[int]bool) []int {
	i := sort.Search(len(ix.Chunks), func(i int) bool { return ix.Chunks[i].DataOff+ix.Chunks[i].Size > off })
	for ; i < len(ix.Chunks) && ix.Chunks[i].DataOff < off+size; i++ {
		if !seen[i] {
			seen[i] = true
			chunks = append(chunks, i)
		}
	}
	return chunks
}

// runs returns reads of chunks that are otherwise like r, neighbours together.
func runs(chunks []int, r profile.Read) []profile.Read {
	var reads []profile.Read
	for _, c := range chunks {
		if n := len(reads) - 1; n >= 0 && reads[n].First+reads[n].Count == c {
			reads[n].Count++
			continue
		}
		r.First, r.Count = c, 1
		reads = append(reads, r)
	}
	return reads
}
