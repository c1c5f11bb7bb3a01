package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func TestAddressClasses(t *testing.T) {
	for what, addrs := range map[string]string{
		"":          "8.8.8.8 10.1.2.3 192.168.0.1 172.16.0.1 100.64.0.1 2001:4860::8888 fd00::1 64:ff9b::808:808 2002:808:808::1",
		loopback:    "127.0.0.1 127.255.0.1 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::7f00:1 2002:7f00:1::1 ::ffff:0:7f00:1",
		unspecified: "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0 64:ff9b::",
		linkLocal:   "169.254.1.1 fe80::1 ::ffff:169.254.0.1 2002:a9fe:101::",
		metadata:    "169.254.169.254 ::ffff:169.254.169.254 fd00:ec2::254 fd20:ce::254 168.63.129.16 100.100.100.200 192.0.0.192 64:ff9b::a9fe:a9fe",
		multicast:   "224.0.0.1 239.1.1.1 ff02::1 ff01::1 ff0e::1",
		reserved:    "240.0.0.1 255.255.255.255",
	} {
		for text := range strings.FieldsSeq(addrs) {
			addr := netip.MustParseAddr(text)
			if got := class(addr.Unmap()); got != what {
				t.Errorf("%s: %q, want %q", text, got, what)
			}
			g := newGuard(t, GuardConfig{})
			r := g.refuse(netip.AddrPortFrom(addr, 80))
			if (r != nil) != (what != "") {
				t.Errorf("%s: refused %v, want %q", text, r, what)
			}
			if r := newGuard(t, GuardConfig{Allow: []string{text}}).refuse(netip.AddrPortFrom(addr, 80)); r != nil {
				t.Errorf("%s: refused though it is allowed: %v", text, r)
			}
		}
	}
}

