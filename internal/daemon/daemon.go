// Package daemon runs the services a process is made of: it starts them in
// the order they are written in, says when all of them are ready, and stops
// them in the reverse order, whatever the reason. The order of a process's
// shutdown is therefore its list of services, and nothing else.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// stopLimit is how long a service may take to stop unless it says otherwise.
// Together with a few services it stays below the 90 seconds systemd gives.
const stopLimit = 10 * time.Second

// Service is one part of a process.
type Service struct {
	// Name names the service in logs and errors.
	Name string
	// Run does the service's work. It calls ready, once, as soon as those who
	// come after it can use it, and returns when ctx ends, after it has put
	// its things in order. Returning earlier stops the process: orderly if the
	// error is nil, as failed otherwise.
	Run func(ctx context.Context, ready func()) error
	// StopLimit is how long Run may take to return after ctx has ended; then
	// it is left behind, which makes Group.Run fail. 0 means 10 seconds.
	StopLimit time.Duration
}

// Group is the services of a process. Add them, then call Run once.
type Group struct {
	// Constant after New; services until Run.
	log      *slog.Logger
	services []Service

	state atomic.Pointer[string] // what /readyz says; nil when ready
}

// New returns a group without services that logs to log.
func New(log *slog.Logger) *Group {
	g := &Group{log: log}
	g.setState("starting")
	return g
}

// Add puts services behind those the group has. Later ones may use earlier
// ones: they start after them and stop before them.
func (g *Group) Add(services ...Service) { g.services = append(g.services, services...) }

func (g *Group) setState(s string) { g.state.Store(&s) }

// running is a service that was started.
type running struct {
	Service
	cancel  context.CancelFunc
	ready   chan struct{} // closed by the service
	done    chan struct{} // closed once err is set
	err     error
	settled bool // err was taken; used by Group.Run only
}

// take returns what the ended service failed with, once.
func (r *running) take() error {
	if r.settled || r.err == nil {
		return nil
	}
	r.settled = true
	return fmt.Errorf("run %s: %w", r.Name, r.err)
}

// Run starts the services, tells systemd when all are ready, and waits until
// ctx ends or a service does. Then it stops all of them, the last one first,
// each only after those behind it are gone.
//
// The error is nil if ctx ended or a service returned nil, and all others
// stopped in time and without error; otherwise it names the service that
// failed first, and whatever failed to stop.
func (g *Group) Run(ctx context.Context) error {
	var all []*running
	ended := make(chan *running, len(g.services))
	up, err := g.start(ctx, &all, ended)
	if up {
		g.state.Store(nil)
		g.notify("READY=1")
		g.log.Info("ready")
		select {
		case <-ctx.Done():
		case r := <-ended:
			g.log.Debug("service has ended", "service", r.Name)
			err = r.take()
		}
	}
	g.setState("stopping")
	g.notify("STOPPING=1")
	g.log.Info("stopping")
	errs := []error{err}
	for _, r := range slices.Backward(all) {
		errs = append(errs, g.stop(r))
	}
	return errors.Join(errs...)
}

// start starts the services one after another, adding them to all, and
// reports whether all are up. It stops starting when ctx ends or a service
// does, whose error it returns.
func (g *Group) start(ctx context.Context, all *[]*running, ended chan *running) (bool, error) {
	for _, s := range g.services {
		if ctx.Err() != nil {
			return false, nil
		}
		g.setState("starting: waiting for " + s.Name)
		r := &running{Service: s, ready: make(chan struct{}), done: make(chan struct{})}
		// Not ctx itself: its end is only the beginning of an orderly stop, in
		// which each service's own context ends when its turn has come.
		var own context.Context
		own, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
		*all = append(*all, r)
		began := time.Now()
		// Not in a WaitGroup: stop waits for it, but only so long.
		go func() {
			r.err = s.Run(own, sync.OnceFunc(func() { close(r.ready) }))
			close(r.done)
			ended <- r
		}()
		select {
		case <-r.ready:
			g.log.Debug("service is ready", "service", s.Name, "after", time.Since(began))
		case <-ctx.Done():
			return false, nil
		case first := <-ended:
			return false, first.take()
		}
	}
	return true, nil
}

// stop ends r's context and waits for r within its limit.
func (g *Group) stop(r *running) error {
	began := time.Now()
	r.cancel()
	limit := r.StopLimit
	if limit == 0 {
		limit = stopLimit
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
		return fmt.Errorf("stop %s: still busy after %v, left behind", r.Name, limit)
	}
	g.log.Debug("service has stopped", "service", r.Name, "after", time.Since(began))
	if errors.Is(r.err, context.Canceled) {
		return nil // it was told to
	}
	return r.take()
}
