package swarm

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
)

// ProfileSession carries profiles to and from one scheduler. A Session that
// implements it is asked for profiles. Its methods may be called concurrently.
type ProfileSession interface {
	// OfferProfiles offers profiles, at most 1,000: the SHA-256 of their
	// encodings by the manifests of their images. It returns which are wanted.
	OfferProfiles(ctx context.Context, offers map[digest.Digest]digest.Digest) ([]digest.Digest, error)
	// PutProfile gives the scheduler a profile, encoded.
	PutProfile(ctx context.Context, manifest digest.Digest, data []byte) error
	// GetProfile returns the scheduler's profile of an image, encoded.
	GetProfile(ctx context.Context, manifest digest.Digest) ([]byte, error)
	// RemoveProfile removes the scheduler's profile of an image, if it has one,
	// and has it keep none that was recorded before.
	RemoveProfile(ctx context.Context, manifest digest.Digest) error
}

const (
	// lookupLimit is how long a scheduler has to answer a lookup, offerLimit how
	// long it has to answer an offer, to take a profile or to remove
	// one.
	lookupLimit = 2 * time.Second
	offerLimit  = 5 * time.Second
	// offerWithin is within what time the nodes that lost a scheduler offer the
	// next one what they hold: not all in the same moment.
	offerWithin = time.Second
	// maxOffers is how many profiles are offered at a time.
	maxOffers = 500
	// maxQueued is how many profiles wait to be offered, of at most 64 KiB. More
	// are left to the next time the scheduler comes back.
	maxQueued = 128
	// The pause before what failed is tried again doubles from minAgain to
	// maxAgain.
	minAgain = time.Second
	maxAgain = 30 * time.Second
)

// Profiles is the cluster's profiles, as the schedulers keep them: that of an
// image is at the scheduler that the digest of its manifest belongs to, as that
// of a blob does. It implements profile.Exchange. Its methods are safe for
// concurrent use.
//
// What comes from a scheduler came from other nodes. A wrong profile costs who
// follows it bytes that it does not need, and nothing else.
type Profiles struct {
	// Constant after newProfiles.
	s *Swarm

	moved  chan struct{} // holds a wish: schedulers came or went
	queued chan struct{} // holds a wish: there is something in queue

	// told is, of the profiles the node holds, since when the scheduler was there
	// that heard of it. Of run alone.
	told map[digest.Digest]time.Time

	// mu guards what follows.
	mu    sync.Mutex
	queue map[digest.Digest][]byte
	held  func() ([]digest.Digest, error)
	read  func(digest.Digest) ([]byte, error)
}

var _ profile.Exchange = (*Profiles)(nil)

func newProfiles(s *Swarm) *Profiles {
	return &Profiles{
		s: s, moved: make(chan struct{}, 1), queued: make(chan struct{}, 1),
		told: map[digest.Digest]time.Time{}, queue: map[digest.Digest][]byte{},
	}
}

// Profiles returns the cluster's profiles. It is there from New on, and answers
// Unavailable without a scheduler and after Close.
func (s *Swarm) Profiles() *Profiles { return s.profiles }

// Hold says what profiles the node keeps, for schedulers that know of none: held
// lists the manifests of their images, read returns an encoding, not to be
// changed afterwards. Both are called from another goroutine, until Close.
func (p *Profiles) Hold(held func() ([]digest.Digest, error), read func(manifest digest.Digest) ([]byte, error)) {
	p.mu.Lock()
	p.held, p.read = held, read
	p.mu.Unlock()
	kick(p.moved)
}

