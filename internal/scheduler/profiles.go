package scheduler

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
	"skimmer/internal/scheduler/wire"
)

// A profile is what a few starts agree on, and gains little from more. So of
// each image mergeFree profiles are taken, and then one every mergeEvery, which
// is enough for an image whose starts come to read something else.
const (
	mergeFree  = 16
	mergeEvery = time.Minute
)

// After a restart thousands of peers offer the same profiles. askedOf of them
// are asked for each, in case one does not send it; the others are within askedFor.
const (
	askedOf  = 2
	askedFor = 2 * time.Second
)

// maxSums is how many digests of what a profile was made from are remembered.
const maxSums = 4 * mergeFree

// removedFor is how long it is remembered that a profile was removed.
const removedFor = 7 * 24 * time.Hour

// profiles are those of images that peers gave the scheduler. They are soft
// state with an end to it: whoever may call a scheduler may put some here, and
// a wrong one costs others bytes that they limit. Its methods are safe for
// concurrent use.
type profiles struct {
	// Constant after newProfiles.
	maxCount int
	maxBytes int64

	// mu guards what follows. No other lock is taken by who holds it.
	mu            sync.Mutex
	kept          map[digest.Digest]*list.Element // of *keptProfile
	recent        *list.List                      // used last first
	bytes         int64
	asked         map[digest.Digest]*asking
	removed       map[digest.Digest]*removal // at most maxCount
	lookups, hits int64
}

// keptProfile is the profile of an image.
type keptProfile struct {
	manifest digest.Digest
	data     []byte
	// made are the digests of data, and of what data was made from.
	made   []digest.Digest
	merged int       // how many it was made from
	at     time.Time // of the last of them
}

// removal is what is known of an image whose profile was removed.
type removal struct {
	at time.Time // when, by the scheduler's clock
	// sums are the digests of profiles that were recorded before, to the last
	// maxSums of them.
	sums []digest.Digest
}

// asking is which profiles of an image peers were asked for.
type asking struct {
	until time.Time
	sums  map[digest.Digest]int // how many peers were, by digest
}

func newProfiles(maxCount int, maxBytes int64) *profiles {
	return &profiles{
		maxCount: maxCount, maxBytes: maxBytes,
		kept: make(map[digest.Digest]*list.Element), recent: list.New(), asked: make(map[digest.Digest]*asking),
		removed: make(map[digest.Digest]*removal),
	}
}

// offer returns, in order, which of the offered profiles are to be put.
func (p *profiles) offer(offers map[digest.Digest]digest.Digest) []digest.Digest {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	var wanted []digest.Digest
	for manifest, sum := range offers {
		if p.wants(manifest, sum, now) && p.ask(manifest, sum, now) {
			wanted = append(wanted, manifest)
		}
	}
	slices.Sort(wanted)
	return wanted
}

// wants reports whether a profile would change anything. It is for callers that
// hold mu.
func (p *profiles) wants(manifest, sum digest.Digest, now time.Time) bool {
	if r := p.removal(manifest, now); r != nil && slices.Contains(r.sums, sum) {
		return false
	}
	e := p.kept[manifest]
	if e == nil {
		return true
	}
	k := e.Value.(*keptProfile)
	return !slices.Contains(k.made, sum) && (k.merged < mergeFree || now.Sub(k.at) >= mergeEvery)
}

// ask notes that a peer is asked for a profile, and reports whether it is to
// be. It is for callers that hold mu.
func (p *profiles) ask(manifest, sum digest.Digest, now time.Time) bool {
	a := p.asked[manifest]
	if a == nil || now.After(a.until) {
		if a == nil && len(p.asked) >= p.maxCount {
			p.forgetAsked(now)
		}
		a = &asking{until: now.Add(askedFor), sums: make(map[digest.Digest]int)}
		p.asked[manifest] = a
	}
	if a.sums[sum] >= askedOf || a.sums[sum] == 0 && len(a.sums) >= mergeFree {
		return false
	}
	a.sums[sum]++
	return true
}

// forgetAsked makes room. It is for callers that hold mu.
func (p *profiles) forgetAsked(now time.Time) {
	for manifest, a := range p.asked {
		if now.After(a.until) {
			delete(p.asked, manifest)
		}
	}
	if len(p.asked) >= p.maxCount {
		clear(p.asked) // some are asked for once more
	}
}

