package image

import (
	"context"
	"time"
)

// tendEvery is how often the library looks for something to complete or to
// give up when nobody tells it to.
const tendEvery = 20 * time.Second

// paceBurst is how many bytes of background completion may go at once under a
// limit.
const paceBurst = 1 << 20

// paceBackground returns what limits background completion; nil if nothing does.
func (l *Library) paceBackground() func(context.Context, int64) error {
	if l.pace == nil {
		return nil
	}
	return func(ctx context.Context, n int64) error {
		for ; n > 0; n -= paceBurst {
			if err := l.pace.WaitN(ctx, int(min(n, paceBurst))); err != nil {
				return err
			}
		}
		return nil
	}
}

// kickFill makes fill look for something to complete.
func (l *Library) kickFill() {
	select {
	case l.fillNow <- struct{}{}:
	default:
	}
}

// tend keeps the layer device held, and the data of layers within the water
// marks. Close ends it.
func (l *Library) tend() {
	again := time.NewTicker(tendEvery)
	defer again.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-again.C:
		}
		l.keepHeld()
		l.makeSpace()
	}
}

// fill completes the layers of pulled images, one after the other, whenever
// readers have settled. Close ends it.
func (l *Library) fill() {
	again := time.NewTicker(tendEvery)
	defer again.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.fillNow:
		case <-again.C:
		}
		if l.cfg.Background {
			l.fillAll()
		}
		l.switchStacks() // also where readers completed a layer
		if l.ctx.Err() != nil {
			return
		}
		if l.cfg.OnFilled != nil {
			l.cfg.OnFilled(l.missing())
		}
		l.makeSpace()
	}
}

// fillAll completes what can be completed.
func (l *Library) fillAll() {
	failed := make(map[string]bool)
	for {
		if l.settle(l.ctx) != nil {
			return
		}
		ll := l.nextMissing(failed)
		if ll == nil {
			return
		}
		if err := l.fillLayer(ll); err != nil {
			failed[ll.id] = true
			if l.ctx.Err() == nil && l.layer(ll.id) == ll { // else it was removed meanwhile
				l.log.Warn("background fetch failed; what is missing is fetched when it is read, and in the background later",
					"image", ll.image, "layer", ll.sources()[0].Digest, "error", err)
			}
		}
	}
}

func (l *Library) fillLayer(ll *lazyLayer) error {
	layer, err := ll.open()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := layer.Complete(l.ctx); err != nil {
		return err
	}
	l.unpinComplete()
	l.switchStacks()
	l.log.Info("layer is complete: new containers on it do not need this process",
		"image", ll.image, "layer", ll.sources()[0].Digest, "took", time.Since(start))
	return nil
}

// nextMissing returns a pulled layer that is not complete and not in skip:
// those of mounted stacks first, others as long as there is room for them.
func (l *Library) nextMissing(skip map[string]bool) *lazyLayer {
	room := l.room()
	l.mu.Lock()
	defer l.mu.Unlock()
	mounted := l.mountedLayers()
	var found *lazyLayer
	for id, ll := range l.layers {
		if !ll.pulled || skip[id] || !mounted[id] && (found != nil || ll.givenUp || ll.dataSize > room) {
			continue
		}
		if _, complete := ll.completeData(); complete {
			continue
		}
		found = ll
		if mounted[id] {
			break
		}
	}
	return found
}

// mountedLayers returns the IDs of the layers of stacks that are mounted.
// l.mu is held.
func (l *Library) mountedLayers() map[string]bool {
	ids := make(map[string]bool)
	for _, s := range l.stacks {
		if s.mounted.Load() {
			for _, layer := range s.layers {
				ids[layerID(layer.Digest, layer.TOCDigest)] = true
			}
		}
	}
	return ids
}

// missing returns the repositories from which pulled layers still need
// something.
func (l *Library) missing() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	repositories := make(map[string]bool)
	for _, ll := range l.layers {
		if _, complete := ll.completeData(); complete || !ll.pulled {
			continue
		}
		for _, ref := range ll.sources() {
			repositories[ref.Repository] = true
		}
	}
	return repositories
}

// settle waits until no reader has had to wait for the background delay.
func (l *Library) settle(ctx context.Context) error {
	for {
		wait := l.cfg.BackgroundDelay - time.Since(time.Unix(0, l.lastMiss.Load()))
		if wait <= 0 {
			return context.Cause(ctx)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}
