package mirror

import (
	"context"
	"sync"
	"time"

	"skimmer/internal/blob"
)

const (
	// lingers is how long a blob stays open that nobody reads: who reads parts
	// comes again at once, and opening costs as much as a part.
	lingers = 2 * time.Second
	// maxOpens is how many blobs stay open so.
	maxOpens = 256
)

// opening is what opens are shared by. What a blob is opened with, the client's
// credentials too, counts for its reads.
type opening struct {
	ref blob.Ref
	who hash
}

// opens keeps blobs open for a moment. Its methods are safe for concurrent use.
type opens struct {
	source blob.Source // constant

	mu     sync.Mutex // guards the rest, and what it leads to
	held   map[opening]*open
	closed bool
}

// open is an open blob.
type open struct {
	blob.Blob
	key   opening
	users int
	uses  int         // so far
	alone bool        // not in held: closed by its last user
	idle  *time.Timer // set when the first use ends; runs while there are no users
}

func newOpens(source blob.Source) *opens {
	return &opens{source: source, held: make(map[opening]*open)}
}

// get opens a blob. The caller puts it back.
func (o *opens) get(ctx context.Context, key opening) (*open, error) {
	o.mu.Lock()
	if b, ok := o.held[key]; ok {
		defer o.mu.Unlock()
		b.users++
		b.uses++
		if b.idle != nil {
			b.idle.Stop() // or it comes late, and finds that there was another use
		}
		return b, nil
	}
	o.mu.Unlock()
	opened, err := o.source.Open(ctx, key.ref)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	b := &open{Blob: opened, key: key, users: 1, uses: 1}
	_, taken := o.held[key] // by one who opened it at the same time
	if b.alone = taken || o.closed || len(o.held) >= maxOpens; !b.alone {
		o.held[key] = b
	}
	return b, nil
}

// put ends a use of a blob. One that failed is not used again.
func (o *opens) put(b *open, failed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b.users--
	if failed && !b.alone {
		o.drop(b)
	}
	switch {
	case b.users > 0:
	case b.alone:
		_ = b.Close() // nothing was written through it
	default:
		uses := b.uses
		b.idle = time.AfterFunc(lingers, func() { o.expire(b, uses) })
	}
}

// drop takes a blob out of those that stay open. Caller holds mu.
func (o *opens) drop(b *open) {
	delete(o.held, b.key)
	b.alone = true
}

// expire closes a blob that nobody has used again.
func (o *opens) expire(b *open, uses int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if b.uses == uses && !b.alone {
		o.drop(b)
		_ = b.Close() // nothing was written through it
	}
}

// close closes what nobody reads; who reads goes on.
func (o *opens) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, b := range o.held {
		o.drop(b)
		if b.users == 0 {
			b.idle.Stop()
			_ = b.Close() // nothing was written through it
		}
	}
}
