package transfer

import (
	"net/netip"
	"sync"
)

// quota bounds how much of something each remote has at a time.
type quota struct {
	limit int // constant; at most 0 for no limit

	// mu guards what follows.
	mu   sync.Mutex
	used map[netip.Addr]int // never 0
	all  int
}

// take counts one more for a, and reports whether that is within its share.
// Either way it is to be given back.
func (q *quota) take(a netip.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used == nil {
		q.used = make(map[netip.Addr]int)
	}
	q.used[a]++
	q.all++
	return q.limit <= 0 || q.used[a] <= q.limit
}

// give takes one back.
func (q *quota) give(a netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used[a]--; q.used[a] <= 0 {
		delete(q.used, a)
	}
	q.all--
}

// total returns how many all remotes have.
func (q *quota) total() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}

// remoteOf returns the host of an address as net/http gives it. Those that
// have none share the zero one.
func remoteOf(addr string) netip.Addr {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}
