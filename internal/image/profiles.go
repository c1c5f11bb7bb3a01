package image

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image/profile"
	"skimmer/internal/image/trace"
)

const (
	// profileGrace is how long a start waits, once all tables of contents are
	// here, for an answer whether there is a profile, before it begins to guess.
	profileGrace = 150 * time.Millisecond
	// profileLimit is how long it is looked for.
	profileLimit = 10 * time.Second
	// enoughStarts is after how many starts a profile that serves well is left
	// as it is.
	enoughStarts = 4
	// firstWave and laterWaves are how many compressed bytes of a profile are
	// fetched at a time: the beginning first, then more in fewer requests.
	firstWave  = 1 << 20
	laterWaves = 4 << 20
	// wavesAtOnce are on their way together, so that it is never idle; more would
	// take its breadth from what is wanted first. What has arrived and is being
	// inflated does not count.
	wavesAtOnce = 2
)

// found is a profile that is being looked for.
type found struct {
	done chan struct{} // closed when what follows is known

	// Constant once done is closed.
	profile *profile.Profile // nil if there is none
	from    string           // as trace.Start.Profile
}

// findProfile begins to look for an image's profile: on this node, then in the
// cluster, then beside the image in its registry.
func (l *Library) findProfile(ctx context.Context, rec *recording, repository string) *found {
	f := &found{done: make(chan struct{})}
	if l.profiles == nil {
		close(f.done)
		return f
	}
	l.work.Go(func() {
		ctx, over := rec.timed(ctx, trace.Profile, "")
		over(0, l.look(ctx, f, repository, rec.manifest))
	})
	return f
}

// look looks for a profile, and says that f is known.
func (l *Library) look(ctx context.Context, f *found, repository string, manifest digest.Digest) (err error) {
	defer close(f.done)
	ctx, cancel := context.WithTimeout(ctx, profileLimit)
	defer cancel()
	f.profile, f.from, err = l.lookForProfile(ctx, repository, manifest)
	if err != nil && l.ctx.Err() == nil {
		l.log.Info("cannot look for a profile everywhere; the start goes on without", "repository", repository, "manifest", manifest, "error", err)
	}
	return err
}

