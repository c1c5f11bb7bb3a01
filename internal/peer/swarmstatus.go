package peer

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/store"
	"skimmer/internal/swarm"
)

// SwarmStatus is how a node stands in its swarm. Counts began with the process
// and only grow, but for those that say now.
type SwarmStatus struct {
	ID       string `json:"id"`
	Hostname string `json:"hostname"`
	// Address is the host:port others reach the node at, as far as it can tell
	// itself: behind an address translation only schedulers know it.
	Address string `json:"address"`
	Zone    string `json:"zone,omitempty"`
	Rack    string `json:"rack,omitempty"`
	// Seed says that it reads from origins for others.
	Seed bool `json:"seed"`
	// Schedulers are those it knows; Unresolved is why it does not know all.
	Schedulers []swarm.LinkStatus `json:"schedulers"`
	Unresolved string             `json:"unresolved,omitempty"`

	// Bytes counts bytes, Rates is how many per second in the last few seconds.
	Bytes SwarmBytes `json:"bytes"`
	Rates SwarmBytes `json:"rates"`
	// Uploads are under way now, Slots how many there may be.
	Uploads int64 `json:"uploads"`
	Slots   int64 `json:"slots"`
	// Fetching are the blobs of which something arrives now.
	Fetching []FetchStatus `json:"fetching"`

	// WithoutScheduler and WithoutSeeds count reads that had to do without.
	WithoutScheduler int64 `json:"withoutScheduler"`
	WithoutSeeds     int64 `json:"withoutSeeds"`
	// Corrupt counts sources that sent wrong bytes, PeerFailures and
	// OriginFailures those that failed otherwise.
	Corrupt        int64 `json:"corruptSources"`
	PeerFailures   int64 `json:"peerFailures"`
	OriginFailures int64 `json:"originFailures"`
	// Hedges counts second sources that were asked because the first took long,
	// Busy answers of peers that they are busy, BusySent those of this node.
	Hedges   int64 `json:"hedges"`
	Busy     int64 `json:"busyAnswers"`
	BusySent int64 `json:"busyAnswersSent"`
	// Revoked counts decisions of schedulers that were taken back, Parked wants
	// that had to wait.
	Revoked int64 `json:"revoked"`
	Parked  int64 `json:"parked"`
}

// SwarmBytes says where bytes came from and how many went to others.
type SwarmBytes struct {
	FromPeers  int64 `json:"fromPeers"`
	FromOrigin int64 `json:"fromOrigin"`
	ToOthers   int64 `json:"toOthers"`
}

// FetchStatus is a blob of which something arrives.
type FetchStatus struct {
	Digest digest.Digest `json:"digest"`
	// Size is the blob's length in bytes, Present how many of them are here.
	Size    int64 `json:"size"`
	Present int64 `json:"present"`
	// Rate is how many arrive per second.
	Rate int64 `json:"rate"`
	// Repository or URL is where it came from first.
	Repository string `json:"repository,omitempty"`
	URL        string `json:"url,omitempty"`
}

// status returns how the node stands. While something arrives it takes
// watchBlobs.
func (m *member) status(ctx context.Context) (*SwarmStatus, error) {
	st, up, down := m.swarm.Stats(), m.server.Stats(), m.client.Stats()
	hello, now := m.hello(), m.sample(time.Now())
	s := &SwarmStatus{
		ID: string(m.id), Hostname: hello.Hostname, Zone: hello.Location.Zone, Rack: hello.Location.Rack, Seed: hello.Seed,
		Schedulers: m.swarm.Links(),
		Bytes:      now.SwarmBytes, Rates: m.rates.until(now), Uploads: up.Uploads, Slots: int64(hello.Slots),
		WithoutScheduler: st.WithoutScheduler, WithoutSeeds: st.WithoutSeeds,
		Corrupt: st.Corrupt, PeerFailures: st.PeerFailures, OriginFailures: st.OriginFailures,
		Hedges: st.Hedges, Busy: down.Busy, BusySent: up.Busy, Revoked: st.Revoked, Parked: st.Parked,
	}
	if s.Schedulers == nil {
		s.Schedulers = []swarm.LinkStatus{}
	}
	s.Address = reachedAt(ctx, hello.Addr, s.Schedulers)
	if err := m.unresolved.Load(); err != nil {
		s.Unresolved = inOneLine(*err)
	}
	var err error
	s.Fetching, err = m.fetching(ctx, s.Rates)
	return s, err
}

