// Package scheduler is the service around the core that decides who fetches
// what from whom. It holds the streams of the peers that have joined, lets what
// they report happen one after the other, and brings each what was decided for
// it. It decides nothing, and keeps nothing when it stops: peers that join its
// successor tell it all again.
//
// Peers join over gRPC, or from within the process.
package scheduler

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// Config configures a Service. The zero value works.
type Config struct {
	// Schedule is what decisions are made by.
	Schedule schedule.Options
	// MaxPeers is how many peers may have joined. Default: 20,000.
	MaxPeers int
	// Learn is how long a scheduler that takes the place of an earlier one decides
	// nothing. Default: 1 s.
	Learn time.Duration
	// Queue is about how many bytes of memory may wait for one peer to take
	// them; the stream of a peer that is further behind is ended. Default: 8
	// MiB.
	Queue int
	// MaxProfiles and MaxProfileBytes are how many profiles of images are kept,
	// and how many bytes of memory they may take together; the one that was used
	// least recently goes. Defaults: 10,000 and 64 MiB.
	MaxProfiles     int
	MaxProfileBytes int64
	// TLS, where set, is used for all connections. It says whether clients have
	// to show certificates. Those that do keep their IDs: see bonds.
	TLS *tls.Config
	// Version is told to peers and to who asks for the status.
	Version string
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Stats counts what a service did since it was made.
type Stats struct {
	// Peers are joined now, Blobs are known now.
	Peers, Blobs int64
	// Joins counts the streams peers opened.
	Joins int64
	// Decisions counts the events that happened, ticks included. StepTime is
	// how long they took, together.
	Decisions int64
	StepTime  time.Duration
	// What was told to peers. Leases are grants, or parts of them, to read from
	// the origin.
	Grants, Leases, Revokes, Drops, Forgets, Parked, Refused int64
	// SlowPeers counts streams that were ended because the peer did not take
	// what was sent, Invalid those that were because it sent nonsense.
	SlowPeers, Invalid int64
	// Profiles are kept now, of ProfileBytes together. ProfileLookups counts the
	// questions for one, ProfileHits those that were answered with one.
	Profiles, ProfileBytes, ProfileLookups, ProfileHits int64
	// ForeignIDs counts streams that were refused because their ID belongs to
	// another certificate.
	ForeignIDs int64
}

// Service is a scheduler. Its methods are safe for concurrent use.
type Service struct {
	// Constant after New.
	cfg    Config
	log    *slog.Logger
	began  time.Time
	linger time.Duration // after the last event, nothing is left to expire
	server *grpc.Server

	profiles *profiles
	callers  callers

	tasks sync.WaitGroup
	// stopping is closed by Close.
	stopping chan struct{}

	// mu guards what follows.
	mu        sync.Mutex
	learning  time.Time // until then wants wait in held
	held      []schedule.Want
	tracker   *schedule.Tracker
	links     map[schedule.PeerID]*link
	bonds     bonds
	stats     Stats
	closed    bool
	ticking   bool
	tickUntil time.Time
}

// The errors streams end with.
var (
	errStopping = blob.Errorf(blob.Unavailable, "serve peer: the scheduler stops")
	errReplaced = blob.Errorf(blob.Canceled, "serve peer: another stream has joined under its id")
	errLeft     = blob.Errorf(blob.Canceled, "serve peer: it has left")
)

// tick is how often leases are looked at while there may be some.
const tick = 100 * time.Millisecond

// New returns a service that nobody has joined. Its goroutines end with Close.
func New(cfg Config) *Service {
	if cfg.MaxPeers <= 0 {
		cfg.MaxPeers = 20000
	}
	if cfg.Learn <= 0 {
		cfg.Learn = learnFor
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 8 << 20
	}
	if cfg.MaxProfiles <= 0 {
		cfg.MaxProfiles = 10000
	}
	if cfg.MaxProfileBytes <= 0 {
		cfg.MaxProfileBytes = 64 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	o := cfg.Schedule
	s := &Service{
		cfg: cfg, log: cfg.Logger, began: time.Now(),
		// The longest of the times the core counts; its own defaults are below a
		// minute.
		linger:   max(time.Minute, o.LeaseLife, o.TransferLife, o.BusyPause, o.AvoidPause, o.OriginPause) + time.Second,
		stopping: make(chan struct{}),
		tracker:  schedule.New(o),
		links:    make(map[schedule.PeerID]*link),
		bonds:    bonds{most: 2 * cfg.MaxPeers},
		profiles: newProfiles(cfg.MaxProfiles, cfg.MaxProfileBytes),
	}
	s.server = newServer(s)
	return s
}

// Serve takes peers from ln, which it closes, until Close. It may be called
// with several listeners. The error is nil after Close.
func (s *Service) Serve(ln net.Listener) error {
	if err := s.server.Serve(ln); err != nil && !s.isClosed() {
		return blob.Errorf(blob.KindOf(err), "serve peers: %w", err)
	}
	return nil
}

func (s *Service) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close tells all peers that the scheduler stops, and waits until those that
// are elsewhere know. When ctx ends first, connections are closed as they are.
// It returns with all of the service's goroutines ended; those of sessions end
// with the Close of each. A second call does nothing.
func (s *Service) Close(ctx context.Context) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	for _, l := range s.links {
		l.end(errStopping)
	}
	s.mu.Unlock()
	close(s.stopping)

	graceful := make(chan struct{})
	s.tasks.Go(func() {
		s.server.GracefulStop()
		close(graceful)
	})
	select {
	case <-graceful:
	case <-ctx.Done():
		s.server.Stop()
	}
	s.tasks.Wait()
}

// Stats returns the counters.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot()
}

