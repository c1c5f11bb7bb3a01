package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/store"
	"skimmer/internal/swarm"
	"skimmer/internal/testkit"
)

// runScheduler serves peers until the test ends, or stop is called.
func runScheduler(t *testing.T) (s *scheduler.Service, addr string, stop func()) {
	t.Helper()
	s = scheduler.New(scheduler.Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Close(ctx)
	}
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, ln.Addr().String(), stop
}

// nobody returns an address at which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))
}

// swarmWorld is a seed with a scheduler in its process, and a node elsewhere
// that knows that scheduler and a dead one.
type swarmWorld struct {
	addr, dead string // of the schedulers
	stop       func() // ends the scheduler
	p          *Peer
	node, seed *Client
}

func newSwarmWorld(t *testing.T) *swarmWorld {
	svc, addr, stop := runScheduler(t)
	w := &swarmWorld{addr: addr, dead: nobody(t), stop: stop}
	_, w.seed = start(t, func(c *Config) {
		c.Swarm = &SwarmConfig{Listen: "127.0.0.1:0", Scheduler: svc, Seed: true, Hostname: "seed-host"}
		c.Version = "1.2.3"
	})
	w.p, w.node = start(t, func(c *Config) {
		c.Swarm = &SwarmConfig{
			Listen: ":0", Schedulers: []string{w.addr, w.dead}, Hostname: "node-host", Slots: 7,
			Location: schedule.Location{Zone: "z", Rack: "r"},
		}
	})
	return w
}

// peers returns whom c sees, once there are two: the node and the seed.
func (w *swarmWorld) peers(t *testing.T, c *Client) (all SwarmPeers, node, seed SwarmPeer) {
	t.Helper()
	testkit.Eventually(t, time.Minute, "both have joined", func() (err error) {
		if all, err = c.SwarmPeers(t.Context()); err == nil && len(all.Peers) != 2 {
			err = fmt.Errorf("peers are %+v", all)
		}
		return err
	})
	node, seed = all.Peers[0], all.Peers[1]
	if node.Seed {
		node, seed = seed, node
	}
	return all, node, seed
}

func TestSwarmPeers(t *testing.T) {
	w := newSwarmWorld(t)
	for who, c := range map[string]*Client{"the seed": w.seed, "the node": w.node} {
		got, node, seed := w.peers(t, c)
		if node.Hostname != "node-host" || node.Zone != "z" || node.Rack != "r" || node.Slots != 7 || node.Uploads != 0 || node.Since.IsZero() ||
			!strings.HasPrefix(node.Addr, "127.0.0.1:") || node.ID != w.p.member.id {
			t.Errorf("%s: the node is %+v", who, node)
		}
		if seed.Hostname != "seed-host" || !seed.Seed || seed.Slots != 64 || seed.Version != "1.2.3" || seed.Zone != "" {
			t.Errorf("%s: the seed is %+v", who, seed)
		}
		if c == w.seed {
			if got.Self != string(seed.ID) || !slices.Equal(got.Schedulers, []Asked{{Scheduler: localName}}) {
				t.Errorf("%s: self and schedulers are %+v", who, got)
			}
			continue
		}
		if got.Self != string(node.ID) || len(got.Schedulers) != 2 {
			t.Fatalf("self and schedulers are %+v", got)
		}
		for _, s := range got.Schedulers {
			if (s.Scheduler == w.dead) != strings.Contains(s.Error, "refused") || (s.Scheduler == w.addr) != (s.Error == "") {
				t.Errorf("scheduler %+v", s)
			}
		}
	}
	w.stop()
	var got SwarmPeers
	testkit.Eventually(t, time.Minute, "no scheduler answers", func() (err error) {
		if got, err = w.node.SwarmPeers(t.Context()); err == nil && (len(got.Peers) != 0 || len(got.Schedulers) != 2) {
			err = fmt.Errorf("peers are %+v", got)
		}
		return err
	})
	for _, s := range got.Schedulers {
		if s.Error == "" {
			t.Errorf("scheduler %s, which is dead, is said to have answered", s.Scheduler)
		}
	}
}