// Lookup implements profile.Exchange. It asks one scheduler over a connection
// that is there already, for as long as ctx says and at most 2 seconds. What it
// returns is not to be changed, and may be no profile: who decodes it sees.
//
// Errors: NotFound if the cluster has none, Unavailable if no scheduler is up,
// Timeout, Invalid for what is not a digest.
func (p *Profiles) Lookup(ctx context.Context, manifest digest.Digest) ([]byte, error) {
	if err := manifest.Validate(); err != nil {
		return nil, blob.Errorf(blob.Invalid, "look up profile: manifest %.80q: %w", manifest, err)
	}
	to, _ := p.owner(manifest)
	if to == nil {
		return nil, blob.Errorf(blob.Unavailable, "look up profile of %v: no scheduler is up", manifest)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	data, err := to.GetProfile(ctx, manifest)
	if err != nil {
		return nil, err
	}
	if len(data) > profile.MaxSize {
		return nil, blob.Errorf(blob.Corrupt, "look up profile of %v: the scheduler sent %d bytes", manifest, len(data))
	}
	return data, nil
}

// Offer implements profile.Exchange. The profile is offered in the background
// to the scheduler it belongs to, and again when that failed, until a later one
// of the same image takes its place. encoded is not to be changed afterwards.
func (p *Profiles) Offer(manifest digest.Digest, encoded []byte) {
	if manifest.Validate() != nil || len(encoded) > profile.MaxSize {
		p.s.log.Error("profile not offered: it makes no sense", "manifest", manifest, "bytes", len(encoded))
		return
	}
	p.mu.Lock()
	_, there := p.queue[manifest]
	full := !there && len(p.queue) >= maxQueued
	if !full {
		p.queue[manifest] = encoded
	}
	p.mu.Unlock()
	if full {
		p.s.log.Debug("profile not offered: too many wait", "manifest", manifest)
		return
	}
	kick(p.queued)
}

// Remove removes the cluster's profile of an image: from every scheduler that is
// up, since another than the one it belongs to now may have had it before. They
// keep none that was recorded before now, as long as they remember; one that is
// away, or begins anew, has not heard of it, and may take it again from a node
// that holds it. What waits here to be offered is not. Nodes keep what they have.
//
// That there is none is no error. Errors: Unavailable if no scheduler is up, or
// one goes meanwhile; Busy if this node calls too often; Invalid for what is not
// a digest; those of ctx, which ends after 5 seconds at most. When it fails, some
// schedulers may have removed it.
func (p *Profiles) Remove(ctx context.Context, manifest digest.Digest) error {
	if err := manifest.Validate(); err != nil {
		return blob.Errorf(blob.Invalid, "remove profile: manifest %.80q: %w", manifest, err)
	}
	p.mu.Lock()
	delete(p.queue, manifest)
	p.mu.Unlock()
	all := p.sessions()
	if len(all) == 0 {
		return blob.Errorf(blob.Unavailable, "remove profile of %v: no scheduler is up", manifest)
	}
	ctx, cancel := context.WithTimeout(ctx, offerLimit)
	defer cancel()
	var group errgroup.Group // one that does not answer keeps no other from being told
	for _, to := range all {
		group.Go(func() error {
			if err := to.RemoveProfile(ctx, manifest); err != nil && blob.KindOf(err) != blob.NotFound {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

// sessions returns all schedulers that are up and keep profiles.
func (p *Profiles) sessions() (all []ProfileSession) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, l := range p.s.links {
		if to, ok := l.session.(ProfileSession); ok && l.up {
			all = append(all, to)
		}
	}
	return all
}

// owner returns the scheduler that keeps the profile of an image; nil if none is
// up, or it keeps no profiles.
func (p *Profiles) owner(manifest digest.Digest) (ProfileSession, *Link) {
	l := p.s.ownerOf(manifest)
	if l == nil {
		return nil, nil
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	to, _ := l.session.(ProfileSession)
	return to, l
}

// run offers profiles until the Swarm's Close.
func (p *Profiles) run() {
	pause := minAgain
	// retry is when something failed, hello when schedulers came or went.
	var retry, hello <-chan time.Time
	for {
		ok := true
		select {
		case <-p.s.ctx.Done():
			return
		case <-p.moved:
			if hello == nil {
				hello = time.After(rand.N(offerWithin))
			}
			ok = p.offerQueued()
		case <-p.queued:
			ok = p.offerQueued()
		case <-hello:
			hello = nil
			ok = p.offerHeld()
		case <-retry:
			queued := p.offerQueued()
			ok = p.offerHeld() && queued
			retry = nil
			if ok {
				pause = minAgain
			}
		}
		if !ok && retry == nil {
			retry = time.After(pause/2 + rand.N(pause/2))
			pause = min(2*pause, maxAgain)
		}
	}
}

// offerQueued offers what waits, and reports whether nothing failed. What has no
// scheduler waits on.
func (p *Profiles) offerQueued() bool {
	p.mu.Lock()
	queue := maps.Clone(p.queue)
	p.mu.Unlock()
	offers := make(map[digest.Digest]digest.Digest, len(queue))
	for manifest, data := range queue {
		offers[manifest] = digest.FromBytes(data)
	}
	return p.offerAll(offers, func(manifest digest.Digest) ([]byte, error) { return queue[manifest], nil }, func(manifest digest.Digest, _ time.Time) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if now := p.queue[manifest]; len(now) > 0 && len(queue[manifest]) > 0 && &now[0] == &queue[manifest][0] {
			delete(p.queue, manifest)
		}
	})
}

// offerHeld offers schedulers what the node keeps and they have not heard of,
// and reports whether nothing failed.
func (p *Profiles) offerHeld() bool {
	p.mu.Lock()
	held, read := p.held, p.read
	p.mu.Unlock()
	if held == nil {
		return true
	}
	all, err := held()
	if err != nil {
		p.s.log.Warn("cannot list profiles for the schedulers", "error", err)
		return false
	}
	offers, told := map[digest.Digest]digest.Digest{}, map[digest.Digest]time.Time{}
	for _, manifest := range all {
		l := p.s.ownerOf(manifest)
		if l == nil {
			continue
		}
		if epoch := l.epoch(); epoch.Equal(p.told[manifest]) {
			told[manifest] = epoch
			continue
		}
		if data, err := read(manifest); err == nil { // else it is gone
			offers[manifest] = digest.FromBytes(data)
		}
	}
	p.told = told
	return p.offerAll(offers, read, func(manifest digest.Digest, epoch time.Time) { p.told[manifest] = epoch })
}

// offerAll offers each scheduler what belongs to it, sends what it wants, and
// calls done with each that needs no more, and with since when its scheduler is
// there. It reports whether nothing failed;
// what no scheduler is up for has not.
func (p *Profiles) offerAll(offers map[digest.Digest]digest.Digest, read func(digest.Digest) ([]byte, error), done func(digest.Digest, time.Time)) bool {
	type share struct {
		to    ProfileSession
		epoch time.Time
		some  []digest.Digest
	}
	shares := map[*Link]*share{}
	for _, manifest := range slices.Sorted(maps.Keys(offers)) {
		to, link := p.owner(manifest)
		if to == nil || manifest.Validate() != nil || offers[manifest].Validate() != nil {
			continue
		}
		if shares[link] == nil {
			shares[link] = &share{to: to, epoch: link.epoch()}
		}
		shares[link].some = append(shares[link].some, manifest)
	}
	ok := true
	for link, sh := range shares {
		for some := range slices.Chunk(sh.some, maxOffers) {
			chunk := make(map[digest.Digest]digest.Digest, len(some))
			for _, manifest := range some {
				chunk[manifest] = offers[manifest]
			}
			err := p.offerChunk(sh.to, chunk, read, func(manifest digest.Digest) { done(manifest, sh.epoch) })
			if err != nil {
				p.s.log.Debug("cannot offer profiles, trying again later", "scheduler", link.name, "error", err)
				ok = false
				break
			}
		}
	}
	return ok
}

// offerChunk offers a scheduler some profiles and sends what it wants.
func (p *Profiles) offerChunk(to ProfileSession, offers map[digest.Digest]digest.Digest, read func(digest.Digest) ([]byte, error), done func(digest.Digest)) error {
	ctx, cancel := context.WithTimeout(p.s.ctx, offerLimit)
	wanted, err := to.OfferProfiles(ctx, offers)
	cancel()
	if err != nil {
		return err
	}
	for _, manifest := range wanted {
		data, err := read(manifest)
		if err != nil || len(data) == 0 {
			p.s.log.Debug("profile not offered: it is gone", "manifest", manifest, "error", err)
			continue // it was removed meanwhile
		}
		ctx, cancel := context.WithTimeout(p.s.ctx, offerLimit)
		err = to.PutProfile(ctx, manifest, data)
		cancel()
		switch {
		case errors.Is(err, blob.Invalid):
			// It would be refused again.
			p.s.log.Warn("the scheduler refused a profile", "manifest", manifest, "error", err)
		case err != nil:
			return err
		}
		done(manifest)
	}
	for manifest := range offers {
		if !slices.Contains(wanted, manifest) {
			done(manifest)
		}
	}
	return nil
}