// snapshot is for callers that hold mu.
func (s *Service) snapshot() Stats {
	out := s.stats
	out.Peers, out.Blobs = int64(len(s.links)), int64(s.tracker.Blobs())
	s.profiles.count(&out)
	return out
}

// join lets a peer in, in place of an older stream of its. who is whose
// certificate it showed; the zero one stands for this process.
func (s *Service) join(h wire.Hello, remote string, who holder) (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.links[h.ID]
	switch {
	case s.closed:
		return nil, errStopping
	case old == nil && len(s.links) >= s.cfg.MaxPeers:
		return nil, blob.Errorf(blob.Busy, "join scheduler: %d peers have joined, which is the limit", len(s.links))
	}
	if err := s.identify(h.ID, old, remote, who); err != nil {
		return nil, err
	}
	if old != nil {
		s.log.Warn("peer joined again, its older stream is ended", "peer", h.ID, "remote", remote, "older", old.remote)
		old.end(errReplaced)
		s.release(h.ID)
		s.happen(schedule.PeerLeft{ID: h.ID})
	} else {
		s.log.Info("peer joined", "peer", h.ID, "hostname", h.Hostname, "addr", h.Addr, "remote", remote, "seed", h.Seed,
			"slots", h.Slots, "version", h.Version)
	}
	if h.Again && time.Since(s.began) < learnWithin && s.learning.IsZero() {
		s.learning = time.Now().Add(s.cfg.Learn)
		s.log.Info("peers come back from an earlier scheduler: deciding once they have said what they have", "wait", s.cfg.Learn)
	}
	l := newLink(h, remote, s.cfg.Queue)
	l.holder = who
	s.links[h.ID] = l
	s.stats.Joins++
	s.happen(schedule.PeerJoined{ID: h.ID, Addr: h.Addr, Location: h.Location, Seed: h.Seed, UploadSlots: h.Slots})
	return l, nil
}

