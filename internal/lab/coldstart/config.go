// Package coldstart measures how long a container takes from an image's name to
// the end of its program, on a node that has never seen the image and on one
// that has everything: with containerd's own overlayfs, with the stock stargz
// snapshotter, and with ours.
//
// It is the field's experiment: real images, a real registry behind a path with
// a round trip and a bandwidth, a real containerd and runc, and the same client
// code whatever the snapshotter. Modes are measured in turn, so that what the
// machine does meanwhile hits all of them.
package coldstart

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"skimmer/internal/lab"
)

// Mode is the snapshotter that images are started with.
type Mode string

// The modes.
const (
	Overlayfs Mode = "overlayfs" // containerd's own: everything is fetched and unpacked first
	Stargz    Mode = "stargz"    // the stock remote snapshotter
	Skimmer   Mode = "skimmer"   // ours, on the first node of a cluster that starts the image
	// Ours with the profile of an earlier start, and with another node of the
	// cluster that has started the image before.
	SkimmerProfile Mode = "skimmer-profile"
	SkimmerPeers   Mode = "skimmer-peers"
	// Those of others, with our mirror between them and the registry: on a node
	// that has nothing, and on one that had the image before.
	OverlayfsMirror Mode = "overlayfs-mirror"
	OverlayfsWarm   Mode = "overlayfs-mirror-warm"
	StargzMirror    Mode = "stargz-mirror"
)

// Modes returns all modes, in the order in which they are shown.
func Modes() []Mode {
	return []Mode{Overlayfs, Stargz, Skimmer, SkimmerProfile, SkimmerPeers, OverlayfsMirror, OverlayfsWarm, StargzMirror}
}

// DefaultModes returns those that are compared unless others are asked for.
func DefaultModes() []Mode {
	return []Mode{Overlayfs, Stargz, Skimmer, SkimmerProfile, SkimmerPeers}
}

// snapshotter returns the name of the mode's snapshotter in containerd.
func (m Mode) snapshotter() string {
	name, _, _ := strings.Cut(string(m), "-")
	return name
}

// ours reports whether our snapshotter starts the container.
func (m Mode) ours() bool { return m.snapshotter() == string(Skimmer) }

// mirrored reports whether the mode has our mirror before the registry.
func (m Mode) mirrored() bool { return strings.Contains(string(m), "-mirror") }

// ParseModes reads a list of modes, separated by commas.
func ParseModes(list string) (modes []Mode, err error) {
	for name := range strings.SplitSeq(list, ",") {
		m := Mode(strings.TrimSpace(name))
		if !slices.Contains(Modes(), m) {
			return nil, fmt.Errorf("read modes: %q is none of %v", m, Modes())
		}
		if slices.Contains(modes, m) {
			return nil, fmt.Errorf("read modes: %s is there twice", m)
		}
		modes = append(modes, m)
	}
	return modes, nil
}

// Path is what lies between the node and the registry. The zero value is
// nothing: as fast as the machine is.
type Path struct {
	// RTT is the round trip.
	RTT time.Duration `json:"rtt"`
	// Bits is what all connections together carry per second, in each
	// direction; 0 is no limit.
	Bits int64 `json:"bits"`
}

// bitUnits are the units of a bandwidth, the one it is shown in first.
var bitUnits = []struct {
	name string
	bits int64
}{{"Gbit", 1_000_000_000}, {"Mbit", 1_000_000}, {"kbit", 1000}}

// String returns the path as ParsePath reads it.
func (p Path) String() string {
	if p == (Path{}) {
		return "none"
	}
	for _, u := range bitUnits {
		if p.Bits > 0 && p.Bits%u.bits == 0 {
			return fmt.Sprintf("%v/%d%s", p.RTT, p.Bits/u.bits, u.name)
		}
	}
	return p.RTT.String() + "/0"
}

// ParsePath reads a path as 5ms/200Mbit, 20ms/0 (no limit) or none. The units of
// the bandwidth are kbit, Mbit and Gbit; the smallest bandwidth is 100kbit, and
// the longest round trip 10s.
func ParsePath(s string) (Path, error) {
	if s == "none" {
		return Path{}, nil
	}
	rtt, rate, ok := strings.Cut(s, "/")
	if !ok {
		return Path{}, fmt.Errorf("read shape %q: want a round trip and a bandwidth, as 5ms/200Mbit", s)
	}
	d, err := time.ParseDuration(rtt)
	if err != nil || d < 0 || d > 10*time.Second {
		return Path{}, fmt.Errorf("read shape %q: %q is not a round trip between 0s and 10s", s, rtt)
	}
	if rate == "0" {
		return Path{RTT: d}, nil
	}
	for _, u := range bitUnits {
		digits, ok := strings.CutSuffix(rate, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 32)
		if err == nil && n > 0 && n*u.bits >= 100_000 {
			return Path{RTT: d, Bits: n * u.bits}, nil
		}
	}
	return Path{}, fmt.Errorf("read shape %q: %q is not a bandwidth of at least 100kbit, as 200Mbit or 1Gbit", s, rate)
}

