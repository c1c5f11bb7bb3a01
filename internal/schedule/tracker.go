package schedule

import (
	"cmp"
	"slices"
	"time"

	"skimmer/internal/blob"
)

// Tracker is the scheduler's state. It is for one caller at a time.
type Tracker struct {
	opt Options // constant after New

	now    time.Time
	seq    uint64 // of wants: who came first
	peers  map[PeerID]*peer
	blobs  map[string]*content
	pieces int      // that blobs have
	seeds  []string // the names of peers that are seeds and stay, in order

	standings   []standing // by peer.number
	freeNumbers []int32    // those of peers that have left

	// Those with the nearest deadline are in front: whoever makes progress goes
	// to the back.
	leases, transfers queue
	pauses            [kinds][]pause // by kind, because then the next to end is in front
	hungry            []*content     // those with wants in their queues, see content.hungryAt

	// What the current step has still to do, and its actions.
	dirty   []*want
	retries []*content
	wakes   []wake
	woken   int        // how many of wakes are done
	batch   []*want    // room for dirty
	idle    []*member  // maybe
	hoards  []*content // for which something is not leased although it could be
	useful  set        // what find looks for
	waiting []*want    // maybe
	out     []Action

	// What has ended and may begin anew; wants with the end of the step.
	freeTransfers spares[transfer]
	freeWants     spares[want]
	freeActs      spares[activity]
	ended         []*want
}

// New returns a Tracker that knows nobody.
func New(opt Options) *Tracker {
	return &Tracker{opt: opt.withDefaults(), peers: map[PeerID]*peer{}, blobs: map[string]*content{}}
}

// Step lets event happen at the time now, which never goes back, and returns
// what to tell whom. The result is the caller's.
func (t *Tracker) Step(event Event, now time.Time) []Action {
	t.now = now
	event.apply(t)
	t.settle()
	t.park()
	for i := 0; i < len(t.idle); i++ { // to tidy one may leave another idle
		t.tidy(t.idle[i])
	}
	for _, w := range t.ended {
		*w = want{}
		t.freeWants.give(w)
	}
	clear(t.ended)
	out := t.out
	t.idle, t.ended, t.out = t.idle[:0], t.ended[:0], nil
	return out
}

// peer is one that has joined.
type peer struct {
	slots, other int       // that it has, and that others take; see standing for ours
	busyUntil    time.Time // zero unless it said that it is busy; a Tick clears it
	leaving      bool
	number       int32 // in Tracker.standings, or -1 if it has left
	at           index[*content, *member]
	wants        index[uint64, *want]

	PeerJoined        // but for UploadSlots, see slots
	rack, zone string // what rings are named by, empty if unknown

	members []*member
	turn    int       // where among them wakeUp goes on
	aside   []*member // taken out of their rings until a slot is free
	pieces  int       // that the blobs of its members have
}

// mute reports whether p is no source at all. One that has slots, all of them
// taken, is waited for.
func (p *peer) mute() bool { return p.leaving || p.slots <= 0 }

// content is a blob.
type content struct {
	name    string
	shape   Shape
	n       int             // pieces
	maxRun  int             // pieces of the longest transfer
	bulkRun int             // pieces of the longest that nobody is blocked on; where they start, too
	hops    int             // over how many members pieces come that nobody is blocked on
	extent  int             // pieces that one seed reads
	grain   int             // pieces of a block, a multiple of bulkRun
	order   []*member       // the members, in an order that events alone determine
	dropped map[PeerID]bool // who sent corrupt bytes
	accused []accusation    // of doing so
	all     set             // every piece; what full members have, never changed

	// What is on offer by members that are not muted: full says how many have
	// everything, avail how many of the others have a piece or are being sent
	// it.
	full  int
	avail supply

	sums     []PieceSum // nil as long as none is known; a set one is never written again: actions share them
	summed   bitmap
	bySeed   bitmap // whose sums came from seeds
	silent   bitmap // some member had them before their sums were known
	leased   bitmap
	reserved []*reservation

	// What members in rings of the spare hold or read from the origin, if not
	// everything; how many of those have everything; and what those need who
	// wait and whom nobody is blocked on, or who are late, and what those needed
	// who waited.
	offered tally
	fulls   int
	wanted  tally

	recent recents
	turn   uint32   // of the last that was remembered
	lately []lately // per block; nil as long as nobody has got anything

	// What seeds read for others, nobody being blocked, and nobody else has or is
	// being sent; how many transfers seeds serve of it; and whether somebody was
	// leased nothing because of that.
	hoard    bitmap
	feeding  int
	hoarding bool

	bulk     int                // leases for which nobody is blocked
	avoiders int                // how many avoidances its members have
	rings    map[ringName]*ring // of racks and zones
	wide     [3][4]ring         // of anywhere and what follows, see content.ring
	freeActs *spares[activity]  // the tracker's
	queue    [3]line            // wants that wait, by want.line
	late     int                // how many wants of the last line are demands
	hungryAt int                // index in Tracker.hungry, or -1
	retrying bool               // in Tracker.retries
}

