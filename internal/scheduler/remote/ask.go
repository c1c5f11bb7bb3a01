package remote

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/status"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/scheduler/wire"
)

// PeerReport is what a scheduler says of a peer that has joined it.
type PeerReport = wire.PeerReport

// BlobReport is what a scheduler says of a blob.
type BlobReport = wire.BlobReport

// askAtOnce is for how many blobs a scheduler is asked at a time: the question
// and the answer are well below wire.MaxMessage.
const askAtOnce = 20000

// Peers asks the scheduler at cfg.Addr who has joined, over a connection of its
// own; cfg's TLS and Dial are used, the rest is not. The answer is sorted by ID.
//
// Errors: Unavailable if it cannot be reached, Invalid if its answer makes no
// sense, those of ctx.
func Peers(ctx context.Context, cfg Config) (all []PeerReport, err error) {
	err = ask(cfg, func(c pb.SchedulerClient) error {
		answer, err := c.Peers(ctx, &pb.PeersRequest{})
		for _, m := range answer.GetPeers() {
			r, err := wire.DecodePeer(m)
			if err != nil {
				return err
			}
			all = append(all, r)
		}
		return err
	})
	return all, err
}

// Blobs asks the scheduler at cfg.Addr about the blobs of these names, as Peers
// does. Those that it does not know are not in the answer.
func Blobs(ctx context.Context, cfg Config, names []string) (all []BlobReport, err error) {
	err = ask(cfg, func(c pb.SchedulerClient) error {
		for part := range slices.Chunk(names, askAtOnce) {
			answer, err := c.Status(ctx, &pb.StatusRequest{Blobs: part})
			if err != nil {
				return err
			}
			for _, m := range answer.GetBlobs() {
				r, err := wire.DecodeBlob(m)
				if err != nil {
					return err
				}
				all = append(all, r)
			}
		}
		return nil
	})
	return all, err
}

// ask connects for as long as f runs.
func ask(cfg Config, f func(pb.SchedulerClient) error) error {
	conn, err := Connect(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	return failure(cfg.Addr, f(pb.NewSchedulerClient(conn)))
}

// failure returns err, if it is one, with the kind that gRPC's code stands for.
func failure(addr string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("talk to scheduler %s: %w", addr, err)
	}
	kind, known := kinds[st.Code()]
	if !known {
		kind = blob.Unavailable
	}
	why := st.Message()
	// What failed is at the end of what gRPC says, in quotes.
	if _, dialing, ok := strings.Cut(why, "Error while dialing: "); ok {
		why = strings.TrimSuffix(dialing, `"`)
	}
	return blob.Errorf(kind, "talk to scheduler %s: %s", addr, why)
}
