package profile

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// document is a profile as people read it.
type document struct {
	Version  int           `json:"version"`
	Manifest digest.Digest `json:"manifest"`
	Platform string        `json:"platform"`
	Recorded time.Time     `json:"recorded"`
	Starts   int           `json:"starts"`
	Layers   []layerObject `json:"layers"`
	Reads    []readObject  `json:"reads"`
}

type layerObject struct {
	Digest digest.Digest `json:"digest"`
	TOC    digest.Digest `json:"toc"`
	Chunks int           `json:"chunks"`
}

type readObject struct {
	Layer  int   `json:"layer"`
	First  int   `json:"first"`
	Count  int   `json:"count"`
	At     int64 `json:"at_ms"`
	Starts int   `json:"starts"`
}

// MarshalJSON writes the profile as a document for people, with times in
// milliseconds. Nothing is checked.
func (p Profile) MarshalJSON() ([]byte, error) {
	doc := document{
		Version: version, Manifest: p.Manifest, Platform: p.Platform, Recorded: p.Recorded.UTC().Truncate(time.Second), Starts: p.Starts,
		Layers: make([]layerObject, 0, len(p.Layers)), Reads: make([]readObject, 0, len(p.Reads)),
	}
	for _, l := range p.Layers {
		doc.Layers = append(doc.Layers, layerObject(l))
	}
	for _, r := range p.Reads {
		doc.Reads = append(doc.Reads, readObject{r.Layer, r.First, r.Count, r.At.Milliseconds(), r.Starts})
	}
	return json.Marshal(doc)
}

// UnmarshalJSON reads what MarshalJSON wrote. Errors: Corrupt for what is not
// that, Invalid for a newer version and for what Validate finds wrong.
func (p *Profile) UnmarshalJSON(data []byte) error {
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		return blob.Errorf(blob.Corrupt, "read profile: %w", err)
	}
	if doc.Version != version {
		return blob.Errorf(blob.Invalid, "read profile: it has version %d, this program knows version %d", doc.Version, version)
	}
	got := Profile{Manifest: doc.Manifest, Platform: doc.Platform, Recorded: doc.Recorded.UTC(), Starts: doc.Starts}
	for _, l := range doc.Layers {
		got.Layers = append(got.Layers, Layer(l))
	}
	for _, r := range doc.Reads {
		// A time beyond the limit stays beyond it, instead of wrapping around.
		at := time.Duration(max(-1, min(r.At, maxAt.Milliseconds()+1))) * time.Millisecond
		got.Reads = append(got.Reads, Read{Layer: r.Layer, First: r.First, Count: r.Count, At: at, Starts: r.Starts})
	}
	if err := got.Validate(); err != nil {
		return err
	}
	*p = got
	return nil
}
