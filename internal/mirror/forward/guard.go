package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"skimmer/internal/blob"
)

// GuardConfig says what a Guard lets through. The zero value is the strictest.
type GuardConfig struct {
	// Allow lists hosts, addresses, either with a port or without, and networks
	// (10.0.0.0/8) that may be reached whatever their addresses are.
	Allow []string
	// Loopback allows loopback and unspecified addresses: a registry on this
	// machine is nothing strange where only this machine can ask for it.
	Loopback bool
	// Setting is what errors name as the way to allow an address. Default:
	// proxy.allowHosts.
	Setting string
	// Resolver looks up hosts. Default: net.DefaultResolver.
	Resolver *net.Resolver
	// Timeout (10 s) bounds making a connection.
	Timeout time.Duration
}

// Guard makes connections for somebody else, and none to where only this
// machine should get: loopback, unspecified, link-local, multicast and reserved
// addresses, and those of clouds' metadata services, also where an IPv6 address
// stands for one. What counts is the address that is dialled, not its name.
// Networks that are merely private are let through. It is safe for concurrent
// use.
type Guard struct {
	// Constant after NewGuard.
	cfg      GuardConfig
	hosts    map[string]bool // with a port or without
	networks []netip.Prefix
	sockets  map[netip.AddrPort]bool
	guarded  net.Dialer
	free     net.Dialer

	mu   sync.Mutex           // mu guards good
	good map[string]time.Time // addresses that passed Check, and when
}

// Check remembers for checkLife what passed, of maxChecked addresses at most.
const (
	checkLife  = 10 * time.Second
	maxChecked = 1024
)

// NewGuard returns a Guard. Errors: Invalid for what cannot be allowed.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	if cfg.Setting == "" {
		cfg.Setting = "proxy.allowHosts"
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	g := &Guard{cfg: cfg, hosts: make(map[string]bool), sockets: make(map[netip.AddrPort]bool), good: make(map[string]time.Time)}
	for _, text := range cfg.Allow {
		if err := g.allow(text); err != nil {
			return nil, err
		}
	}
	g.free = net.Dialer{Timeout: cfg.Timeout, Resolver: cfg.Resolver}
	g.guarded = g.free
	g.guarded.ControlContext = g.control
	return g, nil
}

// allow reads an entry of GuardConfig.Allow.
func (g *Guard) allow(text string) error {
	if network, err := netip.ParsePrefix(text); err == nil {
		if a := network.Addr(); a.Is4In6() && network.Bits() >= 96 {
			network = netip.PrefixFrom(a.Unmap(), network.Bits()-96)
		}
		g.networks = append(g.networks, network.Masked())
		return nil
	}
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		addr = addr.Unmap().WithZone("")
		g.networks = append(g.networks, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	if socket, err := netip.ParseAddrPort(text); err == nil {
		g.sockets[netip.AddrPortFrom(socket.Addr().Unmap().WithZone(""), socket.Port())] = true
		return nil
	}
	host, err := hostOf(text, "")
	if err != nil {
		return blob.Errorf(blob.Invalid, "read %s: %q is no host, address or network", g.cfg.Setting, text)
	}
	g.hosts[host] = true
	return nil
}

// DialContext makes a connection as a net.Dialer does. Errors: those of a
// net.Dialer, and Forbidden.
//
// A connection that is used again is not looked at again: who dials through two
// different Guards needs a pool of connections for each.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if g.allowed(address) {
		return g.free.DialContext(ctx, network, address)
	}
	conn, err := g.guarded.DialContext(ctx, network, address)
	var refused *refusal
	if errors.As(err, &refused) {
		return nil, g.explain(address, refused)
	}
	return conn, err
}

// Check resolves address, a host and port, and returns a Forbidden error if any
// of what it stands for must not be dialled. It is for what is dialled
// elsewhere, and no substitute for DialContext: names can change their address,
// and what passed is not looked at again for 10 s. Errors: also Invalid, and
// Unavailable where a name cannot be resolved.
func (g *Guard) Check(ctx context.Context, address string) error {
	if g.allowed(address) || g.passed(address) {
		return nil
	}
	if err := g.resolve(ctx, address); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for old, when := range g.good { // of all others, any is as good as the next
		if len(g.good) >= maxChecked || time.Since(when) >= checkLife {
			delete(g.good, old)
		}
	}
	g.good[address] = time.Now()
	return nil
}

