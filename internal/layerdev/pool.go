package layerdev

import (
	"container/list"
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
)

const (
	// bufferedLimit bounds compressed data that was read and waits for a
	// processor, in bytes. What does not fit is inflated as it arrives.
	bufferedLimit = 64 << 20
	// heldLimit bounds chunks kept in memory because the disk is full.
	heldLimit = 64 << 20
	// yieldLimit is how long one background run gives way to waiting readers.
	yieldLimit = 500 * time.Millisecond
)

// Pool is what the layers of one node share: processors to inflate on, memory
// to buffer in, and the knowledge that somebody waits. It is safe for
// concurrent use.
type Pool struct {
	// Atomics.
	buffered atomic.Int64 // bytes of compressed data in memory

	// mu guards the rest.
	mu      sync.Mutex
	free    int                // processors nobody inflates on
	queues  [2][]chan struct{} // who waits for one: demand, others
	readers int                // readers waiting for data
	quiet   chan struct{}      // closed when readers is 0
	held    map[heldKey]*list.Element
	order   *list.List // of heldChunk, oldest first
	bytes   int64      // in held
}

type heldKey struct {
	layer *Layer
	chunk int
}

type heldChunk struct {
	key  heldKey
	data []byte
}

// NewPool returns a pool that inflates on that many processors at once; 0
// means all that Go uses.
func NewPool(processors int) *Pool {
	if processors <= 0 {
		processors = runtime.GOMAXPROCS(0)
	}
	p := &Pool{
		free:  processors,
		quiet: make(chan struct{}),
		held:  make(map[heldKey]*list.Element),
		order: list.New(),
	}
	close(p.quiet)
	return p
}

// processPool is the pool of layers that were given none: processors belong
// to the process, not to a layer.
var processPool = sync.OnceValue(func() *Pool { return NewPool(0) })

// acquire waits for a processor. Holders keep it only while they compute.
func (p *Pool) acquire(prio blob.Priority) {
	p.mu.Lock()
	if p.free > 0 {
		p.free--
		p.mu.Unlock()
		return
	}
	q := &p.queues[min(prio, 1)]
	turn := make(chan struct{})
	*q = append(*q, turn)
	p.mu.Unlock()
	<-turn
}

// release gives a processor to whoever waits for it, demand first.
func (p *Pool) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.queues {
		if q := p.queues[i]; len(q) > 0 {
			p.queues[i] = q[1:]
			close(q[0])
			return
		}
	}
	p.free++
}

// reserve takes n bytes of the memory for compressed data, or reports that
// there is not so much left.
func (p *Pool) reserve(n int64) bool {
	if p.buffered.Add(n) > bufferedLimit {
		p.buffered.Add(-n)
		return false
	}
	return true
}

func (p *Pool) unreserve(n int64) { p.buffered.Add(-n) }

// enter says that a reader begins to wait, leave that it no longer does.
func (p *Pool) enter() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readers == 0 {
		p.quiet = make(chan struct{})
	}
	p.readers++
}

func (p *Pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers--
	if p.readers == 0 {
		close(p.quiet)
	}
}

// yield returns when nobody waits for data, but lets background work come to
// a standstill no longer than yieldLimit.
func (p *Pool) yield(ctx context.Context) {
	p.mu.Lock()
	quiet := p.quiet
	p.mu.Unlock()
	select {
	case <-quiet:
		return
	default:
	}
	timer := time.NewTimer(yieldLimit)
	defer timer.Stop()
	select {
	case <-quiet:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// hold keeps a chunk that has no place on the disk, for the other readers of
// it: the kernel asks for a chunk in several parts.
func (p *Pool) hold(l *Layer, chunk int, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := heldKey{l, chunk}
	if p.held[key] != nil {
		return
	}
	p.held[key] = p.order.PushBack(heldChunk{key, data})
	p.bytes += int64(len(data))
	for p.bytes > heldLimit && p.order.Len() > 1 {
		p.dropHeld(p.order.Front())
	}
}

// heldData returns a chunk that hold kept, or nil.
func (p *Pool) heldData(l *Layer, chunk int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.held[heldKey{l, chunk}]; e != nil {
		return e.Value.(heldChunk).data
	}
	return nil
}

// dropLayer forgets what is held for l.
func (p *Pool) dropLayer(l *Layer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.order.Front(); e != nil; {
		next := e.Next()
		if e.Value.(heldChunk).key.layer == l {
			p.dropHeld(e)
		}
		e = next
	}
}

// dropHeld forgets one chunk. p.mu is held.
func (p *Pool) dropHeld(e *list.Element) {
	c := p.order.Remove(e).(heldChunk)
	delete(p.held, c.key)
	p.bytes -= int64(len(c.data))
}
