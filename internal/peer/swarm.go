package peer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/swarm"
	"skimmer/internal/transfer"
)

// SwarmConfig says how a node exchanges blobs with others.
type SwarmConfig struct {
	// Listen is the TCP address other nodes are served on.
	Listen string
	// Advertise is the host:port, or host, others reach that at. Default: the
	// host a scheduler sees this node come from.
	Advertise string
	// Schedulers are the addresses of schedulers, host or host:port. A name may
	// have several addresses, each of which is one.
	Schedulers []string
	// Scheduler, where set, is one in this process.
	Scheduler *scheduler.Service
	// Seeds are addresses of seed peers, host or host:port, that are asked while
	// no scheduler can be reached.
	Seeds []string
	// Seed says that this node reads from origins for others.
	Seed bool
	// Slots is how many uploads are served at a time, PerRemote how many of one
	// other node; 0 are the defaults of transfer.ServerConfig.
	Slots, PerRemote int
	// UploadRate and DownloadRate limit the bytes per second; 0 is no limit.
	UploadRate, DownloadRate int64
	// TLS, where set, is required of every other node.
	TLS *transfer.TLSConfig
	// Hostname is what others are shown; default: that of the system.
	Hostname string
	// Location is where the node stands.
	Location schedule.Location
}

const (
	// seedPort is the port of a seed peer whose address names none.
	seedPort = "4000"
	// lookAgain is how often names of schedulers and seeds are resolved.
	lookAgain = 30 * time.Second
	// handOverLimit is how long uploads may take that are under way when the
	// node stops.
	handOverLimit = 10 * time.Second
	// resolveLimit is how long a starting node waits for names to be
	// resolved before it serves without.
	resolveLimit = 5 * time.Second
)

// session is a membership at a scheduler.
type session interface {
	swarm.Session
	Close()
}

// member is the node as others see it.
type member struct {
	// Constant after newMember.
	p      *Peer
	cfg    SwarmConfig
	id     schedule.PeerID
	ln     net.Listener
	tls    *transfer.TLS // nil without
	client *transfer.Client
	server *transfer.Server
	swarm  *swarm.Swarm

	rates      rates
	unresolved atomic.Pointer[error] // why names of schedulers stand for no address

	mu       sync.Mutex
	sessions map[string]session // by address; guarded by mu
	links    map[string]*swarm.Link
}

// openSwarm makes the node a member of a swarm, which it joins in Run.
func (p *Peer) openSwarm() (err error) {
	cfg := p.cfg.Swarm
	if cfg == nil {
		return nil
	}
	m := &member{p: p, cfg: *cfg, sessions: map[string]session{}, links: map[string]*swarm.Link{}}
	if m.cfg.Hostname == "" {
		if m.cfg.Hostname, err = os.Hostname(); err != nil {
			return fmt.Errorf("find the name of this machine: %w", err)
		}
	}
	if m.id, err = peerID(p.cfg.DataDir, m.cfg.Hostname); err != nil {
		return err
	}
	if cfg.TLS != nil {
		if m.tls, err = transfer.NewTLS(*cfg.TLS, p.log); err != nil {
			return err
		}
	}
	if m.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return fmt.Errorf("serve other nodes: %w: set upload.server to another address, or stop what listens there", err)
	}
	m.client = transfer.NewClient(transfer.ClientConfig{Rate: limiter(cfg.DownloadRate), TLS: m.tls})
	m.swarm = swarm.New(swarm.Config{
		Store: p.store, Origin: blob.Meter(p.files(), &p.FromOrigin), Client: m.client, Seed: cfg.Seed,
		Self: addressesOf(m.ln), Dir: filepath.Join(p.cfg.DataDir, "sums"), Logger: p.log,
	})
	p.member = m
	p.swarm.Store(m.swarm)
	m.server, err = transfer.NewServer(transfer.ServerConfig{
		Source: m.swarm.Uploads(), Slots: cfg.Slots, PerRemote: cfg.PerRemote,
		Rate: limiter(cfg.UploadRate), TLS: m.tls, Logger: p.log,
	})
	return err
}

// lost passes on that the store gave something up.
func (p *Peer) lost(d digest.Digest) {
	if s := p.swarm.Load(); s != nil {
		s.Lost(d)
	}
}

func limiter(rate int64) *transfer.Limiter {
	if rate <= 0 {
		return nil
	}
	return transfer.NewLimiter(rate)
}

// addressesOf returns how this machine calls a listener of its own.
func addressesOf(ln net.Listener) (all []string) {
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return nil
	}
	hosts := []string{"localhost"}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	addrs, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				hosts = append(hosts, n.IP.String())
			}
		}
	}
	for _, h := range hosts {
		all = append(all, net.JoinHostPort(h, port))
	}
	return all
}

// peerID returns what the node is called in its swarm, the same as long as its
// data directory lives.
func peerID(dir, host string) (schedule.PeerID, error) {
	path := filepath.Join(dir, "peer-id")
	if p, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(p))) > 0 {
		return schedule.PeerID(strings.TrimSpace(string(p))), nil
	}
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("make the node's id: %w", err)
	}
	id := host + "-" + hex.EncodeToString(random)
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the node's id: %w", err)
	}
	return schedule.PeerID(id), nil
}

