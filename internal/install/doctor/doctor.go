// Package doctor finds out why a node does not work: it tries everything the
// product depends on, from the kernel to the registry, and says of each what
// was found and what to do about it.
package doctor

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Status is how a check went.
type Status string

// The outcomes of a check.
const (
	// OK is as it should be.
	OK Status = "ok"
	// Warn works, but not as well as it could, or not for everybody.
	Warn Status = "warn"
	// Fail does not work.
	Fail Status = "fail"
	// Skip was not asked for.
	Skip Status = "skip"
)

// Check is the outcome of one check.
type Check struct {
	// Name is what was looked at, in one word.
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found is what was seen, a line.
	Found string `json:"found"`
	// Advice is what to do about it; empty if nothing.
	Advice string `json:"advice,omitempty"`
}

// Options say where everything is.
type Options struct {
	// DataDir is where the peer keeps its data; it need not exist.
	DataDir string
	// Socket is the snapshotter's, Containerd containerd's, and
	// ContainerdConfig the file containerd is configured by; checks of what is
	// empty are skipped.
	Socket, Containerd, ContainerdConfig string
	// Names are what the snapshotter may be called in containerd.
	Names []string
	// Registry is a host, or an image's name; empty skips the check.
	Registry string
	// Insecure are registries, as host or host:port, spoken to over plain
	// HTTP beside those on this machine.
	Insecure []string
	// Scheduler is host:port; empty skips the check.
	Scheduler string
	// Timeout limits each check that waits for somebody; 0 is 5 s.
	Timeout time.Duration
}

// Run does all checks at once and returns them in an order that puts causes
// before what follows from them. It changes nothing: what it writes to the
// data directory is removed again.
func Run(ctx context.Context, opts Options) []Check {
	if opts.Timeout <= 0 {
		opts.Timeout = 5 * time.Second
	}
	groups := []func(context.Context) []Check{
		opts.machine, opts.data, opts.snapshotter, opts.containerd, opts.configured, opts.registry, opts.scheduler,
	}
	found := make([][]Check, len(groups))
	var wg sync.WaitGroup
	for i, group := range groups {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
			defer cancel()
			found[i] = group(ctx)
		})
	}
	wg.Wait()
	return slices.Concat(found...)
}

// Failed reports whether a check failed.
func Failed(checks []Check) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Status == Fail })
}