// lookForProfile returns the profile and the place that had it, or neither. The
// error is of places that could not be asked, or had what is no profile.
func (l *Library) lookForProfile(ctx context.Context, repository string, manifest digest.Digest) (_ *profile.Profile, from string, err error) {
	if p, err := l.profiles.Get(manifest); err == nil {
		return &p, "node", nil
	} else if blob.KindOf(err) != blob.NotFound {
		l.log.Warn("a profile cannot be used", "manifest", manifest, "error", err)
	}
	places := []struct {
		from string
		ask  func() ([]byte, error)
	}{
		{"cluster", func() ([]byte, error) {
			if l.cfg.Exchange == nil {
				return nil, errNoProfile
			}
			return l.cfg.Exchange.Lookup(ctx, manifest)
		}},
		{"registry", func() ([]byte, error) {
			if l.cfg.Referrer == nil {
				return nil, errNoProfile
			}
			return l.cfg.Referrer(ctx, repository, manifest)
		}},
	}
	var errs []error
	for _, place := range places {
		data, err := place.ask()
		var p profile.Profile
		if err == nil {
			p, err = profile.Decode(data)
		}
		if err == nil && p.Manifest != manifest {
			err = blob.Errorf(blob.Corrupt, "profile from the %s: it is of %v", place.from, p.Manifest)
		}
		if blob.KindOf(err) == blob.NotFound {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := l.profiles.Put(p); err != nil {
			l.log.Warn("cannot keep a profile", "manifest", manifest, "error", err)
		}
		return &p, place.from, nil
	}
	return nil, "", errors.Join(errs...)
}

var errNoProfile = blob.Errorf(blob.NotFound, "there is no profile")

// learn keeps what a start read. plan is the profile it was fetched by, nil if
// there was none; used bytes of those it named were read, and read bytes in all.
func (l *Library) learn(p, plan *profile.Profile, wanted, used, read int64) {
	if l.profiles == nil {
		return
	}
	// A profile that is known from several starts, most of what it had fetched
	// was read, and of what was read it had most: it serves well.
	if plan != nil && plan.Starts >= enoughStarts && used >= wanted/4*3 && used >= read/4*3 {
		return
	}
	fitting := p.Fit()
	merged := fitting
	if old, err := l.profiles.Get(p.Manifest); err == nil {
		merged = profile.Merge(old, fitting)
	}
	if err := l.profiles.Put(merged); err != nil {
		l.log.Warn("cannot keep a profile", "manifest", p.Manifest, "error", err)
	}
	if l.cfg.Exchange == nil {
		return
	}
	// Others have merged the starts before.
	encoded, err := profile.Encode(fitting)
	if err != nil {
		l.log.Error("cannot encode a profile", "manifest", p.Manifest, "error", err)
		return
	}
	l.cfg.Exchange.Offer(p.Manifest, encoded)
}

// Profiles returns the profiles this node keeps; nil where they are turned off.
func (l *Library) Profiles() *profile.Dir { return l.profiles }

// profile fetches what a profile names, in its order, if it is one of these
// layers. It reports whether there was anything to fetch.
func (s *starter) profile(ctx context.Context, f *found, tocs []*estargz.TOC) bool {
	if f.profile == nil {
		return false
	}
	reads := s.trusted(f.profile, tocs)
	if len(reads) == 0 {
		return false
	}
	waves, reads := cutWaves(reads, tocs, s.lib.cfg.ProfileLimit)
	s.rec.planned(f.profile, f.from, reads)
	var all sync.WaitGroup
	defer all.Wait()
	under := make(chan struct{}, wavesAtOnce)
	for _, w := range waves {
		select {
		case under <- struct{}{}:
		case <-ctx.Done():
			return true
		}
		all.Go(func() { s.fetchSpans(ctx, w, func() { <-under }) })
	}
	return true
}

// trusted returns those reads of a profile that fit the layers here and that at
// least half of its starts made; their layers are indexes into s.layers.
func (s *starter) trusted(p *profile.Profile, tocs []*estargz.TOC) []profile.Read {
	index := make([]int, len(p.Layers))
	for i, want := range p.Layers {
		index[i] = slices.IndexFunc(s.layers, func(l Layer) bool { return l.Digest == want.Digest && l.TOCDigest == want.TOC })
		if at := index[i]; at >= 0 && len(tocs[at].Index.Chunks) != want.Chunks {
			index[i] = -1 // it lies, or it is of another version of us
		}
	}
	var reads []profile.Read
	for _, r := range p.Reads {
		if at := index[r.Layer]; at >= 0 && 2*r.Starts >= p.Starts {
			r.Layer = at
			reads = append(reads, r)
		}
	}
	return reads
}

// cutWaves cuts reads, in their order, into what to fetch at a time, and leaves
// out what is beyond limit compressed bytes. A compressed stream is counted
// where its first chunk is wanted.
func cutWaves(reads []profile.Read, tocs []*estargz.TOC, limit int64) (waves []spans, within []profile.Read) {
	type stream struct{ layer, n int }
	counted := make(map[stream]bool)
	var total, size int64
	wave, most := make(spans), int64(firstWave)
	for _, r := range reads {
		ix := &tocs[r.Layer].Index
		var add int64
		for n := streamOf(ix, r.First); n < len(ix.Streams) && int(ix.Streams[n].FirstChunk) < r.First+r.Count; n++ {
			if s := (stream{r.Layer, n}); !counted[s] {
				counted[s] = true
				add += ix.Streams[n].End - ix.Streams[n].Off
			}
		}
		if total += add; limit > 0 && total > limit {
			break
		}
		last := ix.Chunks[r.First+r.Count-1]
		wave.add(r.Layer, ix.Chunks[r.First].DataOff, last.DataOff+last.Size)
		within = append(within, r)
		if size += add; size >= most {
			waves = append(waves, wave)
			wave, size, most = make(spans), 0, laterWaves
		}
	}
	if len(wave) > 0 {
		waves = append(waves, wave)
	}
	return waves, within
}

// streamOf returns the stream that holds a chunk.
func streamOf(ix *estargz.Index, chunk int) int {
	return sort.Search(len(ix.Streams), func(i int) bool { return int(ix.Streams[i].FirstChunk) > chunk }) - 1
}
