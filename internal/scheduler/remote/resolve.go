package remote

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"skimmer/internal/blob"
)

// DefaultPort is the port of a scheduler whose address names none.
const DefaultPort = 8002

// Resolve returns the schedulers behind addresses, each host or host:port, as
// IP:port, sorted and each once. A name with several addresses is several
// schedulers. One that has IPv4 addresses and others counts with the former
// only: a scheduler reachable by both would be two otherwise, and a peer that
// joins twice throws itself out. For the same reason only one address is taken of
// a name for this machine.
//
// Names that cannot be resolved do not hide the others: an error, Unavailable
// or Invalid, may come together with results.
func Resolve(ctx context.Context, addresses []string) ([]string, error) {
	return resolve(ctx, addresses, net.DefaultResolver.LookupNetIP)
}

// lookup is net.Resolver.LookupNetIP.
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

func resolve(ctx context.Context, addresses []string, look lookup) ([]string, error) {
	var out []string
	var errs []error
	for _, address := range addresses {
		host, port, err := split(address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips, err := addressesOf(ctx, host, look)
		if err != nil {
			errs = append(errs, blob.Errorf(blob.Unavailable, "resolve scheduler %s: %w", address, err))
		}
		for _, ip := range ips {
			out = append(out, netip.AddrPortFrom(ip, port).String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out), errors.Join(errs...)
}

func addressesOf(ctx context.Context, host string, look lookup) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	all, err := look(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i] = all[i].Unmap()
	}
	if slices.ContainsFunc(all, netip.Addr.Is4) {
		all = slices.DeleteFunc(all, func(ip netip.Addr) bool { return !ip.Is4() })
	}
	if len(all) > 1 && !slices.ContainsFunc(all, func(ip netip.Addr) bool { return !ip.IsLoopback() }) {
		slices.SortFunc(all, netip.Addr.Compare)
		all = all[:1]
	}
	return all, nil
}

// split separates host and port. A bare IPv6 address needs no brackets.
func split(address string) (host string, port uint16, err error) {
	if ip, err := netip.ParseAddr(address); err == nil {
		return ip.String(), DefaultPort, nil
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		host, text, err = net.SplitHostPort(address + ":" + strconv.Itoa(DefaultPort))
	}
	if err != nil || host == "" {
		return "", 0, blob.Errorf(blob.Invalid, "resolve scheduler %q: not host or host:port", address)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, blob.Errorf(blob.Invalid, "resolve scheduler %q: port is not a number from 1 to 65535", address)
	}
	return host, uint16(n), nil
}
