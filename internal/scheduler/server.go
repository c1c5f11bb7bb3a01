package scheduler

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// A peer that sends nothing for pingAfter is asked whether it is there, and
// taken for dead if it does not answer for pingWait.
const (
	pingAfter = 2500 * time.Millisecond
	pingWait  = 2 * time.Second
)

// helloLimit is how long a stream may be open without a hello.
const helloLimit = 5 * time.Second

// batch is about how many bytes of actions are sent as one message.
const batch = 256 << 10

// server answers gRPC.
type server struct {
	pb.UnimplementedSchedulerServer
	s *Service
}

func newServer(s *Service) *grpc.Server {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(wire.MaxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(helloLimit),
		grpc.MaxConcurrentStreams(16),
		// Thousands of peers are connected and say little.
		grpc.ReadBufferSize(8 << 10), grpc.WriteBufferSize(16 << 10),
		grpc.WaitForHandlers(true),
	}
	if s.cfg.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(s.cfg.TLS)))
	}
	g := grpc.NewServer(options...)
	pb.RegisterSchedulerServer(g, &server{s: s})
	return g
}

// statusCodes translates kinds of errors for gRPC.
var statusCodes = map[blob.Kind]codes.Code{
	blob.Internal: codes.Internal, blob.Invalid: codes.InvalidArgument, blob.NotFound: codes.NotFound,
	blob.Unauthorized: codes.Unauthenticated, blob.Forbidden: codes.PermissionDenied, blob.Corrupt: codes.DataLoss,
	blob.Unavailable: codes.Unavailable, blob.Busy: codes.ResourceExhausted, blob.Timeout: codes.DeadlineExceeded,
	blob.Full: codes.ResourceExhausted, blob.Canceled: codes.Aborted,
}

// statusOf returns err as gRPC sends it.
func statusOf(err error) error {
	if _, ok := status.FromError(err); ok {
		return err // it came from gRPC
	}
	return status.Error(statusCodes[blob.KindOf(err)], err.Error())
}

// Join implements pb.SchedulerServer.
func (g *server) Join(stream pb.Scheduler_JoinServer) error {
	hello, remote, err := g.hello(stream)
	if err != nil {
		return statusOf(err)
	}
	l, err := g.s.join(hello, remote, holderOf(stream.Context()))
	if err != nil {
		return statusOf(err)
	}
	// Only the end of this method frees those who wait for the peer in Recv or
	// Send, so they are goroutines of their own.
	g.s.tasks.Go(func() { g.s.leave(l, g.receive(stream, l)) })
	g.s.tasks.Go(func() { g.s.leave(l, g.send(stream, l)) })
	<-l.done
	g.s.leave(l, nil)
	return statusOf(l.reason())
}

// hello reads the first message of a stream.
func (g *server) hello(stream pb.Scheduler_JoinServer) (wire.Hello, string, error) {
	type received struct {
		m   *pb.ClientMessage
		err error
	}
	c := make(chan received, 1)
	g.s.tasks.Go(func() {
		m, err := stream.Recv()
		c <- received{m, err}
	})
	var r received
	limit := time.NewTimer(helloLimit)
	defer limit.Stop()
	select {
	case r = <-c:
	case <-limit.C:
		return wire.Hello{}, "", blob.Errorf(blob.Timeout, "read hello: nothing came for %v", helloLimit)
	case <-g.s.stopping:
		return wire.Hello{}, "", errStopping
	}
	if r.err != nil {
		return wire.Hello{}, "", r.err
	}
	remote := ""
	if p, ok := peer.FromContext(stream.Context()); ok {
		remote = p.Addr.String()
	}
	if m := r.m.GetHello(); m != nil {
		m.Addr = reachable(m.GetAddr(), hostOf(remote))
	}
	hello, err := wire.DecodeHello(r.m)
	if err != nil {
		g.s.refuse(remote, hello.ID, err)
	}
	return hello, remote, err
}

// reachable returns addr with host where it has none of its own, or one that
// stands for all interfaces.
func reachable(addr, host string) string {
	h, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return addr
	}
	if ip := net.ParseIP(h); h != "" && (ip == nil || !ip.IsUnspecified()) {
		return addr
	}
	return net.JoinHostPort(host, port)
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	return host
}

