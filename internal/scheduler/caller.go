package scheduler

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/peer"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/scheduler/wire"
)

// What calls about profiles cost, and how much of it one connection has: per
// second, and at once. So it puts 50 a second, after 500, which takes a few
// hundredths of a processor.
const (
	callRate   = 200
	callBurst  = 2000
	putCost    = 4
	getCost    = 1
	removeCost = 4
	offersCost = 50 // as many offers cost 1
)

// caller is one connection, and what it may still ask for. The zero value has
// asked for nothing. Its methods are safe for concurrent use.
type caller struct {
	// mu guards what follows.
	mu    sync.Mutex
	spent float64 // of callBurst, at the time at
	at    time.Time
}

// pay takes from what the caller may ask for. The error is Busy if that is not
// enough.
func (c *caller) pay(cost float64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass(time.Now())
	if c.spent+cost > callBurst {
		return blob.Errorf(blob.Busy, "exchange profiles: this peer calls too often")
	}
	c.spent += cost
	return nil
}

// pass gives back what time does. It is for callers that hold mu.
func (c *caller) pass(now time.Time) {
	c.spent = max(0, c.spent-callRate*now.Sub(c.at).Seconds())
	c.at = now
}

// idle reports that the caller has all it may ask for, and can be forgotten.
func (c *caller) idle(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass(now)
	return c.spent == 0
}

// callers are the connections that asked for something of late. The zero value
// has none. Its methods are safe for concurrent use.
type callers struct {
	// mu guards what follows.
	mu    sync.Mutex
	of    map[string]*caller // by address and port
	sweep int                // at how many of them idle ones are looked for
}

// get returns the caller at an address.
func (c *callers) get(remote string) *caller {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.of[remote]; one != nil {
		return one
	}
	if len(c.of) >= c.sweep {
		now := time.Now()
		for name, one := range c.of {
			if one.idle(now) {
				delete(c.of, name)
			}
		}
		c.sweep = max(1024, 2*len(c.of))
	}
	if c.of == nil {
		c.of = make(map[string]*caller)
	}
	one := new(caller)
	c.of[remote] = one
	return one
}

// The four calls about profiles, of a peer here or elsewhere.

func (s *Service) offerProfiles(c *caller, offers map[digest.Digest]digest.Digest) ([]digest.Digest, error) {
	if err := c.pay(1 + float64(len(offers))/offersCost); err != nil {
		return nil, err
	}
	return s.profiles.offer(offers), nil
}

func (s *Service) putProfile(c *caller, manifest digest.Digest, data []byte) error {
	if err := c.pay(putCost); err != nil {
		return err
	}
	return s.profiles.put(manifest, data)
}

func (s *Service) getProfile(c *caller, manifest digest.Digest) ([]byte, error) {
	if err := c.pay(getCost); err != nil {
		return nil, err
	}
	return s.profiles.get(manifest)
}

func (s *Service) removeProfile(c *caller, manifest digest.Digest) error {
	if err := c.pay(removeCost); err != nil {
		return err
	}
	return s.profiles.remove(manifest)
}

// caller returns who calls.
func (g *server) caller(ctx context.Context) *caller {
	remote := ""
	if p, ok := peer.FromContext(ctx); ok {
		remote = p.Addr.String()
	}
	return g.s.callers.get(remote)
}

// OfferProfiles implements pb.SchedulerServer.
func (g *server) OfferProfiles(ctx context.Context, request *pb.OfferProfilesRequest) (*pb.OfferProfilesResponse, error) {
	offers, err := wire.DecodeOffers(request)
	if err != nil {
		return nil, statusOf(err)
	}
	wanted, err := g.s.offerProfiles(g.caller(ctx), offers)
	if err != nil {
		return nil, statusOf(err)
	}
	return wire.EncodeWanted(wanted), nil
}

// PutProfile implements pb.SchedulerServer.
func (g *server) PutProfile(ctx context.Context, request *pb.PutProfileRequest) (*pb.PutProfileResponse, error) {
	if err := g.s.putProfile(g.caller(ctx), digest.Digest(request.GetManifest()), request.GetData()); err != nil {
		return nil, statusOf(err)
	}
	return &pb.PutProfileResponse{}, nil
}

// GetProfile implements pb.SchedulerServer.
func (g *server) GetProfile(ctx context.Context, request *pb.GetProfileRequest) (*pb.GetProfileResponse, error) {
	data, err := g.s.getProfile(g.caller(ctx), digest.Digest(request.GetManifest()))
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.GetProfileResponse{Data: data}, nil
}

// RemoveProfile implements pb.SchedulerServer.
func (g *server) RemoveProfile(ctx context.Context, request *pb.RemoveProfileRequest) (*pb.RemoveProfileResponse, error) {
	if err := g.s.removeProfile(g.caller(ctx), digest.Digest(request.GetManifest())); err != nil {
		return nil, statusOf(err)
	}
	return &pb.RemoveProfileResponse{}, nil
}

// OfferProfiles says which profiles this peer has: SHA-256 digests of their
// encodings, at most wire.MaxOffers, by the manifests of their images. It returns
// which of them the scheduler wants.
//
// Errors of this and the next three: Unavailable after the service's Close,
// Invalid for what makes no sense, Busy for a peer that calls too often.
func (x *Session) OfferProfiles(_ context.Context, offers map[digest.Digest]digest.Digest) ([]digest.Digest, error) {
	if x.s.isClosed() {
		return nil, errStopping
	}
	if err := wire.CheckOffers(offers); err != nil {
		return nil, err
	}
	return x.s.offerProfiles(&x.caller, offers)
}

// PutProfile gives the scheduler a profile, encoded.
func (x *Session) PutProfile(_ context.Context, manifest digest.Digest, data []byte) error {
	if x.s.isClosed() {
		return errStopping
	}
	return x.s.putProfile(&x.caller, manifest, data)
}

// GetProfile returns the profile of an image, encoded, not to be changed. The
// error is NotFound if the scheduler has none.
func (x *Session) GetProfile(_ context.Context, manifest digest.Digest) ([]byte, error) {
	if x.s.isClosed() {
		return nil, errStopping
	}
	return x.s.getProfile(&x.caller, manifest)
}

// RemoveProfile removes the profile of an image, and has the scheduler keep none
// that was recorded before. If there is none, that is no error.
func (x *Session) RemoveProfile(_ context.Context, manifest digest.Digest) error {
	if x.s.isClosed() {
		return errStopping
	}
	return x.s.removeProfile(&x.caller, manifest)
}