// reservation says who is to be leased pieces next.
type reservation struct {
	peer   *peer
	pieces set
}

// member is a peer that has to do with a blob. What is asked of very many, one
// after the other, comes first: each is a line of memory that is far away.
type member struct {
	peer          *peer
	act           *activity // nil while nothing goes on
	have          *set      // &own, or &c.all if everything
	muted         bool      // not a source: dropped, about to leave, or without slots
	gone          bool      // it has been forgotten
	suspect       bool      // somebody says that it sent corrupt bytes
	seed          bool      // peer.Seed
	listed, aside bool
	asFull        bool  // it is listed as one that has everything,
	asSpare       bool  // as one that may serve more that nobody is blocked on
	bulkOut       int32 // how many transfers it serves that nobody is blocked on
	number        int32 // peer.number
	own           set
	holds         mask // where it has pieces

	c           *content
	index, rank int      // in peer.members and c.order
	start       int      // where it begins with what nobody is blocked on
	pos         [3]int32 // in the rings of ringAt
	shown       mask     // what content.offered counts of it
	marked      mask     // what its rings have of it: at least where it offers something
}

// activity is what goes on at a member.
type activity struct {
	receiving set // what it is being sent or reads from the origin
	leased    set // what it reads from the origin
	near      set // what of receiving comes over less than maxHops others
	in        []inbound
	out       []*transfer
	wants     []*want
	avoid     []avoidance
	noOrigin  time.Time  // zero unless the origin failed it; a Tick clears it
	warm      [4]*member // who sent it something last that nobody was blocked on; they may be gone
	turn      int        // how many there were in warm

	// Where the lists begin: what is looked at together lies together.
	firstIn    [4]inbound
	firstOut   [4]*transfer
	firstWants [2]*want
}

// avoidance says that a member takes nothing from a peer for a while, or never
// again.
type avoidance struct {
	peer  *peer
	until time.Time // zero if never again, see Tracker.distrust
}

// transfer is pieces on their way to a member, from another or the origin.
type transfer struct {
	to, from    *member // from is nil if this is a lease
	second      PeerID  // who was offered as second source, or empty
	want        *want   // nil if this is a lease for the sake of others
	pieces      set
	hops        int32 // how many that were being sent pieces themselves they came over at first
	inAt, outAt int32 // in to.act.in and from.act.out
	place       int32 // in Tracker.leases or Tracker.transfers
	bulk        bool  // nobody is blocked on it: content.bulk or from.bulkOut counts it
	deadline    time.Time
}

// inbound is a transfer to a member, and among which pieces its are.
type inbound struct {
	*transfer
	in span
}

// want is what a member wants.
type want struct {
	id       uint64
	seq      uint64
	m        *member
	prio     blob.Priority
	origin   string
	pieces   set    // what is wanted and not there yet
	need     set    // what of it is not being sent either
	window   set    // what else would be nice now
	mask     mask   // where need has pieces
	active   int    // transfers under way
	parts    []Part // granted in this step and not told yet
	why      Why    // what the peer was last told, or empty
	late     bool   // its peer forgot what it was granted, and has got nothing since
	queued   bool
	pos      int  // where in its line
	line     int  // in which line it waits or waited
	shown    mask // what content.wanted counts of it
	dirty    bool
	search   bool // a source may be there that was not when it was looked at last
	finished bool
}

// bulk reports whether nobody is blocked on w.
func (w *want) bulk() bool { return w.prio != blob.Demand }

// width returns how many transfers w may have under way.
func (t *Tracker) width(w *want) int {
	if w.bulk() {
		return t.opt.BulkWidth
	}
	return t.opt.Width
}

// place returns the line in which w is to wait. Who is late is last, so that
// peers that do nothing keep nobody else from doing something.
func (w *want) place() int {
	if w.late {
		return int(blob.Background)
	}
	return int(w.prio)
}

// wake is a reason to look at wants that wait: a member has new pieces, or a
// peer has a free slot.
type wake struct {
	m      *member
	in     span // among which m's new pieces are
	calm   bool // only those that nobody is blocked on
	urgent bool // only those that somebody is blocked on
	relist bool // m may serve more, and is to be listed so unless it is taken at once
	p      *peer
}