// refuse notes that a peer sent nonsense.
func (s *Service) refuse(remote string, id schedule.PeerID, err error) {
	s.mu.Lock()
	s.stats.Invalid++
	s.mu.Unlock()
	s.log.Warn("peer sent what makes no sense, its stream is ended", "peer", id, "remote", remote, "error", err)
}

// receive lets happen what the peer reports, until its stream ends.
func (g *server) receive(stream pb.Scheduler_JoinServer, l *link) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return blob.Errorf(blob.Canceled, "serve peer: its stream has ended: %w", err)
		}
		if m.GetHello() != nil {
			err = blob.Errorf(blob.Invalid, "read hello: a second one")
		}
		for _, e := range m.GetEvents() {
			var event schedule.Event
			if event, err = wire.DecodeEvent(e, l.hello.ID); err != nil {
				break
			}
			g.s.report(l, event)
		}
		if err != nil {
			g.s.refuse(l.remote, l.hello.ID, err)
			return err
		}
		if len(m.GetEvents()) == 0 {
			l.answer()
		}
	}
}

// send sends the peer what was decided, until the link ends.
func (g *server) send(stream pb.Scheduler_JoinServer, l *link) error {
	err := stream.Send(&pb.ServerMessage{Welcome: &pb.Welcome{Protocol: wire.Protocol, Version: g.s.cfg.Version}})
	if err == nil {
		err = l.pump(func(actions []schedule.Action) error { return sendAll(stream, actions) })
	}
	if reason := l.reason(); reason != nil {
		return reason
	}
	return blob.Errorf(blob.Canceled, "serve peer: cannot send to it: %w", err)
}

// sendAll sends actions in messages of a sensible size: an empty one if there
// are none.
func sendAll(stream pb.Scheduler_JoinServer, actions []schedule.Action) error {
	for {
		m, size := &pb.ServerMessage{}, 0
		for ; len(actions) > 0 && size < batch; actions = actions[1:] {
			a := grouped(actions[0])
			size += sizeOf(a)
			e, err := wire.EncodeAction(a, time.Now())
			if err != nil {
				return err
			}
			m.Actions = append(m.Actions, e)
		}
		if err := stream.Send(m); err != nil || len(actions) == 0 {
			return err
		}
	}
}

// Peers implements pb.SchedulerServer.
func (g *server) Peers(context.Context, *pb.PeersRequest) (*pb.PeersResponse, error) {
	out := &pb.PeersResponse{}
	for _, p := range g.s.Peers() {
		out.Peers = append(out.Peers, wire.EncodePeer(p))
	}
	return out, nil
}

// Status implements pb.SchedulerServer.
func (g *server) Status(_ context.Context, request *pb.StatusRequest) (*pb.StatusResponse, error) {
	s := g.s
	names := request.GetBlobs()
	s.mu.Lock()
	c := s.snapshot()
	if len(names) == 0 {
		names = s.tracker.BlobNames()
	}
	s.mu.Unlock()

	out := &pb.StatusResponse{
		Version: s.cfg.Version, SinceMs: s.began.UnixMilli(),
		Counters: &pb.Counters{
			Peers: c.Peers, Blobs: c.Blobs, Joins: c.Joins, Decisions: c.Decisions, StepNanoseconds: c.StepTime.Nanoseconds(),
			Grants: c.Grants, Leases: c.Leases, Revokes: c.Revokes, Drops: c.Drops, Forgets: c.Forgets, Parked: c.Parked,
			Refused: c.Refused, SlowPeers: c.SlowPeers, Invalid: c.Invalid,
			Profiles: c.Profiles, ProfileBytes: c.ProfileBytes, ProfileLookups: c.ProfileLookups, ProfileHits: c.ProfileHits,
			ForeignIds: c.ForeignIDs,
		},
	}
	for _, b := range s.Blobs(names) {
		out.Blobs = append(out.Blobs, wire.EncodeBlob(b))
	}
	return out, nil
}
