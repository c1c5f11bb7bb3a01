package peer

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/image/profile"
	"skimmer/internal/image/trace"
)

// StartsConfig says what becomes of what images read while they start.
type StartsConfig struct {
	// Profiles keeps it, gives it to the cluster, and fetches by it; Limit is how
	// many compressed bytes are fetched so for one start, 0 the default.
	Profiles bool
	Limit    int64
	// Referrers looks beside an image in its registry for a profile where neither
	// node nor cluster has one.
	Referrers bool
	// Started, where set, is told of each start once it is over.
	Started func(trace.Start)
}

// watchStarts has the library keep profiles.
func (p *Peer) watchStarts(cfg *image.Config) {
	s := p.cfg.Starts
	cfg.Profiles, cfg.ProfileLimit, cfg.OnStarted = s.Profiles, s.Limit, s.Started
	if !s.Profiles {
		return
	}
	if s.Referrers {
		cfg.Referrer = p.referrer
	}
	if p.member != nil {
		cfg.Exchange = p.member.swarm.Profiles()
	}
}

// shareProfiles tells the cluster which profiles this node keeps.
func (p *Peer) shareProfiles() {
	dir := p.images.Profiles()
	if dir == nil || p.member == nil {
		return
	}
	read := func(manifest digest.Digest) ([]byte, error) {
		kept, err := dir.Get(manifest)
		if err != nil {
			return nil, err
		}
		return profile.Encode(kept)
	}
	p.member.swarm.Profiles().Hold(func() ([]digest.Digest, error) {
		list, err := dir.List()
		held := make([]digest.Digest, len(list))
		for i, info := range list {
			held[i] = info.Manifest
		}
		return held, err
	}, read)
}

// referrer returns the profile that is kept beside an image in its registry: the
// one blob of a manifest that refers to the image's. Of several the last is
// taken.
func (p *Peer) referrer(ctx context.Context, repository string, manifest digest.Digest) ([]byte, error) {
	list, err := p.origin.Referrers(ctx, repository, manifest, profile.ArtifactType)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, blob.Errorf(blob.NotFound, "there is no profile of %v in %s", manifest, repository)
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b ocispec.Descriptor) int {
		return strings.Compare(a.Annotations[ocispec.AnnotationCreated], b.Annotations[ocispec.AnnotationCreated])
	})
	data, _, d, err := p.origin.Manifest(ctx, repository, list[len(list)-1].Digest.String())
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, blob.Errorf(blob.Corrupt, "decode profile's manifest %v: %w", d, err)
	}
	if len(m.Layers) != 1 || m.Layers[0].Size < 0 || m.Layers[0].Size > profile.MaxSize || m.Layers[0].Digest.Validate() != nil {
		return nil, blob.Errorf(blob.Corrupt, "profile's manifest %v does not list one blob of at most %d bytes", d, profile.MaxSize)
	}
	ref := blob.Ref{Digest: m.Layers[0].Digest, Size: m.Layers[0].Size, MediaType: m.Layers[0].MediaType, Repository: repository}
	b, err := p.origin.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	encoded := make([]byte, ref.Size)
	if err := blob.ReadFull(ctx, b, encoded, 0); err != nil {
		return nil, err
	}
	if ref.Digest.Algorithm().FromBytes(encoded) != ref.Digest {
		return nil, blob.Errorf(blob.Corrupt, "profile %v has another digest", ref.Digest)
	}
	return encoded, nil
}

// Traces returns the timelines of the latest starts of images, the latest last;
// with a name, of those that were asked for by it, by the last part of it, or by
// their manifest's digest.
func (p *Peer) Traces(name string) ([]trace.Start, error) {
	all := p.images.Traces()
	if name == "" {
		return all, nil
	}
	named := slices.DeleteFunc(slices.Clone(all), func(s trace.Start) bool { return !calls(s, name) })
	if len(named) == 0 {
		return nil, blob.Errorf(blob.NotFound,
			"find trace of %s: no start of it was seen since this node began; it keeps those of images it had not mounted before", name)
	}
	return named, nil
}

// calls reports whether a name may mean a start's image.
func calls(s trace.Start, name string) bool {
	if s.Image == name || s.Manifest.String() == name || strings.HasSuffix(s.Image, "/"+name) {
		return true
	}
	parsed, err := parseName(name)
	return err == nil && (parsed.String() == s.Image || parsed.Digest == s.Manifest && parsed.Digest != "")
}

func (p *Peer) handleStarts(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		starts, err := p.Traces(r.URL.Query().Get("name"))
		p.answer(w, starts, err)
	})
}

// Traces is Peer.Traces on the running peer.
func (c *Client) Traces(ctx context.Context, name string) ([]trace.Start, error) {
	var starts []trace.Start
	err := c.call(ctx, http.MethodGet, "/v1/traces?"+url.Values{"name": {name}}.Encode(), nil, &starts)
	return starts, err
}