// reachedAt returns addr with a host: that which this machine has on the way
// to a scheduler. No packet is sent to learn it.
func reachedAt(ctx context.Context, addr string, schedulers []swarm.LinkStatus) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "" {
		return addr
	}
	for _, l := range schedulers {
		if l.Scheduler == localName {
			return net.JoinHostPort("127.0.0.1", port)
		}
		if c, err := new(net.Dialer).DialContext(ctx, "udp", l.Scheduler); err == nil {
			host, _, _ := net.SplitHostPort(c.LocalAddr().String()) // it is one
			_ = c.Close()                                           // nothing was sent
			return net.JoinHostPort(host, port)
		}
	}
	return addr
}

// watchBlobs is how long blobs are watched to see which of them grow.
const watchBlobs = 250 * time.Millisecond

// fetching returns the blobs of which something arrives. Where nothing arrived
// in the last few seconds there are none, and the store is not asked.
func (m *member) fetching(ctx context.Context, rates SwarmBytes) ([]FetchStatus, error) {
	if rates.FromPeers == 0 && rates.FromOrigin == 0 {
		return []FetchStatus{}, nil
	}
	before, err := m.p.store.List()
	if err != nil {
		return nil, err
	}
	began, wait := time.Now(), time.NewTimer(watchBlobs)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return nil, blob.Errorf(blob.KindOf(ctx.Err()), "watch blobs: %w", ctx.Err())
	}
	after, err := m.p.store.List()
	return growing(before, after, time.Since(began)), err
}

// growing returns the blobs that there is more of after than before.
func growing(before, after []store.Info, took time.Duration) []FetchStatus {
	was := map[digest.Digest]int64{}
	for _, i := range before {
		was[i.Digest] = i.Present
	}
	out := []FetchStatus{}
	for _, i := range after {
		if n := i.Present - was[i.Digest]; n > 0 {
			out = append(out, FetchStatus{
				Digest: i.Digest, Size: i.Size, Present: i.Present, Rate: perSecond(n, took), Repository: i.Repository, URL: i.URL,
			})
		}
	}
	return out
}

func perSecond(n int64, took time.Duration) int64 {
	if took <= 0 {
		return 0
	}
	return int64(float64(n) / took.Seconds())
}

// sample is how far the counters were at a time.
type sample struct {
	at time.Time
	SwarmBytes
}

func (m *member) sample(now time.Time) sample {
	st := m.swarm.Stats()
	return sample{now, SwarmBytes{FromPeers: st.PeerBytes, FromOrigin: st.OriginBytes, ToOthers: m.server.Stats().Bytes}}
}

// rateSamples is over how many samples, one of each second, rates go back.
const rateSamples = 5

// rates are the last samples. The zero value has none. Its methods are safe for
// concurrent use.
type rates struct {
	mu   sync.Mutex // guards what follows
	last [rateSamples]sample
	next int
}

// add adds the newest sample.
func (r *rates) add(s sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[r.next] = s
	r.next = (r.next + 1) % rateSamples
}

// until returns how much there was per second from the oldest sample to s.
func (r *rates) until(s sample) SwarmBytes {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range rateSamples {
		from := r.last[(r.next+i)%rateSamples]
		if from.at.IsZero() {
			continue
		}
		took := s.at.Sub(from.at)
		return SwarmBytes{
			FromPeers:  perSecond(s.FromPeers-from.FromPeers, took),
			FromOrigin: perSecond(s.FromOrigin-from.FromOrigin, took),
			ToOthers:   perSecond(s.ToOthers-from.ToOthers, took),
		}
	}
	return SwarmBytes{}
}