// leave forgets the peer of l, unless another stream has taken its place. err
// says why, if l has not ended for another reason.
func (s *Service) leave(l *link, err error) {
	l.end(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(l)
}

// remove is leave for callers that hold mu.
func (s *Service) remove(l *link) {
	if s.links[l.hello.ID] != l {
		return
	}
	delete(s.links, l.hello.ID)
	if s.cfg.TLS != nil {
		s.bonds.keep(l.hello.ID, l.holder, time.Now())
	}
	s.release(l.hello.ID)
	s.log.Info("peer left", "peer", l.hello.ID, "remote", l.remote, "reason", l.reason())
	s.happen(schedule.PeerLeft{ID: l.hello.ID})
}

// report lets an event happen that came from l's peer. Events of a stream that
// has ended are late and change nothing.
func (s *Service) report(l *link, event schedule.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links[l.hello.ID] == l && !s.hold(event) {
		s.happen(event)
	}
}

// A scheduler takes the place of an earlier one if peers that knew that one join
// it within learnWithin. It then decides nothing for Config.Learn, which is learnFor
// unless somebody says otherwise: what a peer wants may be had by one that has not
// said so yet, and would be read from the origin a second time. Peers try to come
// back at least as often.
const (
	learnWithin = 10 * time.Second
	learnFor    = time.Second
)

// hold keeps a want for later if it is too early to decide, and reports whether
// it did. It is for callers that hold mu.
func (s *Service) hold(event schedule.Event) bool {
	if !time.Now().Before(s.learning) {
		s.learned()
		return false
	}
	switch e := event.(type) {
	case schedule.Want:
		s.held = append(s.held, e)
		s.keepTicking(time.Now())
		return true
	case schedule.Cancel:
		s.held = slices.DeleteFunc(s.held, func(w schedule.Want) bool { return w.Peer == e.Peer && w.ID == e.Want })
	case schedule.Announce:
		s.arrived(e.Peer, e.Blob, e.Have)
	case schedule.Have:
		s.arrived(e.Peer, e.Blob, e.Runs)
	}
	return false
}

// arrived takes from held wants of a peer what it has meanwhile: wanting it
// afterwards would say that it was lost again. It is for callers that hold mu.
func (s *Service) arrived(id schedule.PeerID, blob string, have []schedule.Run) {
	s.held = slices.DeleteFunc(s.held, func(w schedule.Want) bool {
		return w.Peer == id && w.Blob == blob && len(without(w.Runs, have)) == 0
	})
	for i, w := range s.held {
		if w.Peer == id && w.Blob == blob {
			s.held[i].Runs = without(w.Runs, have)
		}
	}
}

// without returns what of runs is not in have.
func without(runs, have []schedule.Run) []schedule.Run {
	for _, h := range have {
		var left []schedule.Run
		for _, r := range runs {
			if n := min(r.End(), h.First) - r.First; n > 0 {
				left = append(left, schedule.Run{First: r.First, Count: n})
			}
			if from := max(r.First, h.End()); from < r.End() {
				left = append(left, schedule.Run{First: from, Count: r.End() - from})
			}
		}
		runs = left
	}
	return runs
}

// release drops what was held of a peer. It is for callers that hold mu.
func (s *Service) release(id schedule.PeerID) {
	s.held = slices.DeleteFunc(s.held, func(w schedule.Want) bool { return w.Peer == id })
}

// learned decides on the wants that were held, once it is time. It is for
// callers that hold mu.
func (s *Service) learned() {
	if len(s.held) == 0 || time.Now().Before(s.learning) {
		return
	}
	held := s.held
	s.held = nil
	for _, w := range held {
		if s.links[w.Peer] != nil {
			s.happen(w)
		}
	}
}

// happen lets an event happen and queues what to tell whom. It is for callers
// that hold mu.
func (s *Service) happen(event schedule.Event) {
	began := time.Now()
	actions := s.tracker.Step(event, began)
	s.stats.StepTime += time.Since(began)
	s.stats.Decisions++

	var slow []*link
	for _, a := range actions {
		s.count(a)
		l := s.links[a.Target()]
		if l != nil && !l.put(a) {
			slow = append(slow, l)
		}
	}
	if _, ok := event.(schedule.Tick); !ok || len(actions) > 0 {
		s.keepTicking(began)
	}
	for _, l := range slow {
		if s.links[l.hello.ID] == l {
			s.stats.SlowPeers++
			s.log.Warn("peer does not take what it is sent, its stream is ended", "peer", l.hello.ID, "remote", l.remote)
			s.remove(l)
		}
	}
}

func (s *Service) count(action schedule.Action) {
	switch a := action.(type) {
	case schedule.Grant:
		s.stats.Grants++
		for _, p := range a.Parts {
			if !p.Lease.IsZero() {
				s.stats.Leases++
			}
		}
	case schedule.Revoke:
		s.stats.Revokes++
	case schedule.Drop:
		s.stats.Drops++
	case schedule.Forget:
		s.stats.Forgets++
	case schedule.Parked:
		s.stats.Parked++
	case schedule.Refused:
		s.stats.Refused++
	}
}

// keepTicking has ticks happen until everything has expired that began by now.
// It is for callers that hold mu.
func (s *Service) keepTicking(now time.Time) {
	s.tickUntil = now.Add(s.linger)
	if !s.ticking && !s.closed {
		s.ticking = true
		s.tasks.Go(s.tick)
	}
}

func (s *Service) tick() {
	t := time.NewTicker(tick)
	defer t.Stop()
	for s.tickOnce() {
		select {
		case <-t.C:
		case <-s.stopping:
		}
	}
}

// tickOnce lets a tick happen and reports whether there is to be another one.
func (s *Service) tickOnce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen(schedule.Tick{})
	s.learned()
	s.ticking = !s.closed && time.Now().Before(s.tickUntil)
	return s.ticking
}