// put takes a profile. The error is Invalid for what is none, or one of another
// image.
func (p *profiles) put(manifest digest.Digest, data []byte) error {
	if err := wire.CheckManifest("manifest", manifest); err != nil {
		return err
	}
	if len(data) > profile.MaxSize {
		return blob.Errorf(blob.Invalid, "read data: has %d bytes, at most %d", len(data), profile.MaxSize)
	}
	decoded, err := profile.Decode(data)
	if err != nil {
		return blob.Errorf(blob.Invalid, "read data: %v", err)
	}
	if decoded.Manifest != manifest {
		return blob.Errorf(blob.Invalid, "read data: it is the profile of %v, not of %v", decoded.Manifest, manifest)
	}
	sum, now := digest.FromBytes(data), time.Now()

	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.asked[manifest]; a != nil && a.sums[sum] > 0 {
		delete(p.asked, manifest) // what else is offered can be compared with it
	}
	if r := p.removal(manifest, now); r != nil && !decoded.Recorded.After(r.at) {
		r.remember(sum)
		return nil
	}
	if !p.wants(manifest, sum, now) {
		return nil
	}
	k := &keptProfile{manifest: manifest}
	if e := p.kept[manifest]; e != nil {
		k = e.Value.(*keptProfile)
	}
	merged := slices.Clone(data)
	if k.data != nil {
		if merged, err = merge(k.data, decoded); err != nil {
			return err
		}
	}
	k.made = append(k.made, sum)
	if s := digest.FromBytes(merged); s != sum {
		k.made = append(k.made, s)
	}
	k.made = k.made[max(0, len(k.made)-maxSums):]
	k.merged, k.at = k.merged+1, now
	p.keep(k, merged)
	return nil
}

// merge returns the encoding of a profile merged with one that is kept.
func merge(kept []byte, more profile.Profile) ([]byte, error) {
	old, err := profile.Decode(kept)
	if err != nil {
		return nil, err
	}
	return profile.Encode(profile.Merge(old, more))
}

// keep gives k its encoding, and makes room for it. It is for callers that hold
// mu.
func (p *profiles) keep(k *keptProfile, data []byte) {
	p.bytes += int64(len(data) - len(k.data))
	k.data = data
	if e := p.kept[k.manifest]; e != nil {
		p.recent.MoveToFront(e)
	} else {
		p.kept[k.manifest] = p.recent.PushFront(k)
	}
	for len(p.kept) > 1 && (len(p.kept) > p.maxCount || p.bytes > p.maxBytes) {
		p.drop(p.recent.Back())
	}
}

// drop forgets a profile. It is for callers that hold mu.
func (p *profiles) drop(e *list.Element) {
	k := p.recent.Remove(e).(*keptProfile)
	delete(p.kept, k.manifest)
	p.bytes -= int64(len(k.data))
}

// remove forgets the profile of an image, if there is one, and does not take one
// that was recorded before. Those that peers hold and this scheduler does not know
// are asked for once more: an offer does not say when it was recorded.
func (p *profiles) remove(manifest digest.Digest) error {
	if err := wire.CheckManifest("manifest", manifest); err != nil {
		return err
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.removal(manifest, now)
	if r == nil {
		p.forgetRemoved(now)
		r = &removal{}
		p.removed[manifest] = r
	}
	r.at = now
	if e := p.kept[manifest]; e != nil {
		k := e.Value.(*keptProfile)
		for _, sum := range k.made {
			r.remember(sum)
		}
		p.drop(e)
	}
	delete(p.asked, manifest)
	return nil
}

func (r *removal) remember(sum digest.Digest) {
	if !slices.Contains(r.sums, sum) {
		r.sums = append(r.sums, sum)
		r.sums = r.sums[max(0, len(r.sums)-maxSums):]
	}
}

// removal returns what is known of the removal of an image's profile; nil if
// there was none, or it is long ago. It is for callers that hold mu.
func (p *profiles) removal(manifest digest.Digest, now time.Time) *removal {
	r := p.removed[manifest]
	if r != nil && now.Sub(r.at) > removedFor {
		delete(p.removed, manifest)
		return nil
	}
	return r
}

// forgetRemoved makes room for one more removal. It is for callers that hold mu.
func (p *profiles) forgetRemoved(now time.Time) {
	if len(p.removed) < p.maxCount {
		return
	}
	var oldest digest.Digest
	for manifest := range p.removed {
		if r := p.removal(manifest, now); r != nil && (oldest == "" || r.at.Before(p.removed[oldest].at)) {
			oldest = manifest
		}
	}
	if len(p.removed) >= p.maxCount {
		delete(p.removed, oldest)
	}
}

// get returns the profile of an image, not to be changed. The error is NotFound
// if there is none.
func (p *profiles) get(manifest digest.Digest) ([]byte, error) {
	if err := wire.CheckManifest("manifest", manifest); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lookups++
	e := p.kept[manifest]
	if e == nil {
		return nil, blob.Errorf(blob.NotFound, "look up profile of %v: no peer has given one", manifest)
	}
	p.hits++
	p.recent.MoveToFront(e)
	return e.Value.(*keptProfile).data, nil
}

// count fills in what out says of profiles.
func (p *profiles) count(out *Stats) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out.Profiles, out.ProfileBytes = int64(len(p.kept)), p.bytes
	out.ProfileLookups, out.ProfileHits = p.lookups, p.hits
}
