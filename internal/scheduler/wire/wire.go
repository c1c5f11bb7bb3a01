// Package wire says what peers and schedulers mean by the messages they
// exchange: it turns events and actions of package schedule into messages of
// api/scheduler/v1 and back, and refuses what makes no sense by the name of the
// field. Both ends use it, so neither can misread the other. A peer in the
// scheduler's own process is held to the same rules.
package wire

import (
	"net"
	"strconv"
	"strings"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// Protocol is the version of the protocol this package speaks.
const Protocol = 1

// MaxMessage is how many bytes a message has at most. The largest event there
// is, a blob announced with all digests, has about half of it.
const MaxMessage = 8 << 20

// MaxPieces is how many pieces a blob has at most.
const MaxPieces = 1 << 16

// What texts may be long, in bytes.
const (
	maxName   = 256
	maxOrigin = 4096
)

// Hello is how a peer presents itself to a scheduler.
type Hello struct {
	// ID names the peer, the same after a restart and no other peer.
	ID schedule.PeerID
	// Hostname is for people.
	Hostname string
	// Addr is the host:port at which the peer serves others. An empty host
	// stands for the one the scheduler sees the peer come from.
	Addr string
	// Location is where it stands.
	Location schedule.Location
	// Seed says that it reads from origins for others.
	Seed bool
	// Slots is how many transfers it serves at a time.
	Slots int
	// Version is its build, for people.
	Version string
	// Again says that the peer had joined this scheduler before and lost it.
	Again bool
}

// Handler is told what a scheduler says. Its methods are called from one
// goroutine, never concurrently, and in order. While one of them runs no other
// is called, so they are quick.
type Handler interface {
	// Act takes an action of the scheduler. Digests of several pieces come as
	// groups where that is possible.
	Act(a schedule.Action)
	// Up says that the scheduler is there, for the first time or again, and
	// knows nothing of the peer: all has to be announced and wanted (again).
	Up()
	// Down says that the scheduler is gone, and why. What is sent until Up is
	// dropped.
	Down(err error)
}

// invalid returns an Invalid error about a field.
func invalid(field, format string, args ...any) error {
	return blob.Errorf(blob.Invalid, "read "+field+": "+format, args...)
}

// Check reports what is wrong with h, as an Invalid error that names the
// field.
func (h Hello) Check() error {
	if h.ID == "" {
		return invalid("hello.id", "is empty")
	}
	for _, f := range []struct{ name, value string }{
		{"hello.id", string(h.ID)}, {"hello.hostname", h.Hostname}, {"hello.addr", h.Addr}, {"hello.location.zone", h.Location.Zone},
		{"hello.location.rack", h.Location.Rack}, {"hello.version", h.Version},
	} {
		if err := checkName(f.name, f.value); err != nil {
			return err
		}
	}
	_, port, err := net.SplitHostPort(h.Addr)
	if err != nil {
		return invalid("hello.addr", "%q is not host:port", h.Addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return invalid("hello.addr", "port %q is not a number from 1 to 65535", port)
	}
	if h.Slots < 0 || h.Slots > MaxPieces {
		return invalid("hello.slots", "is %d: must be from 0 to %d", h.Slots, MaxPieces)
	}
	return nil
}

// checkName refuses what would spoil a log line.
func checkName(field, s string) error {
	if len(s) > maxName {
		return invalid(field, "has %d bytes, at most %d", len(s), maxName)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }); i >= 0 {
		return invalid(field, "%q has characters that cannot be printed", s)
	}
	return nil
}

// EncodeHello returns the first message of a stream.
func EncodeHello(h Hello) *pb.ClientMessage {
	return &pb.ClientMessage{Hello: &pb.Hello{
		Protocol: Protocol, Id: string(h.ID), Hostname: h.Hostname, Addr: h.Addr,
		Location: &pb.Location{Zone: h.Location.Zone, Rack: h.Location.Rack},
		Seed:     h.Seed, Slots: uint32(max(h.Slots, 0)), Version: h.Version, Again: h.Again,
	}}
}

// DecodeHello reads the first message of a stream. Errors are Invalid and name
// the field.
func DecodeHello(m *pb.ClientMessage) (Hello, error) {
	p := m.GetHello()
	if p == nil {
		return Hello{}, invalid("hello", "is missing: a stream begins with it")
	}
	if p.GetProtocol() != Protocol {
		return Hello{}, invalid("hello.protocol", "is %d: this scheduler speaks %d", p.GetProtocol(), Protocol)
	}
	h := Hello{
		ID: schedule.PeerID(p.GetId()), Hostname: p.GetHostname(), Addr: p.GetAddr(),
		Location: schedule.Location{Zone: p.GetLocation().GetZone(), Rack: p.GetLocation().GetRack()},
		Seed:     p.GetSeed(), Slots: int(p.GetSlots()), Version: p.GetVersion(), Again: p.GetAgain(),
	}
	return h, h.Check()
}