// ParsePaths reads a list of paths, separated by commas.
func ParsePaths(list string) (paths []Path, err error) {
	for s := range strings.SplitSeq(list, ",") {
		p, err := ParsePath(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		if slices.Contains(paths, p) {
			return nil, fmt.Errorf("read shapes: %v is there twice", p)
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// FirstNode is what has become of the first node when the second one of mode
// [SkimmerPeers] starts.
type FirstNode string

// The states of the first node.
const (
	Complete FirstNode = "complete" // it has all of the image
	Started  FirstNode = "started"  // it has what its start read, and does not complete the image
)

// PublishFunc makes the image tag of an OCI layout lazily mountable and pushes
// it as ref; it returns the size of its layers in the registry, in bytes. report
// may be called concurrently.
type PublishFunc func(ctx context.Context, layout, tag, ref string, report func(lab.Progress)) (int64, error)

// Config says what [Run] measures.
type Config struct {
	// Dir is a directory for everything that is made, with a short path; the
	// caller removes it.
	Dir string
	// Images are the images, each started with its first program.
	Images []lab.Spec
	// Imports adds a case: a program that imports 300 modules, where the image
	// python is among Images.
	Imports bool
	// Whole adds a case: the first of Images is read through, in the modes
	// Overlayfs and Skimmer.
	Whole bool
	// Modes are what is compared, Paths what it is done over.
	Modes []Mode
	Paths []Path
	// PeerPath is what lies between nodes, and between them and their scheduler,
	// in mode SkimmerPeers, FirstNode the state of the first of them.
	PeerPath  Path
	FirstNode FirstNode
	// AtOnce has cached starts of our modes follow first ones at once. Otherwise
	// the node completes the image between them, as fast as the machine can.
	AtOnce bool
	// Mirror has containerd ask the registry through the node's own mirror in our
	// modes, as "skimmer install containerd --registry" sets it up.
	Mirror bool
	// Unpack has containerd, where a mirror of ours is before the registry, run ours
	// to decompress layers, as "skimmer install containerd" sets it up.
	Unpack bool
	// Command is noted in the report: how to repeat the experiment.
	Command string
	// Runs is how often everything is measured, at least once.
	Runs int
	// Containerd is the program; empty means the one in PATH.
	Containerd string
	// Stargz and Skimmer are the programs of those modes.
	Stargz, Skimmer string
	// sharedDisk has nodes be folders of Dir, where file systems of their own
	// cannot be made.
	sharedDisk bool
	// PackageCache is lab.Build's CacheDir; empty means the default.
	PackageCache string
	// RegistryDir, where set, keeps published images between experiments, which
	// saves converting them; it has to be emptied when the converter changes.
	RegistryDir string
	// ChunkSize is what Publish divides files into, in bytes; it is part of the
	// published images' names.
	ChunkSize int64
	// Publish puts images into the registry.
	Publish PublishFunc
	// Report, where set, is told what is being done. It may be called
	// concurrently while an image is published.
	Report func(lab.Progress)
	// Logger receives what is done; nil discards it.
	Logger *slog.Logger
}

// check returns what is wrong with the configuration.
func (c Config) check() error {
	switch {
	case len(c.Images) == 0:
		return fmt.Errorf("no images given")
	case len(c.Modes) == 0:
		return fmt.Errorf("no modes given")
	case len(c.Paths) == 0:
		return fmt.Errorf("no shapes given")
	case c.Runs < 1:
		return fmt.Errorf("%d runs: there must be at least one", c.Runs)
	case c.Stargz == "" && slices.ContainsFunc(c.Modes, func(m Mode) bool { return m.snapshotter() == string(Stargz) }):
		return fmt.Errorf("mode stargz needs the baseline program")
	case c.Skimmer == "" && slices.ContainsFunc(c.Modes, func(m Mode) bool { return m.ours() || m.mirrored() }):
		return fmt.Errorf("modes of skimmer and the mirror need the skimmer program")
	case c.FirstNode != Complete && c.FirstNode != Started && slices.Contains(c.Modes, SkimmerPeers):
		return fmt.Errorf("first node %q: want %s or %s", c.FirstNode, Complete, Started)
	}
	return nil
}