// settle grants what became possible, until nothing is left to do. Those who
// wait already come first: a peer that has just been served comes back for
// more at once and would have all slots. It ends because each grant leaves
// less to want.
func (t *Tracker) settle() {
	for {
		switch {
		case t.woken < len(t.wakes):
			w := t.wakes[t.woken]
			t.woken++
			t.wakeUp(w)
		case len(t.retries) > 0:
			c := t.retries[0]
			t.retries = t.retries[1:]
			c.retrying = false
			t.retryAll(c)
		case len(t.dirty) > 0:
			batch := t.dirty
			t.dirty = t.batch[:0]
			slices.SortFunc(batch, func(a, b *want) int {
				return cmp.Or(cmp.Compare(a.place(), b.place()), cmp.Compare(a.seq, b.seq))
			})
			for _, w := range batch {
				w.dirty = false
				t.serve(w, w.search)
				w.search = false
			}
			clear(batch)
			t.batch = batch[:0]
		case !t.spent():
			clear(t.wakes)
			t.wakes, t.woken = t.wakes[:0], 0
			return
		}
	}
}

// touch has w looked at again in this step, and a source looked for.
func (t *Tracker) touch(w *want) {
	w.search = true
	t.settleFor(w)
}

// settleFor has it concluded in this step how w stands now. One that waits has
// no source, and gets none by needing less or by having less under way.
func (t *Tracker) settleFor(w *want) {
	if !w.dirty && !w.finished {
		w.dirty = true
		t.dirty = append(t.dirty, w)
	}
}

// retry has the waiting wants of c looked at again in this step, because
// something may be leased now that could not be.
func (t *Tracker) retry(c *content) {
	if c.hungryAt >= 0 && !c.retrying {
		c.retrying = true
		t.retries = append(t.retries, c)
	}
}

// retryAll leases to waiting wants what can be leased.
func (t *Tracker) retryAll(c *content) {
	for line := range c.queue {
		t.each(c, line, mask{}, func(w *want) bool {
			if c.avoiders == 0 && c.leasable(0) == c.n {
				return false
			}
			if w.bulk() && !t.mayLeaseBulk(c) {
				return c.late > 0 // those are no bulk
			}
			for w.active < t.width(w) && t.lease(w, &w.need) {
			}
			t.conclude(w)
			return true
		})
	}
}

// wakeUp lets those be served who wait for what a member or peer has.
func (t *Tracker) wakeUp(w wake) {
	if w.m != nil {
		for line := range w.m.c.queue {
			hasty := line == int(blob.Demand) || line == int(blob.Background) && w.m.c.late > 0
			if hasty && !w.calm || !w.urgent && line != int(blob.Demand) {
				t.offer(w.m, line, w.in)
			}
		}
		if w.relist && !w.m.gone {
			t.list(w.m)
		}
		return
	}
	p := w.p
	if t.free(p) <= 0 {
		return
	}
	for _, m := range p.aside {
		m.aside = false
		t.list(m)
	}
	p.aside = p.aside[:0]
	if p.Seed {
		for _, c := range t.hungry {
			t.retry(c)
		}
	}
	members := p.members
	if len(t.hungry) < len(members) {
		members = nil
		for _, c := range t.hungry {
			if m := c.of(p); m != nil {
				members = append(members, m)
			}
		}
	}
	for line := range int(blob.Background) {
		for _, m := range members {
			t.offer(m, line, m.c.everything())
		}
	}
	// Who lets what it is granted expire comes back without end: not always to the
	// same blob first.
	turn, free := p.turn, t.free(p)
	for i := range members {
		m := members[(turn+i)%len(members)]
		t.offer(m, int(blob.Background), m.c.everything())
		if t.free(p) < free {
			free, p.turn = t.free(p), (turn+i+1)%len(members)
		}
	}
}

// wakePeer has those served who wait for a slot of p.
func (t *Tracker) wakePeer(p *peer) {
	t.wakes = append(t.wakes, wake{p: p})
}

// wakeMember has those served who wait for pieces that m offers now and did
// not until now. They are among those in in.
func (t *Tracker) wakeMember(m *member, in span, urgent bool) {
	if m.c.hungryAt >= 0 && (!urgent || m.c.queue[blob.Demand].live+m.c.late > 0) {
		t.wakes = append(t.wakes, wake{m: m, in: in, urgent: urgent})
	}
}

// everything returns the span of all pieces.
func (c *content) everything() span { return span{0, int32(c.n)} }
