package profile

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Limits of a profile. They are far beyond what a start needs, and keep what
// another node sends from costing much.
const (
	// MaxSize is the most bytes a profile's encoding may have.
	MaxSize = 64 << 10
	// MaxReads is the most reads a profile may have.
	MaxReads = 8192
	// MaxStarts is the most starts a profile counts; see Merge.
	MaxStarts = 16

	maxLayers   = 1024
	maxChunks   = math.MaxInt32
	maxPlatform = 64
	maxAt       = 24 * time.Hour
)

// Validate reports what is wrong with a profile, as an Invalid error. One
// that it finds right can be encoded, unless that takes more than MaxSize.
func (p Profile) Validate() error {
	switch {
	case !plainDigest(p.Manifest):
		return blob.Errorf(blob.Invalid, "check profile: bad manifest digest %.80q", p.Manifest)
	case !plainText(p.Platform):
		return blob.Errorf(blob.Invalid, "check profile: bad platform %.80q", p.Platform)
	case p.Recorded.Unix() < 0 || p.Recorded.Unix() > math.MaxInt32<<8:
		return blob.Errorf(blob.Invalid, "check profile: bad time of recording %v", p.Recorded)
	case p.Starts < 1 || p.Starts > MaxStarts:
		return blob.Errorf(blob.Invalid, "check profile: %d starts, want 1 to %d", p.Starts, MaxStarts)
	case len(p.Layers) > maxLayers:
		return blob.Errorf(blob.Invalid, "check profile: %d layers, want at most %d", len(p.Layers), maxLayers)
	case len(p.Reads) > MaxReads:
		return blob.Errorf(blob.Invalid, "check profile: %d reads, want at most %d", len(p.Reads), MaxReads)
	}
	for i, l := range p.Layers {
		if !plainDigest(l.Digest) || !plainDigest(l.TOC) {
			return blob.Errorf(blob.Invalid, "check profile: layer %d: bad digest %.80q or %.80q", i, l.Digest, l.TOC)
		}
		if l.Chunks < 0 || l.Chunks > maxChunks {
			return blob.Errorf(blob.Invalid, "check profile: layer %d: %d chunks", i, l.Chunks)
		}
	}
	last := time.Duration(0)
	for i, r := range p.Reads {
		if err := p.checkRead(i, r, last); err != nil {
			return err
		}
		last = r.At
	}
	return checkTwice(p.Reads)
}

func (p Profile) checkRead(i int, r Read, last time.Duration) error {
	switch {
	case r.Layer < 0 || r.Layer >= len(p.Layers):
		return blob.Errorf(blob.Invalid, "check profile: read %d is of layer %d of %d", i, r.Layer, len(p.Layers))
	case r.First < 0 || r.Count < 1 || r.First >= p.Layers[r.Layer].Chunks || r.Count > p.Layers[r.Layer].Chunks-r.First:
		return blob.Errorf(blob.Invalid, "check profile: read %d: %d chunks from %d on, but layer %d has %d", i, r.Count, r.First, r.Layer, p.Layers[r.Layer].Chunks)
	case r.At < last || r.At > maxAt:
		return blob.Errorf(blob.Invalid, "check profile: read %d is at %v, after one at %v", i, r.At, last)
	case r.Starts < 1 || r.Starts > p.Starts:
		return blob.Errorf(blob.Invalid, "check profile: read %d is of %d starts of %d", i, r.Starts, p.Starts)
	}
	return nil
}

// checkTwice reports a chunk that two reads have.
func checkTwice(reads []Read) error {
	sorted := slices.SortedFunc(slices.Values(reads), byPlace)
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; a.Layer == b.Layer && b.First < a.end() {
			return blob.Errorf(blob.Invalid, "check profile: chunk %d of layer %d is read twice", b.First, b.Layer)
		}
	}
	return nil
}

func (r Read) end() int { return r.First + r.Count }

func byPlace(a, b Read) int {
	return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.First, b.First))
}

func byTime(a, b Read) int {
	return cmp.Or(cmp.Compare(a.At, b.At), byPlace(a, b))
}

// Chunks returns how many chunks the profile's reads have together.
func (p Profile) Chunks() int {
	n := 0
	for _, r := range p.Reads {
		n += r.Count
	}
	return n
}

func plainDigest(d digest.Digest) bool {
	return d.Validate() == nil && algorithmNumber(d.Algorithm()) > 0
}

// plainText reports text that can be printed to a terminal.
func plainText(s string) bool {
	if len(s) > maxPlatform {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
