package scheduler

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// holder is what of a certificate stays when it is renewed, which commonly
// changes its key. The zero value is that of who showed none: this process, or
// a client where the configuration asks for no certificates.
type holder struct {
	// key is the hash of the public key.
	key [sha256.Size]byte
	// names are those the certificate is for, and the root that vouches for it;
	// empty if it has none.
	names string
}

// is reports that both are the same node's. Certificates with the same names by
// the same root are, so nodes that share all their names are not kept apart.
func (h holder) is(other holder) bool {
	return h.key == other.key || h.names != "" && h.names == other.names
}

// holderOf returns whose certificate was shown on the connection of a call.
func holderOf(ctx context.Context) holder {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return holder{}
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return holder{}
	}
	chain := info.State.VerifiedChains[0]
	return newHolder(chain[0], chain[len(chain)-1])
}

// newHolder returns whose certificate leaf is, which root vouches for.
func newHolder(leaf, root *x509.Certificate) holder {
	h := holder{key: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}
	var names []string
	add := func(kind, name string) { names = append(names, kind+strconv.Quote(name)) }
	if leaf.Subject.CommonName != "" {
		add("cn:", leaf.Subject.CommonName)
	}
	for _, n := range leaf.DNSNames {
		add("dns:", strings.ToLower(n))
	}
	for _, n := range leaf.IPAddresses {
		add("ip:", n.String())
	}
	for _, n := range leaf.EmailAddresses {
		add("email:", n)
	}
	for _, n := range leaf.URIs {
		add("uri:", n.String())
	}
	if len(names) == 0 {
		return h
	}
	slices.Sort(names)
	by := sha256.Sum256(root.RawSubjectPublicKeyInfo)
	h.names = strings.Join(slices.Compact(names), " ") + byRoot + hex.EncodeToString(by[:])
	return h
}

// bondLife is how long an ID belongs to the certificate of a peer that is gone:
// longer than a node takes to restart.
const bondLife = 5 * time.Minute

// bonds are the IDs of peers that left of late, and whose they are. IDs of
// peers that are there belong to the holders of their links. A scheduler that
// has just begun knows none: the first to come is given an ID. The zero value
// has none and keeps none.
type bonds struct {
	most int
	of   map[schedule.PeerID]bond
	left []left // in order of time; some were replaced since
}

// bond is whose an ID is, until when.
type bond struct {
	holder holder
	until  time.Time
	told   bool // somebody else was refused, and that was said
}

type left struct {
	id    schedule.PeerID
	until time.Time
}

// keep notes that a peer is gone. With too many of them the oldest is forgotten.
func (b *bonds) keep(id schedule.PeerID, h holder, now time.Time) {
	if b.of == nil {
		b.of = make(map[schedule.PeerID]bond)
	}
	until := now.Add(bondLife)
	b.of[id] = bond{holder: h, until: until}
	b.left = append(b.left, left{id, until})
	for len(b.left) > 0 && (len(b.left) > b.most || now.After(b.left[0].until)) {
		first := b.left[0]
		b.left = b.left[1:]
		if b.of[first.id].until.Equal(first.until) {
			delete(b.of, first.id)
		}
	}
}

// identify refuses, as Forbidden, a peer whose ID belongs to another
// certificate: old is who has joined under it, if somebody has. It is for callers
// that hold mu.
func (s *Service) identify(id schedule.PeerID, old *link, remote string, who holder) error {
	if s.cfg.TLS == nil {
		return nil
	}
	told := false
	switch b, ok := s.bonds.of[id]; {
	case old != nil && old.holder.is(who):
		return nil
	case old != nil:
		told, old.foreign = old.foreign, true
	case !ok || time.Now().After(b.until) || b.holder.is(who):
		delete(s.bonds.of, id)
		return nil
	default:
		told, b.told = b.told, true
		s.bonds.of[id] = b
	}
	s.stats.ForeignIDs++
	if !told { // it will try again and again
		s.log.Warn("peer refused: its id belongs to another certificate", "peer", id, "remote", remote, "certificate", who.readable())
	}
	return blob.Errorf(blob.Forbidden, "join scheduler: the id %q belongs to another certificate", id)
}

// byRoot is between names and the root that vouches for them.
const byRoot = " by "

// readable returns the names, for a person.
func (h holder) readable() string {
	names, _, _ := strings.Cut(h.names, byRoot)
	return names
}
