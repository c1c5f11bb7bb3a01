package config

import (
	"net/netip"
	"time"
)

// Scheduler configures skimmer scheduler, which tells peers what to fetch from
// whom. All it knows it learns from the peers that join it.
type Scheduler struct {
	// Verbose logs at level debug, whatever log.level says.
	Verbose bool `yaml:"verbose"`
	// PprofPort is the port on 127.0.0.1 for profiles, stack dumps and the log
	// level of the running process; 0 turns it off.
	PprofPort uint16 `yaml:"pprofPort"`
	// Server is the address peers join at.
	Server  Server  `yaml:"server"`
	Log     Log     `yaml:"log"`
	Metrics Metrics `yaml:"metrics"`
	Health  Health  `yaml:"health"`
	TLS     TLS     `yaml:"tls"`
	Limits  Limits  `yaml:"limits"`
}

// Limits are what the scheduler decides by, and how much it takes on.
type Limits struct {
	// LeaseLife is how long a peer that is to read from an origin may bring
	// nothing before another one is told to.
	LeaseLife Duration `yaml:"leaseLife"`
	// Transfers is how many transfers one request of a peer has under way at
	// a time.
	Transfers uint8 `yaml:"transfers"`
	// TransferSize is how many bytes one transfer has at most.
	TransferSize Bytes `yaml:"transferSize"`
	// Peers is how many peers may have joined; more are turned away.
	Peers uint32 `yaml:"peers"`
	// Wants is how many unanswered requests one peer may have.
	Wants uint16 `yaml:"wants"`
	// Queue is how much may wait to be sent to a peer that does not read; the
	// connection of one that is further behind is closed.
	Queue Bytes `yaml:"queue"`
}

// Validate implements Validator.
func (l Limits) Validate() error {
	switch {
	case l.LeaseLife <= 0:
		return Invalid("leaseLife", "must be more than 0")
	case l.Transfers == 0:
		return Invalid("transfers", "must be more than 0")
	case l.TransferSize < 16<<10:
		return Invalid("transferSize", "is %v: must be at least 16KiB", l.TransferSize)
	case l.Peers == 0:
		return Invalid("peers", "must be more than 0")
	case l.Wants == 0:
		return Invalid("wants", "must be more than 0")
	case l.Queue < 64<<10:
		return Invalid("queue", "is %v: must be at least 64KiB", l.Queue)
	}
	return nil
}

// Validate implements Validator.
func (s Scheduler) Validate() error {
	if s.Server.Port == 0 {
		return Invalid("server.port", "is 0: peers need one to join at")
	}
	return nil
}

// DefaultScheduler returns the configuration of a scheduler with an empty file.
func DefaultScheduler() Scheduler {
	everywhere := netip.IPv4Unspecified()
	return Scheduler{
		Server:  Server{IP: everywhere, Port: DefaultSchedulerPort},
		Log:     Log{Format: FormatText},
		Metrics: Metrics{Server: Server{IP: everywhere, Port: 8000}},
		Health:  Health{Server: Server{IP: everywhere, Port: 8003}},
		Limits: Limits{
			LeaseLife:    Duration(2 * time.Second),
			Transfers:    4,
			TransferSize: 8 << 20,
			Peers:        20000,
			Wants:        4096,
			Queue:        8 << 20,
		},
	}
}
