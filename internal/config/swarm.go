package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// Schedulers says who decides which peer fetches what from whom. Nodes that
// know no scheduler ask the seed peers they know, then the origin.
type Schedulers struct {
	// Addresses lists schedulers as host or host:port, port 8002 if none is
	// given. A name that resolves to several addresses is several schedulers,
	// which share the blobs among them.
	Addresses []string `yaml:"addresses"`
	// Server is where the scheduler of skimmer up lets other nodes join; its
	// port 0 lets nobody. skimmer peer runs no scheduler and ignores it.
	Server Listen `yaml:"server"`
}

// DefaultSchedulerPort is the port of a scheduler whose address names none.
const DefaultSchedulerPort = 8002

// Validate implements Validator.
func (s Schedulers) Validate() error {
	return hosts("addresses", s.Addresses)
}

// SeedPeer says which nodes read from origins for all others.
type SeedPeer struct {
	// Enable makes this node a seed peer: schedulers have it fetch what others
	// want. skimmer peer --seed does the same.
	Enable bool `yaml:"enable"`
	// Addresses lists seed peers as host or host:port, port 4000 if none is
	// given, that are asked when no scheduler can be.
	Addresses []string `yaml:"addresses"`
}

// Validate implements Validator.
func (s SeedPeer) Validate() error {
	return hosts("addresses", s.Addresses)
}

// Upload is how this node serves others. Without schedulers and seed peers, and
// unless it is a seed itself, it serves nobody and opens no port.
type Upload struct {
	// Server is the address blobs are served on.
	Server Listen `yaml:"server"`
	// Advertise is the host:port, or host, at which others reach this node;
	// empty is the address it has on the way to the scheduler.
	Advertise string `yaml:"advertise"`
	// Slots is how many transfers are served at a time. Who asks for more is
	// told to ask elsewhere.
	Slots uint16 `yaml:"slots"`
	// RateLimit is how many bytes are sent per second at most; 0 is no limit.
	RateLimit Bytes `yaml:"rateLimit"`
	// PerRemote is how many requests of one other node are served at a time; 0
	// is as many as there are slots.
	PerRemote uint16 `yaml:"perRemote"`
}

// Validate implements Validator.
func (u Upload) Validate() error {
	var errs []error
	if u.Slots == 0 {
		errs = append(errs, Invalid("slots", "must be more than 0"))
	}
	if u.Advertise != "" {
		errs = append(errs, hosts("advertise", []string{u.Advertise}))
	}
	return errors.Join(errs...)
}

// Listen is an address to listen on.
type Listen struct {
	// IP is the address of the interface; empty is all of them, with skimmer
	// up only the loopback interface.
	IP netip.Addr `yaml:"ip"`
	// Port is the TCP port.
	Port uint16 `yaml:"port"`
}

// Address returns the address as net.Listen takes it, on the interface
// otherwise if the file names none. Port 0 gives an address with port 0.
func (l Listen) Address(otherwise netip.Addr) string {
	ip := l.IP
	if !ip.IsValid() {
		ip = otherwise
	}
	host := ""
	if ip.IsValid() {
		host = ip.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(l.Port)))
}

// Download is how this node fetches from others.
type Download struct {
	// RateLimit is how many bytes are received from other nodes per second at
	// most; 0 is no limit.
	RateLimit Bytes `yaml:"rateLimit"`
}

// Host says what this node is called and where it stands. Nodes fetch from
// those of their rack first, then from those of their zone.
type Host struct {
	// Hostname is the name others see in lists; empty is that of the system.
	Hostname string `yaml:"hostname"`
	// IDC is the data centre; it is the node's zone if location is empty.
	IDC string `yaml:"idc"`
	// Location is the node's zone.
	Location string `yaml:"location"`
	// Rack is the rack within the zone.
	Rack string `yaml:"rack"`
}

// Zone returns what is compared to see whether two nodes are near each other.
// Nodes of different data centres are never in one zone.
func (h Host) Zone() string {
	if h.IDC != "" && h.Location != "" {
		return h.IDC + "/" + h.Location
	}
	return h.IDC + h.Location
}

// TLS is mutual TLS for every connection between nodes: each shows a
// certificate, and no port between nodes takes any other connection. The files
// are PEM; they may be replaced at any time. Without them nothing is encrypted.
type TLS struct {
	// Cert is the file with this node's certificate, which is for servers and
	// clients both.
	Cert string `yaml:"cert"`
	// Key is the file with the certificate's key.
	Key string `yaml:"key"`
	// CA is the file with the authorities that sign the nodes' certificates.
	CA string `yaml:"ca"`
	// ServerName is the name in the certificates of all nodes, where they have
	// one in common; empty is the host of the address a node is reached at.
	ServerName string `yaml:"serverName"`
}

// Enabled reports whether TLS is configured.
func (t TLS) Enabled() bool { return t.Cert != "" }

// Validate implements Validator.
func (t TLS) Validate() error {
	var errs []error
	for _, f := range []struct{ key, value string }{{"cert", t.Cert}, {"key", t.Key}, {"ca", t.CA}} {
		if f.value == "" && (t.Cert != "" || t.Key != "" || t.CA != "" || t.ServerName != "") {
			errs = append(errs, Invalid(f.key, "is empty: cert, key and ca go together"))
		}
	}
	return errors.Join(errs...)
}

// InSwarm reports whether the node exchanges blobs with others.
func (p Peer) InSwarm() bool {
	return len(p.Scheduler.Addresses) > 0 || len(p.SeedPeer.Addresses) > 0 || p.SeedPeer.Enable
}

// hosts reports addresses that are not host or host:port.
func hosts(key string, addresses []string) error {
	var errs []error
	for _, a := range addresses {
		if err := host(a); err != nil {
			errs = append(errs, Invalid(key, "%q: %w: write it as host or host:port", a, err))
		}
	}
	return errors.Join(errs...)
}

func host(address string) error {
	if _, err := netip.ParseAddr(address); err == nil {
		return nil
	}
	name, port, err := net.SplitHostPort(withPort(address))
	switch {
	case err != nil:
		return errors.New("is not an address")
	case name == "":
		return errors.New("names no host")
	}
	for _, c := range name {
		if c <= ' ' || c == '/' || c == '@' {
			return fmt.Errorf("has %q in the host", c)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("has %q as port", port)
	}
	return nil
}

// withPort returns address with some port if it has none.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return net.JoinHostPort(address, "1")
	}
	return address
}
