package peer

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/remote"
)

// askLimit is how long a scheduler has for an answer.
const askLimit = 3 * time.Second

// SwarmPeer is a node as its schedulers know it.
type SwarmPeer struct {
	remote.PeerReport
	// Zone and Rack are where it stands; empty if it does not say.
	Zone string `json:"zone,omitempty"`
	Rack string `json:"rack,omitempty"`
}

// Asked says whether a scheduler answered.
type Asked struct {
	// Scheduler is its host:port; "local" is the one in the node's process.
	Scheduler string `json:"scheduler"`
	// Error is why it did not answer, empty if it did.
	Error string `json:"error,omitempty"`
}

// SwarmPeers are the members of a swarm.
type SwarmPeers struct {
	// Self is the ID of the node that was asked.
	Self string `json:"self"`
	// Peers are sorted by ID.
	Peers []SwarmPeer `json:"peers"`
	// Schedulers are those that were asked.
	Schedulers []Asked `json:"schedulers"`
}

// SwarmBlob is what a blob's scheduler knows of it.
type SwarmBlob struct {
	// Scheduler is whom the blob belongs to, as in Asked.
	Scheduler string `json:"scheduler"`
	// Complete is how many nodes have all of it, Partial how many have some,
	// Receiving how many are being sent some.
	Complete  int `json:"complete"`
	Partial   int `json:"partial"`
	Receiving int `json:"receiving"`
	// Leased is how many pieces, of PieceSize bytes, are being read from the
	// origin; Wants how many requests of nodes are not answered in full.
	Leased    int   `json:"leasedPieces"`
	Wants     int   `json:"wants"`
	PieceSize int64 `json:"pieceSize"`
}

// SwarmBlobs is what schedulers know of blobs.
type SwarmBlobs struct {
	// Blobs has those that are known.
	Blobs map[digest.Digest]SwarmBlob `json:"blobs"`
	// Schedulers are those that were asked: of each blob, the one it belongs to.
	Schedulers []Asked `json:"schedulers"`
}

// noSchedulers is the failure of who asks a node that has none.
func noSchedulers(doing string) error {
	return blob.Errorf(blob.NotFound, "%s: this node has no scheduler: set scheduler.addresses in its configuration, or run: skimmer up", doing)
}

// SwarmPeers asks all schedulers the node has joined for their members, each
// for at most 3 seconds. A scheduler that does not answer is said in the result.
// The error is NotFound for a node without schedulers.
func (p *Peer) SwarmPeers(ctx context.Context) (SwarmPeers, error) {
	m := p.member
	if m == nil || !m.hasSchedulers() {
		return SwarmPeers{}, noSchedulers("list peers")
	}
	out := SwarmPeers{Self: string(m.id), Peers: []SwarmPeer{}}
	names := map[string][]string{}
	for _, l := range m.swarm.Links() {
		names[l.Scheduler] = nil
	}
	var mu sync.Mutex
	var all []remote.PeerReport
	out.Schedulers = m.ask(ctx, names, func(ctx context.Context, name string, _ []string) error {
		some, err := m.peersOf(ctx, name)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, some...)
		return err
	})
	out.Schedulers = append(out.Schedulers, m.unknown()...)
	out.Peers = append(out.Peers, mergePeers(all)...)
	return out, nil
}

// SwarmBlobs asks the schedulers that blobs belong to what they know of them,
// each for at most 3 seconds. A scheduler that does not answer is said in the
// result. The error is NotFound for a node without schedulers, Unavailable
// where none is up.
func (p *Peer) SwarmBlobs(ctx context.Context, digests []digest.Digest) (SwarmBlobs, error) {
	const doing = "ask about blobs"
	m := p.member
	if m == nil || !m.hasSchedulers() {
		return SwarmBlobs{}, noSchedulers(doing)
	}
	var up []string
	for _, l := range m.swarm.Links() {
		if l.Up {
			up = append(up, l.Scheduler)
		}
	}
	if len(up) == 0 {
		return SwarmBlobs{}, blob.Errorf(blob.Unavailable, "%s: no scheduler is up", doing)
	}
	owned := map[string][]string{}
	for _, d := range digests {
		owner := schedule.Rank(d.String(), up)[0]
		owned[owner] = append(owned[owner], d.String())
	}
	out := SwarmBlobs{Blobs: map[digest.Digest]SwarmBlob{}}
	var mu sync.Mutex
	out.Schedulers = m.ask(ctx, owned, func(ctx context.Context, name string, blobs []string) error {
		some, err := m.blobsOf(ctx, name, blobs)
		mu.Lock()
		defer mu.Unlock()
		for _, b := range some {
			out.Blobs[digest.Digest(b.Blob)] = SwarmBlob{
				Scheduler: name, Complete: b.Complete, Partial: b.Partial, Receiving: b.Receiving,
				Leased: b.Leased, Wants: b.Wants, PieceSize: b.Shape.PieceSize,
			}
		}
		return err
	})
	return out, nil
}