func TestSwarmStatus(t *testing.T) {
	w := newSwarmWorld(t)
	w.peers(t, w.node)
	content := blobtest.Bytes(1, 3<<20)
	srv := newWebServer(t, content, `"v1"`)
	f, err := w.node.OpenFile(t.Context(), FileName{URL: srv.URL + "/dir/file"}, Part{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := io.Copy(io.Discard, f); n != int64(len(content)) || err != nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	st, err := w.node.Status(t.Context())
	if err != nil || st.Swarm == nil {
		t.Fatalf("status is %+v, %v", st, err)
	}
	s := st.Swarm
	if s.Bytes.FromPeers+s.Bytes.FromOrigin < int64(len(content)) || s.ID != string(w.p.member.id) || s.Seed || s.Slots != 7 || s.Zone != "z" || s.Rack != "r" ||
		!strings.HasPrefix(s.Address, "127.0.0.1:") || len(s.Schedulers) != 2 || s.Corrupt != 0 {
		t.Errorf("status of the node is %+v", s)
	}
	for _, l := range s.Schedulers {
		if l.Up != (l.Scheduler == w.addr) {
			t.Errorf("scheduler %+v", l)
		}
	}
	var seed Status
	// What is sent is counted a moment after it may have arrived.
	testkit.Eventually(t, time.Minute, "the seed has counted what it sent", func() error {
		if seed, err = w.seed.Status(t.Context()); err == nil && (seed.Swarm == nil || seed.Swarm.Bytes.ToOthers < s.Bytes.FromPeers) {
			err = fmt.Errorf("status of the seed is %+v; the node got %d bytes of it", seed.Swarm, s.Bytes.FromPeers)
		}
		return err
	})
	if !seed.Swarm.Seed || !slices.Equal(seed.Swarm.Schedulers, []swarm.LinkStatus{{Scheduler: localName, Up: true}}) {
		t.Errorf("status of the seed is %+v", seed.Swarm)
	}
	w.blobs(t, f.Digest)
}

// blobs asks about a blob that the node has, until no scheduler is up.
func (w *swarmWorld) blobs(t *testing.T, d digest.Digest) {
	t.Helper()
	for _, ask := range []digest.Digest{d, ""} {
		testkit.Eventually(t, time.Minute, "the scheduler knows who has the blob", func() error {
			got, err := w.node.SwarmBlobs(t.Context(), ask)
			if b := got.Blobs[d]; err == nil && (b.Complete+b.Partial < 1 || b.Leased != 0 || b.Receiving != 0 || b.Wants != 0 || b.PieceSize != 16<<10 ||
				b.Scheduler != w.addr || !slices.Equal(got.Schedulers, []Asked{{Scheduler: w.addr}})) {
				err = fmt.Errorf("blobs are %+v", got)
			}
			return err
		})
	}
	if got, err := w.seed.SwarmBlobs(t.Context(), d); err != nil || got.Blobs[d].Scheduler != localName {
		t.Errorf("the seed says %+v, %v", got, err)
	}
	if _, err := w.node.SwarmBlobs(t.Context(), "nonsense"); !errors.Is(err, blob.Invalid) {
		t.Errorf("blob nonsense: %v", err)
	}
	w.stop()
	testkit.Eventually(t, time.Minute, "no scheduler is up", func() error {
		if _, err := w.node.SwarmBlobs(t.Context(), d); !errors.Is(err, blob.Unavailable) {
			return fmt.Errorf("blobs: %w", err)
		}
		return nil
	})
	if st, err := w.node.Status(t.Context()); err != nil || st.Swarm.Schedulers[0].Up || st.Swarm.Schedulers[1].Up {
		t.Errorf("without schedulers: %+v, %v", st.Swarm, err)
	}
}

func TestWithoutSwarm(t *testing.T) {
	_, c := start(t, nil)
	if _, err := c.SwarmPeers(t.Context()); !errors.Is(err, blob.NotFound) || !strings.Contains(err.Error(), "scheduler.addresses") {
		t.Errorf("peers: %v", err)
	}
	if _, err := c.SwarmBlobs(t.Context(), ""); !errors.Is(err, blob.NotFound) {
		t.Errorf("blobs: %v", err)
	}
	if st, err := c.Status(t.Context()); err != nil || st.Swarm != nil {
		t.Errorf("status %+v, %v", st.Swarm, err)
	}
}

// A scheduler whose name means nothing is not the same as none.
func TestSchedulerThatIsNotFound(t *testing.T) {
	const name = "127.0.0.1:nonsense"
	_, c := start(t, func(c *Config) { c.Swarm = &SwarmConfig{Listen: "127.0.0.1:0", Schedulers: []string{name}} })
	testkit.Eventually(t, time.Minute, "the name is looked up", func() error {
		got, err := c.SwarmPeers(t.Context())
		if err == nil && (len(got.Schedulers) != 1 || got.Schedulers[0].Scheduler != name || !strings.Contains(got.Schedulers[0].Error, "port")) {
			err = fmt.Errorf("schedulers are %+v", got.Schedulers)
		}
		return err
	})
	if st, err := c.Status(t.Context()); err != nil || !strings.Contains(st.Swarm.Unresolved, name) || st.Swarm.Schedulers == nil {
		t.Errorf("status %+v, %v", st.Swarm, err)
	}
}

func TestMergePeers(t *testing.T) {
	at := time.Unix(1000, 0)
	a := remote.PeerReport{ID: "a", Uploads: 3, Slots: 4, Blobs: 5, Since: at}
	again := a
	again.Uploads, again.Blobs, again.Since = 2, 7, at.Add(-time.Second)
	got := mergePeers([]remote.PeerReport{{ID: "b", Location: schedule.Location{Zone: "z"}}, a, again})
	if len(got) != 2 || got[1].ID != "b" || got[1].Zone != "z" {
		t.Fatalf("merged %+v", got)
	}
	if g := got[0]; g.Uploads != 3 || g.Slots != 4 || g.Blobs != 12 || !g.Since.Equal(at.Add(-time.Second)) {
		t.Errorf("merged %+v", g)
	}
	text, err := json.Marshal(got[1])
	if want := `{"id":"b","hostname":"","address":"","seed":false,"uploads":0,"slots":0,"blobs":0,"version":"","since":"0001-01-01T00:00:00Z","zone":"z"}`; err != nil || string(text) != want {
		t.Errorf("written as %s, %v, want %s", text, err, want)
	}
}

func TestRates(t *testing.T) {
	var r rates
	at := func(second int64, n int64) sample {
		return sample{time.Unix(second, 0), SwarmBytes{FromPeers: n, FromOrigin: 2 * n, ToOthers: 3 * n}}
	}
	if got := r.until(at(9, 9)); got != (SwarmBytes{}) {
		t.Errorf("without samples: %+v", got)
	}
	r.add(at(10, 0))
	if got := r.until(at(10, 0)); got != (SwarmBytes{}) {
		t.Errorf("in no time: %+v", got)
	}
	r.add(at(11, 100))
	if got := r.until(at(12, 200)); got != (SwarmBytes{100, 200, 300}) {
		t.Errorf("over two seconds: %+v", got)
	}
	for s := int64(12); s < 20; s++ { // nothing happens for so long that the beginning is forgotten
		r.add(at(s, 200))
	}
	if got := r.until(at(20, 200)); got != (SwarmBytes{}) {
		t.Errorf("after a pause: %+v", got)
	}
}

func TestGrowing(t *testing.T) {
	before := []store.Info{{Digest: "a", Present: 1}, {Digest: "b", Present: 2}, {Digest: "gone", Present: 3}}
	after := []store.Info{{Digest: "a", Present: 1}, {Digest: "b", Size: 9, Present: 4, URL: "u"}, {Digest: "new", Size: 5, Present: 5, Repository: "r"}}
	got := growing(before, after, 500*time.Millisecond)
	want := []FetchStatus{{Digest: "b", Size: 9, Present: 4, Rate: 4, URL: "u"}, {Digest: "new", Size: 5, Present: 5, Rate: 10, Repository: "r"}}
	if !slices.Equal(got, want) {
		t.Errorf("growing are %+v, want %+v", got, want)
	}
}

func TestReachedAt(t *testing.T) {
	local, far := []swarm.LinkStatus{{Scheduler: localName}}, []swarm.LinkStatus{{Scheduler: "127.0.0.1:9"}}
	for _, c := range []struct {
		addr       string
		schedulers []swarm.LinkStatus
		want       string
	}{
		{"host.test:1", far, "host.test:1"},
		{":1", local, "127.0.0.1:1"},
		{":1", far, "127.0.0.1:1"},
		{":1", nil, ":1"},
	} {
		if got := reachedAt(t.Context(), c.addr, c.schedulers); got != c.want {
			t.Errorf("%q with %v: %q, want %q", c.addr, c.schedulers, got, c.want)
		}
	}
}
