package coldstart

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// burst is how far a sender may catch up after a timer that rang late, and
	// promptly how soon it has its next bytes if they were there meanwhile.
	burst, promptly = 5 * time.Millisecond, 200 * time.Microsecond
	// segment is what is sent at a time, in bytes: about one large TCP segment.
	segment = 16 << 10
)

// link is the path to a registry: a TCP proxy on a loopback port whose
// connections share a bandwidth and have a round trip, that of making the
// connection included. It does not lose packets, and it has no slow start.
type link struct {
	// Constant after newLink.
	ln     net.Listener
	target string
	path   Path
	stop   context.CancelFunc
	wg     sync.WaitGroup

	up, down lane
	wide     atomic.Bool // nothing is held up for now
}

// lane is one direction of a link.
type lane struct {
	bits int64 // constant

	mu   sync.Mutex
	free time.Time // mu guards: when all that was reserved has been sent
}

// reserve returns when n bytes will have been sent that are there since ready.
// An idle wire has no credit: what comes first takes its time, too.
func (l *lane) reserve(ready time.Time, n int) time.Time {
	if l.bits == 0 {
		return ready
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(ready) {
		l.free = ready
	}
	l.free = l.free.Add(time.Duration(int64(n) * 8 * int64(time.Second) / l.bits))
	return l.free
}

// newLink starts a link to the TCP address target, until close or until ctx
// ends.
func newLink(ctx context.Context, target string, path Path) (*link, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	l := &link{ln: ln, target: target, path: path, stop: stop}
	l.up.bits, l.down.bits = path.Bits, path.Bits
	l.wg.Go(func() { l.serve(ctx) })
	return l, nil
}

// host returns the address of the near end, host:port.
func (l *link) host() string { return l.ln.Addr().String() }

// close cuts all connections and waits until they are gone.
func (l *link) close() {
	l.stop()
	_ = l.ln.Close()
	l.wg.Wait()
}

func (l *link) serve(ctx context.Context) {
	for {
		conn, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.carry(ctx, conn.(*net.TCPConn)) })
	}
}

// carry connects one connection through to the far end.
func (l *link) carry(ctx context.Context, near *net.TCPConn) {
	accepted := time.Now()
	defer near.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.target)
	if err != nil {
		return
	}
	far := conn.(*net.TCPConn)
	defer far.Close()
	cut := func() { _ = near.Close(); _ = far.Close() }
	defer context.AfterFunc(ctx, cut)()
	var wg sync.WaitGroup
	defer wg.Wait()
	// The near end could write at once, where it would have waited for the far
	// end's answer to its SYN: what it sends arrives that much later.
	rtt := l.path.RTT
	if l.wide.Load() {
		rtt = 0
	}
	wg.Go(func() { l.send(ctx, &l.up, far, near, accepted.Add(rtt+rtt/2)) })
	l.send(ctx, &l.down, near, far, accepted)
}

// parcel is what is under way, with the time of its arrival.
type parcel struct {
	data []byte
	at   time.Time
}

// send moves what src says to dst until either has ended. Nothing arrives
// before earliest.
func (l *link) send(ctx context.Context, lane *lane, dst, src *net.TCPConn, earliest time.Time) {
	half := l.path.RTT / 2
	way := make(chan parcel, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		broken := false
		for p := range way {
			if broken || wait(ctx, time.Until(p.at)) != nil {
				continue
			}
			if _, err := dst.Write(p.data); err != nil {
				broken = true
				_ = src.CloseRead() // or its sender would not learn of it
			}
		}
		_ = dst.CloseWrite()
	})
	var sent time.Time // when what was read last has been
	for {
		buf := make([]byte, segment)
		begun := time.Now()
		n, err := src.Read(buf)
		if n > 0 {
			ready := time.Now()
			if ready.Sub(begun) < promptly && begun.Sub(sent) < burst {
				ready = sent // the timer rang late; the wire was not idle
			}
			sent = ready
			at := sent
			if !l.wide.Load() {
				sent = lane.reserve(ready, n)
				at = sent.Add(half)
			}
			if at.Before(earliest) {
				at = earliest
			}
			way <- parcel{buf[:n], at}
			// Who sends waits for the wire, not for the arrival.
			if werr := wait(ctx, time.Until(sent)); werr != nil {
				err = errors.Join(werr, err)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = dst.Close()
			}
			break
		}
	}
	close(way)
	wg.Wait()
}

// wait waits for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