// hasSchedulers reports whether the node is to have any.
func (m *member) hasSchedulers() bool { return m.cfg.Scheduler != nil || len(m.cfg.Schedulers) > 0 }

// ask calls f for each scheduler, at the same time, with what it is asked for.
func (m *member) ask(ctx context.Context, what map[string][]string, f func(ctx context.Context, name string, what []string) error) []Asked {
	out := []Asked{}
	for _, name := range slices.Sorted(maps.Keys(what)) {
		out = append(out, Asked{Scheduler: name})
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			name := out[i].Scheduler
			if err := f(ctx, name, what[name]); err != nil {
				out[i].Error = strings.TrimPrefix(inOneLine(err), "talk to scheduler "+name+": ")
			}
		})
	}
	wg.Wait()
	return out
}

// unknown returns the schedulers whose names stand for no address.
func (m *member) unknown() []Asked {
	err := m.unresolved.Load()
	if err == nil {
		return nil
	}
	return []Asked{{Scheduler: strings.Join(m.cfg.Schedulers, ", "), Error: inOneLine(*err)}}
}

// inOneLine returns what err says, where several have been joined too.
func inOneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (m *member) peersOf(ctx context.Context, name string) ([]remote.PeerReport, error) {
	if name == localName && m.cfg.Scheduler != nil {
		return m.cfg.Scheduler.Peers(), nil
	}
	return remote.Peers(ctx, m.remote(name))
}

func (m *member) blobsOf(ctx context.Context, name string, blobs []string) ([]remote.BlobReport, error) {
	if name == localName && m.cfg.Scheduler != nil {
		return m.cfg.Scheduler.Blobs(blobs), nil
	}
	return remote.Blobs(ctx, m.remote(name), blobs)
}

// mergePeers makes one of what several schedulers say of the same node: each
// has blobs of its own, and knows of all uploads by its own decisions or what
// the node tells it.
func mergePeers(all []remote.PeerReport) []SwarmPeer {
	slices.SortStableFunc(all, func(a, b remote.PeerReport) int { return cmp.Compare(a.ID, b.ID) })
	var out []SwarmPeer
	for _, r := range all {
		if n := len(out); n == 0 || out[n-1].ID != r.ID {
			out = append(out, SwarmPeer{r, r.Location.Zone, r.Location.Rack})
			continue
		}
		p := &out[len(out)-1]
		p.Blobs += r.Blobs
		p.Uploads, p.Slots = max(p.Uploads, r.Uploads), max(p.Slots, r.Slots)
		if r.Since.Before(p.Since) {
			p.Since = r.Since
		}
	}
	return out
}

// handleSwarm adds the routes about the swarm.
func (p *Peer) handleSwarm(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, r *http.Request) {
		s, err := p.SwarmPeers(r.Context())
		p.answer(w, s, err)
	})
	mux.HandleFunc("GET /v1/swarm/blobs", func(w http.ResponseWriter, r *http.Request) {
		list, err := p.store.List()
		var digests []digest.Digest
		for _, i := range list {
			digests = append(digests, i.Digest)
		}
		var s SwarmBlobs
		if err == nil {
			s, err = p.SwarmBlobs(r.Context(), digests)
		}
		p.answer(w, s, err)
	})
	mux.HandleFunc("GET /v1/swarm/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		d := digest.Digest(r.PathValue("digest"))
		if err := blob.CheckDigest(d); err != nil {
			p.answer(w, nil, blob.Errorf(blob.Invalid, "ask about blobs: %w", err))
			return
		}
		s, err := p.SwarmBlobs(r.Context(), []digest.Digest{d})
		p.answer(w, s, err)
	})
}

// SwarmPeers is Peer.SwarmPeers on the running peer.
func (c *Client) SwarmPeers(ctx context.Context) (SwarmPeers, error) {
	var s SwarmPeers
	err := c.call(ctx, http.MethodGet, "/v1/peers", nil, &s)
	return s, err
}

// SwarmBlobs is Peer.SwarmBlobs on the running peer, of one blob, or, for "",
// of all blobs that the peer has something of.
func (c *Client) SwarmBlobs(ctx context.Context, d digest.Digest) (SwarmBlobs, error) {
	path := "/v1/swarm/blobs"
	if d != "" {
		path += "/" + url.PathEscape(d.String())
	}
	var s SwarmBlobs
	err := c.call(ctx, http.MethodGet, path, nil, &s)
	return s, err
}
