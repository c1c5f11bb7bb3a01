package remote

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// maxQueue is how many bytes of events may wait for a scheduler to take them,
// maxBatch about how many are sent as one message.
const (
	maxQueue = 64 << 20
	maxBatch = 1 << 20
)

// queue is the events that wait to be sent on one stream. Its methods are safe
// for concurrent use.
type queue struct {
	// Constant after newQueue.
	fail context.CancelCauseFunc // ends the stream
	// ready has something in it when there is something to send.
	ready chan struct{}

	// mu guards what follows.
	mu     sync.Mutex
	events []*pb.Event
	sizes  []int
	size   int  // the sum of sizes
	ping   bool // an empty message is to be sent
}

func newQueue(fail context.CancelCauseFunc) *queue {
	return &queue{fail: fail, ready: make(chan struct{}, 1)}
}

// put queues an event. The error is Invalid for one that makes no sense.
func (q *queue) put(event schedule.Event) error {
	m, err := wire.EncodeEvent(event)
	if err != nil {
		return err
	}
	n := proto.Size(m)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size+n > maxQueue {
		q.fail(blob.Errorf(blob.Busy, "talk to scheduler: it does not take what it is sent, %d bytes wait", q.size))
		return nil
	}
	q.events, q.sizes, q.size = append(q.events, m), append(q.sizes, n), q.size+n
	q.wake()
	return nil
}

// ask has an empty message sent, which the scheduler answers.
func (q *queue) ask() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ping = true
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns the next message, or nil if there is none.
func (q *queue) take() *pb.ClientMessage {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.events) && (n == 0 || size+q.sizes[n] <= maxBatch) {
		size += q.sizes[n]
		n++
	}
	if n == 0 && !q.ping {
		return nil
	}
	m := &pb.ClientMessage{Events: q.events[:n:n]}
	q.events, q.sizes, q.size = q.events[n:], q.sizes[n:], q.size-size
	if n == 0 {
		q.ping = false
	}
	return m
}

// pump sends what is queued as soon as it is, until ctx ends or send fails.
// What comes while a message is being sent goes together into the next.
func (q *queue) pump(ctx context.Context, send func(*pb.ClientMessage) error) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-q.ready:
		}
		for m := q.take(); m != nil; m = q.take() {
			if err := send(m); err != nil {
				return err
			}
		}
	}
}