// passed reports whether Check let address pass a moment ago.
func (g *Guard) passed(address string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	when, ok := g.good[address]
	return ok && time.Since(when) < checkLife
}

// resolve checks what address stands for now.
func (g *Guard) resolve(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return blob.Errorf(blob.Invalid, "check address: %w", err)
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return blob.Errorf(blob.Invalid, "check address: %w", err)
	}
	addrs := make([]netip.Addr, 0, 1)
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else {
		ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
		defer cancel()
		if addrs, err = g.cfg.Resolver.LookupNetIP(ctx, "ip", host); err != nil {
			return blob.Errorf(blob.Unavailable, "check address: %w", err)
		}
	}
	for _, addr := range addrs {
		if r := g.refuse(netip.AddrPortFrom(addr, uint16(n))); r != nil {
			return g.explain(address, r)
		}
	}
	return nil
}

// allowed reports whether a host may be reached by its name.
func (g *Guard) allowed(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	host = strings.ToLower(host)
	return g.hosts[host] || g.hosts[net.JoinHostPort(host, port)]
}

// control is called with the address of each socket before it is connected.
func (g *Guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	socket, err := netip.ParseAddrPort(address)
	if err != nil {
		return &refusal{what: "is no address of the Internet"}
	}
	if r := g.refuse(socket); r != nil {
		return r
	}
	return nil
}

// refusal says why an address must not be dialled.
type refusal struct {
	addr netip.Addr
	what string
}

func (r *refusal) Error() string { return r.addr.String() + " " + r.what }

func (g *Guard) explain(address string, r *refusal) error {
	return blob.Errorf(blob.Forbidden, "connect to %s: %w, which is refused unless %s lists it", address, r, g.cfg.Setting)
}

// refuse returns why a socket must not be connected to; nil if it may.
func (g *Guard) refuse(socket netip.AddrPort) *refusal {
	addr := socket.Addr().Unmap().WithZone("")
	if g.sockets[netip.AddrPortFrom(addr, socket.Port())] {
		return nil
	}
	for _, network := range g.networks {
		if network.Contains(addr) {
			return nil
		}
	}
	what := class(addr)
	if what == "" || g.cfg.Loopback && (what == loopback || what == unspecified) {
		return nil
	}
	return &refusal{addr, what}
}

// What class says of addresses.
const (
	loopback    = "is a loopback address"
	unspecified = "is an unspecified address"
	linkLocal   = "is a link-local address"
	metadata    = "is the address of a metadata service"
	multicast   = "is a multicast address"
	reserved    = "is a reserved address"
)

// metadataServices are those that no other class has: of AWS and Google over
// IPv6, Azure, Alibaba and Oracle.
var metadataServices = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"),
	netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"),
}

// embeddings are the networks whose addresses stand for one of IPv4, and where
// in them its bytes are.
var embeddings = []struct {
	network netip.Prefix
	at      int
}{
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // SIIT
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12},  // NAT64 of a network's own, as far as it is a /96
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	future      = netip.MustParsePrefix("240.0.0.0/4") // and broadcast
)

// class says what keeps an address from being dialled; "" if nothing does.
func class(addr netip.Addr) string {
	for _, m := range metadataServices {
		if addr == m {
			return metadata
		}
	}
	switch {
	case addr.IsLoopback():
		return loopback
	case addr.IsUnspecified() || thisNetwork.Contains(addr):
		return unspecified
	case addr.IsLinkLocalUnicast():
		return linkLocal
	case addr.IsMulticast():
		return multicast
	case future.Contains(addr):
		return reserved
	case addr.Is4():
		return ""
	}
	p := addr.As16()
	for _, e := range embeddings {
		if e.network.Contains(addr) {
			if what := class(netip.AddrFrom4([4]byte(p[e.at : e.at+4]))); what != "" {
				return what
			}
		}
	}
	return ""
}
