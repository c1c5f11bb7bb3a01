// Package distribute measures how long a file takes from one origin to many
// nodes at once: with every node fetching it from the origin, and with our
// peers, on the same links.
//
// Nodes are network namespaces with shaped links, programs are the real ones,
// and the measure is the fluid bound: how long it would take if bytes were a
// liquid and every node gave on at once what it receives.
package distribute

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"skimmer/internal/lab"
	"skimmer/internal/lab/cluster"
)

// Mode is how nodes get at the file.
type Mode string

// The modes.
const (
	Direct Mode = "direct" // every node fetches all of it from the origin
	Swarm  Mode = "swarm"  // skimmer get --keep on every node, with a scheduler
)

// Modes returns all modes, in the order in which they are shown.
func Modes() []Mode { return []Mode{Direct, Swarm} }

// ParseModes reads a list of modes, separated by commas.
func ParseModes(list string) (modes []Mode, err error) {
	for name := range strings.SplitSeq(list, ",") {
		m := Mode(strings.TrimSpace(name))
		if !slices.Contains(Modes(), m) {
			return nil, fmt.Errorf("read modes: %q is neither direct nor swarm", m)
		}
		if slices.Contains(modes, m) {
			return nil, fmt.Errorf("read modes: %s is there twice", m)
		}
		modes = append(modes, m)
	}
	return modes, nil
}

// Config says what [Run] measures.
type Config struct {
	// Dir is where the nodes keep what they fetch, with a short path; it has to
	// have room for the file twice per node. Empty means a temporary
	// directory. Run removes it in either case.
	Dir string
	// Skimmer is the program of mode Swarm.
	Skimmer string
	// Nodes is how many nodes fetch the file, Seeds how many more are there to
	// help.
	Nodes, Seeds int
	// Size is that of the file, in bytes.
	Size int64
	// Rate is the bandwidth of every link, in bits per second and in each
	// direction, the origin's included; 0 is as fast as the machine is.
	Rate int64
	// Congestion is how TCP finds its rate on the nodes, as the kernel names it;
	// empty means as on this machine.
	Congestion string
	// Copies has mode Swarm also write the file beside the node's store, and says
	// when that was done.
	Copies bool
	// Modes are what is compared.
	Modes []Mode
	// Report, where set, is told what is being done.
	Report func(lab.Progress)
	// Logger receives what is done; nil discards it.
	Logger *slog.Logger
}

// helpers is how many nodes there are beside those that fetch and the seeds.
const helpers = 2

// check returns what is wrong with the configuration.
func (c Config) check() error {
	switch {
	case c.Nodes < 1 || c.Seeds < 0 || c.Nodes+c.Seeds > cluster.MaxNodes-helpers:
		return fmt.Errorf("%d nodes and %d seeds: must be at least one node and at most %d together", c.Nodes, c.Seeds, cluster.MaxNodes-helpers)
	case c.Size < 1:
		return fmt.Errorf("size %d: must be more than 0", c.Size)
	case c.Rate < 0:
		return fmt.Errorf("rate %d: must not be negative", c.Rate)
	case len(c.Modes) == 0:
		return errors.New("no modes given")
	case slices.Contains(c.Modes, Swarm) && c.Skimmer == "":
		return errors.New("no program given for mode swarm")
	}
	return nil
}

// NeedsRoot returns an error where Run could not do its work.
func NeedsRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("measure distribution: network namespaces need root: sudo skimmer bench distribute")
	}
	return nil
}

// Bound is the fluid bound for a file of size bytes, n receivers, and helpers
// that need nothing themselves, where every link carries rate bits per second in
// each direction: the slowest of the origin sending it once, one node receiving
// it, and all uplinks together sending it n times.
func Bound(size, rate int64, n, helpers int) time.Duration {
	if rate == 0 {
		return 0
	}
	once := 8 * float64(size) / float64(rate)
	all := float64(n) * once / float64(1+n+helpers)
	return time.Duration(max(once, all) * float64(time.Second))
}
