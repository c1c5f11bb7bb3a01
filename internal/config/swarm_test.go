package config_test

import (
	"net/netip"
	"strings"
	"testing"

	"skimmer/internal/config"
)

func TestSwarmKeys(t *testing.T) {
	got, err := parse(`
scheduler: {addresses: [scheduler.test, "10.0.0.1:9002", "fd00::1", "[fd00::2]:8002"]}
seedPeer: {enable: true, addresses: [seed.test:4000]}
upload:
  server: {ip: 10.0.0.5, port: 4100}
  advertise: node.test:4100
  slots: 8
  rateLimit: 1GB
  perRemote: 2
download: {rateLimit: 500MiB}
host: {hostname: node, idc: dc1, location: room2, rack: r7}
tls: {cert: /c.pem, key: /k.pem, ca: /ca.pem, serverName: peers.test}
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Scheduler.Addresses) != 4 || !got.SeedPeer.Enable || !got.InSwarm() || got.Upload.RateLimit != 1e9 || got.Upload.Slots != 8 ||
		got.Download.RateLimit != 500<<20 || got.Host.Zone() != "dc1/room2" || !got.TLS.Enabled() {
		t.Errorf("got %+v", got)
	}
	if a := got.Upload.Server.Address(netip.IPv6Loopback()); a != "10.0.0.5:4100" {
		t.Errorf("address is %s", a)
	}
	def := config.DefaultPeer()
	if def.InSwarm() || def.TLS.Enabled() {
		t.Error("a node with an empty file exchanges blobs with others")
	}
	for ip, want := range map[netip.Addr]string{{}: ":4000", netip.MustParseAddr("127.0.0.1"): "127.0.0.1:4000", netip.IPv6Loopback(): "[::1]:4000"} {
		if a := def.Upload.Server.Address(ip); a != want {
			t.Errorf("default address is %s, want %s", a, want)
		}
	}
	for zone, h := range map[string]config.Host{"": {}, "dc": {IDC: "dc"}, "room": {Location: "room"}} {
		if h.Zone() != zone {
			t.Errorf("zone of %+v is %q", h, h.Zone())
		}
	}
}

// Addresses need no quotes, however a list is written.
func TestAddressesNeedNoQuotes(t *testing.T) {
	for _, text := range []string{
		"scheduler: {addresses: [a.test:8002, 10.0.0.1:9]}",
		"scheduler: {addresses: [ a.test:8002 , 10.0.0.1:9 ]}",
		"scheduler: {addresses: [\"a.test:8002\", '10.0.0.1:9']}",
		"scheduler:\n  addresses: [a.test:8002, 10.0.0.1:9]",
		"scheduler:\n  addresses:\n  - a.test:8002\n  - 10.0.0.1:9",
	} {
		got, err := parse(text)
		if a := got.Scheduler.Addresses; err != nil || len(a) != 2 || a[0] != "a.test:8002" || a[1] != "10.0.0.1:9" {
			t.Errorf("%s: got %q, %v", text, a, err)
		}
	}
	for _, text := range []string{
		"scheduler: {addresses: [a.test: 8002]}",
		"scheduler: {addresses: [{a.test: 8002}]}",
		"scheduler: {addresses: [a.test:]}",
		"scheduler: {addresses: [{a: 1, b: 2}]}",
		"scheduler: {addresses: [{}]}",
		"scheduler: {addresses: [[a]]}",
		"scheduler:\n  addresses:\n  - a.test: 8002",
	} {
		if got, err := parse(text); err == nil {
			t.Errorf("%s: got %q, want an error", text, got.Scheduler.Addresses)
		}
	}
}

func TestSwarmKeysAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"scheduler: {addresses: [\"\"]}":                        "scheduler.addresses",
		"scheduler: {addresses: [\"http://s.test\"]}":           "scheduler.addresses",
		"scheduler: {addresses: [\"s.test:\"]}":                 "scheduler.addresses",
		"scheduler: {addresses: [\"s.test:70000\"]}":            "scheduler.addresses",
		"scheduler: {addresses: [\"s test\"]}":                  "scheduler.addresses",
		"scheduler: {adresses: []}":                             "scheduler.adresses",
		"seedPeer: {addresses: [\"a:0\"]}":                      "seedPeer.addresses",
		"upload: {advertise: \":4000\"}":                        "upload.advertise",
		"upload: {slots: 0}":                                    "upload.slots",
		"upload: {server: {port: 0}}\nseedPeer: {enable: true}": "upload.server.port",
		"upload: {server: {ip: nonsense}}":                      "upload.server.ip",
		"tls: {ca: /ca.pem}":                                    "tls.cert",
		"download: {rateLimit: 10G}":                            "download.rateLimit",
	} {
		_, err := parse(text)
		if err == nil || !strings.Contains(err.Error(), ": "+want+": ") && !strings.Contains(err.Error(), " "+want+": ") {
			t.Errorf("%s: error %v, want one about %s", text, err, want)
		}
	}
	if _, err := parse("upload: {server: {port: 0}}"); err != nil {
		t.Errorf("no port for a node alone: %v", err)
	}
}