func newGuard(t testing.TB, cfg GuardConfig) *Guard {
	t.Helper()
	g, err := NewGuard(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGuardAllows(t *testing.T) {
	for _, c := range []struct {
		allow, address string
		want           bool
	}{
		{"127.0.0.1", "127.0.0.1:80", true},
		{"127.0.0.1", "[::ffff:127.0.0.1]:80", true},
		{"::ffff:127.0.0.1", "127.0.0.1:80", true},
		{"127.0.0.1", "127.0.0.2:80", false},
		{"127.0.0.0/8", "127.9.0.2:80", true},
		{"::ffff:127.0.0.0/104", "127.9.0.2:80", true},
		{"127.0.0.1:81", "127.0.0.1:81", true},
		{"127.0.0.1:81", "127.0.0.1:80", false},
		{"[::1]", "[::1]:80", true},
		{"[::1]:81", "[::1]:81", true},
		{"[::1]:81", "[::1]:82", false},
		{"fe80::/10", "[fe80::1%lo]:82", true},
		{"fe80::1", "[fe80::1%lo]:82", true},
		{"localhost", "localhost:80", true},
		{"LOCALHOST", "LocalHost:80", true},
		{"localhost:80", "localhost:80", true},
		{"localhost:80", "localhost:81", false},
		{"localhost", "127.0.0.1:80", false}, // by its name only
		{"0.0.0.0/0", "169.254.169.254:80", true},
		{"10.0.0.0/8", "169.254.169.254:80", false},
	} {
		g := newGuard(t, GuardConfig{Allow: []string{c.allow}})
		err := g.Check(t.Context(), c.address)
		if (err == nil) != c.want || err != nil && !errors.Is(err, blob.Forbidden) {
			t.Errorf("allow %s: check %s: %v, want allowed: %v", c.allow, c.address, err, c.want)
		}
	}
	for _, bad := range []string{"", "a/b", "a b", "a:b", "a:0", "10.0.0.0/33", "http://a", "a@b", "::1::"} {
		if _, err := NewGuard(GuardConfig{Allow: []string{bad}}); !errors.Is(err, blob.Invalid) {
			t.Errorf("allow %q: %v, want Invalid", bad, err)
		}
	}
	lax := newGuard(t, GuardConfig{Loopback: true})
	for address, want := range map[string]bool{
		"127.0.0.1:80": true, "[::1]:80": true, "0.0.0.0:80": true, "169.254.169.254:80": false, "[fe80::1]:80": false, "[64:ff9b::a9fe:a9fe]:80": false,
	} {
		if err := lax.Check(t.Context(), address); (err == nil) != want {
			t.Errorf("loopback allowed: check %s: %v", address, err)
		}
	}
}

// names answers DNS questions about names with an address of IPv4 each.
func names(t testing.TB, known map[string]netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(answerDNS(buf[:n], known), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// answerDNS answers a message with one question (RFC 1035, section 4).
func answerDNS(query []byte, known map[string]netip.Addr) []byte {
	var labels []string
	at := 12
	for query[at] != 0 {
		labels = append(labels, string(query[at+1:at+1+int(query[at])]))
		at += 1 + int(query[at])
	}
	end := at + 5 // the root label, type and class
	addr, ok := known[strings.Join(labels, ".")]
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	switch isA := query[at+2] == 1; {
	case !ok:
		reply[3] |= 3 // no such name
	case isA:
		reply[7] = 1
		reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		reply = append(reply, addr.AsSlice()...)
	}
	return reply
}

// TestGuardLooksAtWhatIsDialled has names for addresses of this machine.
func TestGuardLooksAtWhatIsDialled(t *testing.T) {
	resolver := names(t, map[string]netip.Addr{
		"inside.example.test":   netip.MustParseAddr("127.0.0.1"),
		"metadata.example.test": netip.MustParseAddr("169.254.169.254"),
		"allowed.example.test":  netip.MustParseAddr("127.0.0.1"),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	g := newGuard(t, GuardConfig{Allow: []string{"allowed.example.test"}, Resolver: resolver, Setting: "a.setting"})
	for _, host := range []string{"127.0.0.1", "localhost", "inside.example.test", "metadata.example.test", "0.0.0.0", "::1", "::ffff:127.0.0.1", ""} {
		address := net.JoinHostPort(host, port)
		conn, err := g.DialContext(t.Context(), "tcp", address)
		if !errors.Is(err, blob.Forbidden) || conn != nil || !strings.Contains(err.Error(), "a.setting") {
			t.Errorf("dial %s: %v, want Forbidden with the setting", address, err)
		}
		if err := g.Check(t.Context(), address); host != "" && !errors.Is(err, blob.Forbidden) {
			t.Errorf("check %s: %v, want Forbidden", address, err)
		}
	}
	conn, err := g.DialContext(t.Context(), "tcp", net.JoinHostPort("allowed.example.test", port))
	if err != nil {
		t.Fatalf("dial what is allowed: %v", err)
	}
	_ = conn.Close()
	if err := g.Check(t.Context(), "unknown.example.test:80"); !errors.Is(err, blob.Unavailable) {
		t.Errorf("check an unknown name: %v, want Unavailable", err)
	}
}

// FuzzGuard has foreign addresses: none that is dialled literally may be one of
// this machine.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "::1", "::ffff:7f00:1", "fe80::1%eth0", "64:ff9b::7f00:1", "8.8.8.8", "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := netip.ParseAddr(s)
		if err != nil || strings.ContainsAny(addr.Zone(), "[]/") {
			return // the zone cannot be written in an address to dial
		}
		plain := addr.Unmap().WithZone("")
		bad := plain.IsLoopback() || plain.IsUnspecified() || plain.IsLinkLocalUnicast() || plain.IsMulticast()
		err = newGuard(t, GuardConfig{}).Check(t.Context(), net.JoinHostPort(s, "80"))
		if bad && !errors.Is(err, blob.Forbidden) {
			t.Errorf("check %s: %v, want Forbidden", s, err)
		}
		if err := newGuard(t, GuardConfig{Allow: []string{s}}).Check(t.Context(), net.JoinHostPort(s, "80")); err != nil {
			t.Errorf("check %s, which is allowed: %v", s, err)
		}
	})
}
