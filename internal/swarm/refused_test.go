package swarm

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

type user struct{}

// TestRefusedForOthers has two read the same at once, of whom the origin refuses the
// first: the other reads with its own credentials.
func TestRefusedForOthers(t *testing.T) {
	for name, c := range map[string]struct {
		scheduler bool
		source    func(n *node) blob.Source
		joined    func(n *node, ref blob.Ref) bool
	}{
		"in the store": {true, func(n *node) blob.Source { return n.swarm }, func(n *node, _ blob.Ref) bool { return n.store.Stats().Joins == 1 }},
		"beyond it":    {true, beyondStore, twoJobs},
		"alone":        {false, beyondStore, twoJobs},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			asked, both := make(chan struct{}), make(chan struct{})
			var once sync.Once
			w.origin.refuses = func(ctx context.Context) error {
				if ctx.Value(user{}) == "stranger" {
					once.Do(func() { close(asked) })
					<-both
					return blob.Errorf(blob.Forbidden, "not you")
				}
				return nil
			}
			n := w.node("node", options{})
			if c.scheduler {
				s := w.service("scheduler")
				s.start()
				s.join(n)
			}
			content := blobtest.Bytes(1, 100_000)
			ref := w.origin.add(content)
			read := func(who string) error {
				ctx := context.WithValue(w.ctx, user{}, who)
				b, err := c.source(n).Open(ctx, ref)
				if err != nil {
					return err
				}
				defer b.Close()
				p := make([]byte, len(content))
				if err := blob.ReadFull(ctx, b, p, 0); err != nil {
					return err
				}
				if !bytes.Equal(p, content) {
					return errors.New("wrong bytes")
				}
				return nil
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				if err := read("stranger"); !errors.Is(err, blob.Forbidden) {
					t.Errorf("who is refused: %v", err)
				}
			})
			<-asked
			begun := time.Now()
			wg.Go(func() {
				if err := read("friend"); err != nil {
					t.Errorf("who may read, after %v: %v", time.Since(begun), err)
				}
			})
			eventually(t, "the other waits for the same", func() bool { return c.joined(n, ref) })
			close(both)
		})
	}
}

func beyondStore(n *node) blob.Source { return beyond{n.swarm} }

func twoJobs(n *node, ref blob.Ref) bool {
	c := n.swarm.known(ref.Digest)
	if c == nil {
		return false
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.jobs) == 2
}

// TestFetchRefusedByScheduler has a scheduler that takes no more blobs from a node:
// who fetches another one hears of it, and who reads it reads the origin.
func TestFetchRefusedByScheduler(t *testing.T) {
	w := newWorld(t)
	w.blobs = 1
	_, nodes := w.cluster(1, options{})
	n := nodes[0]
	first := blobtest.Bytes(1, 100_000)
	n.mustRead(w.origin.add(first), first, blob.Range{Len: 100_000})
	second := blobtest.Bytes(2, 100_000)
	ref := w.origin.add(second)
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	if err := n.swarm.Fetch(ctx, ref); blob.KindOf(err) != blob.Unavailable || ctx.Err() != nil {
		t.Errorf("Fetch: %v, want that the scheduler refused", err)
	}
	n.mustRead(ref, second, blob.Range{Len: 100_000})
}