// hello presents the node to a scheduler.
func (m *member) hello() remote.Hello {
	addr := m.ln.Addr().String()
	host, port, _ := net.SplitHostPort(addr) // it is one
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = ""
	}
	if a := m.cfg.Advertise; a != "" {
		if h, p, err := net.SplitHostPort(a); err == nil {
			host, port = h, p
		} else {
			host = a
		}
	}
	slots := m.cfg.Slots
	if slots <= 0 {
		slots = 64
	}
	return remote.Hello{
		ID: m.id, Hostname: m.cfg.Hostname, Addr: net.JoinHostPort(host, port), Location: m.cfg.Location,
		Seed: m.cfg.Seed, Slots: slots, Version: m.p.cfg.Version,
	}
}

// run serves other nodes until ctx ends, then hands over.
func (m *member) run(ctx context.Context) error {
	served := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { served <- m.server.Serve(m.ln) })
	if err := m.join(); err != nil {
		return errors.Join(err, m.close(ctx))
	}
	m.look(ctx)
	again, second := time.NewTicker(lookAgain), time.NewTicker(time.Second)
	defer again.Stop()
	defer second.Stop()
	for {
		select {
		case err := <-served:
			return errors.Join(err, errors.New("serve other nodes: stopped by itself"), m.close(ctx))
		case <-again.C:
			m.look(ctx)
		case now := <-second.C:
			m.rates.add(m.sample(now))
		case <-ctx.Done():
			return m.close(ctx)
		}
	}
}

// localName is what the scheduler in this process is called.
const localName = "local"

// join joins the scheduler of this process.
func (m *member) join() error {
	if m.cfg.Scheduler == nil {
		return nil
	}
	link := m.swarm.Attach(localName)
	s, err := m.cfg.Scheduler.Connect(m.hello(), link)
	if err != nil {
		return err
	}
	link.Bind(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[localName], m.links[localName] = s, link
	return nil
}

// look resolves names anew, joins schedulers that are new and leaves those that
// are gone.
func (m *member) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	if len(m.cfg.Seeds) > 0 {
		var seeds []string
		for _, a := range m.cfg.Seeds {
			if _, _, err := net.SplitHostPort(a); err != nil {
				a = net.JoinHostPort(strings.Trim(a, "[]"), seedPort)
			}
			seeds = append(seeds, a)
		}
		found, err := remote.Resolve(ctx, seeds)
		if err != nil {
			m.p.log.Warn("cannot resolve all seed peers", "error", err)
		}
		if len(found) > 0 || err == nil {
			m.swarm.SetSeeds(found)
		}
	}
	if len(m.cfg.Schedulers) == 0 {
		return
	}
	found, err := remote.Resolve(ctx, m.cfg.Schedulers)
	m.unresolved.Store(nil)
	if err != nil {
		m.unresolved.Store(&err)
		m.p.log.Warn("cannot resolve all schedulers", "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, addr := range found {
		if m.sessions[addr] == nil {
			if err := m.joinRemote(addr); err != nil {
				m.p.log.Warn("cannot join a scheduler", "scheduler", addr, "error", err)
			}
		}
	}
	for addr, s := range m.sessions {
		// A name that cannot be resolved now is no reason to leave.
		if err == nil && addr != localName && !slices.Contains(found, addr) {
			m.links[addr].Detach()
			s.Close()
			delete(m.sessions, addr)
			delete(m.links, addr)
		}
	}
}

// joinRemote joins a scheduler elsewhere. Caller holds m.mu.
func (m *member) joinRemote(addr string) error {
	link := m.swarm.Attach(addr)
	cfg := m.remote(addr)
	cfg.Hello, cfg.Handler, cfg.Logger = m.hello(), link, m.p.log
	s, err := remote.Dial(cfg)
	if err != nil {
		link.Detach()
		return err
	}
	link.Bind(s)
	m.sessions[addr], m.links[addr] = s, link
	return nil
}

// remote says how the scheduler at addr is connected to.
func (m *member) remote(addr string) remote.Config {
	cfg := remote.Config{Addr: addr}
	if m.tls != nil {
		cfg.TLS = m.tls.ClientConfig
	}
	return cfg
}

// close tells everybody that the node leaves, lets uploads end, and leaves.
// ctx may be over.
func (m *member) close(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		s.Send(schedule.PeerLeaving{ID: m.id})
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverLimit)
	defer cancel()
	err := m.server.Close(limited)
	if errors.Is(err, context.DeadlineExceeded) {
		m.p.log.Warn("cut off uploads that took too long", "limit", handOverLimit)
		err = nil
	}
	for _, s := range m.sessions {
		s.Close()
	}
	clear(m.sessions)
	return err
}

// free gives up what openSwarm took, after Run or without it.
func (m *member) free() error {
	var errs []error
	if m.server != nil {
		// context.Background: its end bounds nothing here, close does.
		errs = append(errs, m.close(context.Background()))
	}
	m.swarm.Close()
	m.client.Close()
	if err := m.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// SwarmStats returns the counters of the exchange with other nodes: what this
// one took, what it sent, and the requests it made.
func (p *Peer) SwarmStats() (swarm.Stats, transfer.ServerStats, transfer.ClientStats) {
	if p.member == nil {
		return swarm.Stats{}, transfer.ServerStats{}, transfer.ClientStats{}
	}
	return p.member.swarm.Stats(), p.member.server.Stats(), p.member.client.Stats()
}
