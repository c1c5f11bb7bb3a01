package layerdev

import (
	"errors"
	"math/rand/v2"
	"time"

	"skimmer/internal/blob"
)

// The pauses between tries to fetch what a reader waits for.
const (
	firstRest = 100 * time.Millisecond
	lastRest  = 5 * time.Second
)

// passing reports whether what a source failed with may go away by itself, so
// that a reader should rather wait than fail. Credentials and permissions
// count: tokens expire, and are renewed. That there is no such blob, or that
// its bytes are wrong, is an answer.
func passing(err error) bool {
	if errors.Is(err, errClosed) {
		return false
	}
	k := blob.KindOf(err)
	return k.Temporary() || k == blob.Unauthorized || k == blob.Forbidden || k == blob.Canceled
}

// rest is the pause of one stream whose fetching failed with what may pass.
// All who wait for the stream share it. Layer.mu guards it.
type rest struct {
	failed  time.Time
	delay   time.Duration // the last pause, without jitter
	until   time.Time
	wake    chan struct{} // closed when it is worth a try before that
	readers int           // who saw it fail and still want it
	err     error         // what it failed with last
}

// outage is what is known of a source that fails. Layer.mu guards it.
type outage struct {
	rests   map[int]*rest // by stream
	since   time.Time     // when readers began to wait; zero if there is no outage
	retries int64
}

// resting returns the pause a stream has to keep, nil where it may be fetched.
// l.mu is held.
func (l *Layer) resting(stream int) *rest {
	r := l.outage.rests[stream]
	if r == nil || !time.Now().Before(r.until) {
		return nil
	}
	return r
}

// failed makes a stream rest after a failed try for a reader. l.mu is held.
func (l *Layer) failed(stream int, err error) {
	if l.outage.rests == nil {
		l.outage.rests = make(map[int]*rest)
	}
	r := l.outage.rests[stream]
	if r == nil {
		r = &rest{delay: firstRest / 2}
		l.outage.rests[stream] = r
	}
	r.failed, r.err = time.Now(), err
	r.delay = min(2*r.delay, lastRest, l.cfg.IOTimeout/4) // a reader sees a try, however short its patience
	// Jitter of a fifth to either side: nodes that failed together should not
	// come back together.
	r.until = r.failed.Add(r.delay*4/5 + rand.N(r.delay*2/5))
	r.wake = make(chan struct{})
}

// succeeded notes that a stream was fetched: the others need not rest longer
// than firstRest, and if no reader waits for one that failed the outage is over. l.mu
// is held.
func (l *Layer) succeeded(stream int) {
	o := &l.outage
	delete(o.rests, stream)
	now := time.Now()
	for s, r := range o.rests {
		switch {
		case l.flights[s] != nil:
		case r.readers == 0:
			delete(o.rests, s)
		case now.Before(r.until):
			// Sooner would be a storm where one part of a blob cannot be had
			// and the rest can.
			if soonest := r.failed.Add(firstRest); soonest.Before(r.until) {
				r.until = soonest
				close(r.wake)
				r.wake = make(chan struct{})
			}
		}
	}
	if len(o.rests) == 0 && !o.since.IsZero() {
		l.log.Info("missing data can be fetched again", "outage", now.Sub(o.since).Round(time.Millisecond), "retries", o.retries)
		o.since, o.retries = time.Time{}, 0
	}
}

// outageSeen notes that a reader begins to wait because of err, and says so
// once per outage. l.mu is held.
func (l *Layer) outageSeen(c *contents, chunk int, err error) {
	if !l.outage.since.IsZero() {
		return
	}
	l.outage.since = time.Now()
	l.stats.outages.Add(1)
	l.log.Warn("missing data cannot be fetched; readers wait", "chunk", chunk,
		"file", l.fileAt(c, c.ix.Chunks[chunk].DataOff), "io_timeout", l.cfg.IOTimeout, "error", err)
}

// patience is what one reader of one chunk knows of failures.
type patience struct {
	l      *Layer
	stream int
	rest   *rest // that it is counted in
	last   error // what the last try failed with
}

// join counts the reader among those of its stream's rest, where there is
// one. Layer.mu is held.
func (p *patience) join(c *contents, chunk int) {
	r := p.l.outage.rests[p.stream]
	if r != p.rest {
		p.leave()
		p.rest = r
		if r != nil {
			r.readers++
		}
	}
	if r != nil {
		p.last = r.err
		p.l.outageSeen(c, chunk, r.err)
	}
}

// leave takes the reader out of the count. Layer.mu is held.
func (p *patience) leave() {
	if p.rest != nil {
		p.rest.readers--
		p.rest = nil
	}
}

// retried counts a try that follows a failed one. Layer.mu is held.
func (p *patience) retried() {
	if p.last != nil {
		p.l.stats.retries.Add(1)
		p.l.outage.retries++
	}
}

// fileAt names what lies at off of the flat data, for people.
func (l *Layer) fileAt(c *contents, off int64) string {
	if l.cfg.FileAt != nil {
		if name := l.cfg.FileAt(off); name != "" {
			return name
		}
	}
	return c.file(off)
}
