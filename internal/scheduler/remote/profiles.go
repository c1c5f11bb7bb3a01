package remote

import (
	"context"

	"github.com/opencontainers/go-digest"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/scheduler/wire"
)

// OfferProfiles says which profiles this peer has: SHA-256 digests of their
// encodings, at most wire.MaxOffers, by the manifests of their images. It returns
// which of them the scheduler wants.
//
// This and the next three go over the connection that the session has, one round
// trip each, and do not wait for one. Errors: Unavailable where there is none,
// or it breaks, Invalid for what makes no sense, Busy for a peer that calls too
// often, those of ctx.
func (s *Session) OfferProfiles(ctx context.Context, offers map[digest.Digest]digest.Digest) (wanted []digest.Digest, err error) {
	request, err := wire.EncodeOffers(offers)
	if err != nil {
		return nil, err
	}
	err = s.call(ctx, "offer profiles", func(c pb.SchedulerClient) error {
		answer, err := c.OfferProfiles(ctx, request)
		if err == nil {
			wanted, err = wire.DecodeWanted(answer, offers)
		}
		return err
	})
	return wanted, err
}

// PutProfile gives the scheduler a profile, encoded.
func (s *Session) PutProfile(ctx context.Context, manifest digest.Digest, data []byte) error {
	return s.call(ctx, "put profile", func(c pb.SchedulerClient) error {
		_, err := c.PutProfile(ctx, &pb.PutProfileRequest{Manifest: manifest.String(), Data: data})
		return err
	})
}

// GetProfile returns the profile of an image, encoded, as the scheduler has it:
// whether it is one is for the caller to see. The error is NotFound if the
// scheduler has none.
func (s *Session) GetProfile(ctx context.Context, manifest digest.Digest) (data []byte, err error) {
	err = s.call(ctx, "get profile", func(c pb.SchedulerClient) error {
		answer, err := c.GetProfile(ctx, &pb.GetProfileRequest{Manifest: manifest.String()})
		data = answer.GetData()
		return err
	})
	return data, err
}

// RemoveProfile removes the profile of an image, and has the scheduler keep none
// that was recorded before. If there is none, that is no error.
func (s *Session) RemoveProfile(ctx context.Context, manifest digest.Digest) error {
	return s.call(ctx, "remove profile", func(c pb.SchedulerClient) error {
		_, err := c.RemoveProfile(ctx, &pb.RemoveProfileRequest{Manifest: manifest.String()})
		return err
	})
}

// call calls f with the connection of the stream that is open.
func (s *Session) call(ctx context.Context, doing string, f func(pb.SchedulerClient) error) error {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn == nil {
		return blob.Errorf(blob.Unavailable, "%s: scheduler %s is gone", doing, s.cfg.Addr)
	}
	err := f(pb.NewSchedulerClient(conn))
	if err != nil && ctx.Err() != nil {
		return blob.Errorf(blob.KindOf(ctx.Err()), "%s: no answer from scheduler %s: %w", doing, s.cfg.Addr, ctx.Err())
	}
	return failure(s.cfg.Addr, err)
}
