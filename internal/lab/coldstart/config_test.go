package coldstart

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"skimmer/internal/config"
	"skimmer/internal/lab"
)

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Path
		out  string
	}{
		{"none", Path{}, "none"},
		{"5ms/200Mbit", Path{5 * time.Millisecond, 200_000_000}, "5ms/200Mbit"},
		{"20ms/1000Mbit", Path{20 * time.Millisecond, 1_000_000_000}, "20ms/1Gbit"},
		{"0s/100kbit", Path{0, 100_000}, "0s/100kbit"},
		{"1s/0", Path{RTT: time.Second}, "1s/0"},
	} {
		got, err := ParsePath(c.in)
		if err != nil || got != c.want || got.String() != c.out {
			t.Errorf("ParsePath(%q) = %+v (%v), %v; want %+v (%s)", c.in, got, got, err, c.want, c.out)
		}
	}
	for _, in := range []string{
		"", "5ms", "5/200Mbit", "-1ms/1Gbit", "11s/1Gbit", "5ms/", "5ms/200", "5ms/99kbit", "5ms/-1Mbit", "5ms/1.5Mbit", "5ms/99999999999Gbit",
	} {
		if got, err := ParsePath(in); err == nil {
			t.Errorf("ParsePath(%q) = %+v, want an error", in, got)
		}
	}
}

func TestParseLists(t *testing.T) {
	if m, err := ParseModes("skimmer, overlayfs"); err != nil || !slices.Equal(m, []Mode{Skimmer, Overlayfs}) {
		t.Errorf("modes %v, %v", m, err)
	}
	for _, in := range []string{"", "nydus", "stargz,stargz"} {
		if m, err := ParseModes(in); err == nil {
			t.Errorf("ParseModes(%q) = %v, want an error", in, m)
		}
	}
	if p, err := ParsePaths("5ms/1Gbit, none"); err != nil || len(p) != 2 {
		t.Errorf("paths %v, %v", p, err)
	}
	for _, in := range []string{"", "none,none", "none,x"} {
		if p, err := ParsePaths(in); err == nil {
			t.Errorf("ParsePaths(%q) = %v, want an error", in, p)
		}
	}
}

// TestPeerConfig reads the node's configuration with the code that will.
func TestPeerConfig(t *testing.T) {
	cfg := config.DefaultPeer()
	d := daemonConfig{mode: Skimmer, dir: "/x y", socket: "/x y/s.sock", containerd: "/x y/c.sock"}
	if err := config.Parse("peer.yaml", []byte(d.peerConfig()), &cfg); err != nil {
		t.Fatal(err)
	}
	s := cfg.Snapshotter
	if cfg.DataDir != "/x y/data" || s.Socket != "/x y/s.sock" || s.Containerd != "/x y/c.sock" || !s.Enable {
		t.Errorf("read %+v", cfg)
	}
	if cfg.InSwarm() {
		t.Error("a node without a cluster is in one")
	}
	if cfg.Metrics.Server.Port != 0 || cfg.Health.Server.Port != 0 || cfg.Proxy.Server.Port != 0 {
		t.Errorf("ports %d, %d and %d, want none", cfg.Metrics.Server.Port, cfg.Health.Server.Port, cfg.Proxy.Server.Port)
	}
}

// TestMemberConfig reads that of a node that has a cluster.
func TestMemberConfig(t *testing.T) {
	cfg := config.DefaultPeer()
	d := daemonConfig{
		mode: Skimmer, dir: "/x", socket: "/x/s.sock", containerd: "/x/c.sock",
		member: &member{scheduler: "127.0.0.1:1001", port: 1002, advertise: "127.0.0.1:1003"}, more: "lazy: {background: false}\n",
	}
	if err := config.Parse("peer.yaml", []byte(d.peerConfig()), &cfg); err != nil {
		t.Fatal(err)
	}
	if u := cfg.Upload; u.Server.Port != 1002 || u.Advertise != "127.0.0.1:1003" || !slices.Equal(cfg.Scheduler.Addresses, []string{"127.0.0.1:1001"}) || cfg.Lazy.Background {
		t.Errorf("read %+v", cfg)
	}
	if got, want := d.control(), cfg.RunDir+"/skimmer.sock"; got != want {
		t.Errorf("control socket %s, want %s", got, want)
	}
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		json             string
		joined, complete bool
		bytes            int64
	}{
		{`{}`, false, false, 0},
		{`{"swarm":{"schedulers":[{"up":false}],"bytes":{"fromPeers":5}},"snapshotter":{"pulled":[]}}`, false, false, 5},
		{`{"swarm":{"schedulers":[{"up":false},{"up":true}]},"snapshotter":{"pulled":[{"complete":true},{"complete":false}]}}`, true, false, 0},
		{`{"snapshotter":{"pulled":[{"complete":true},{"complete":true}]}}`, false, true, 0},
	} {
		var s status
		if err := json.Unmarshal([]byte(c.json), &s); err != nil {
			t.Fatal(err)
		}
		if s.joined() != c.joined || s.complete() != c.complete || s.fromPeers() != c.bytes {
			t.Errorf("%s: joined %v, complete %v, %d bytes", c.json, s.joined(), s.complete(), s.fromPeers())
		}
	}
}

func TestCheck(t *testing.T) {
	python, _ := lab.SpecNamed("python")
	good := Config{Images: []lab.Spec{python}, Imports: true, Modes: []Mode{Overlayfs}, Paths: []Path{{}}, Runs: 1}
	if err := good.check(); err != nil {
		t.Errorf("good configuration: %v", err)
	}
	if cases := good.cases(); len(cases) != 2 || cases[0].name != "python" || !strings.Contains(cases[1].name, "imports") {
		t.Errorf("cases %v", cases)
	}
	node, _ := lab.SpecNamed("node")
	good.Images, good.Whole = []lab.Spec{node, python}, true
	cases := good.cases()
	if len(cases) != 4 || cases[1].name != "node, read through" {
		t.Fatalf("cases %v", cases)
	}
	if got := cases[1].modes([]Mode{Skimmer, Stargz, SkimmerPeers}); !slices.Equal(got, []Mode{Skimmer}) {
		t.Errorf("an image is read through in modes %v", got)
	}
	if got := cases[0].modes(DefaultModes()); !slices.Equal(got, DefaultModes()) {
		t.Errorf("an image is started in modes %v", got)
	}
	for name, spoil := range map[string]func(*Config){
		"no images":  func(c *Config) { c.Images = nil },
		"no modes":   func(c *Config) { c.Modes = nil },
		"no paths":   func(c *Config) { c.Paths = nil },
		"no runs":    func(c *Config) { c.Runs = 0 },
		"no stargz":  func(c *Config) { c.Modes = []Mode{Stargz} },
		"no skimmer": func(c *Config) { c.Modes = []Mode{Skimmer} },
		"no profile": func(c *Config) { c.Modes = []Mode{SkimmerProfile} },
		"no state":   func(c *Config) { c.Skimmer = "/s"; c.Modes = []Mode{SkimmerPeers} },
		"no mirror":  func(c *Config) { c.Modes = []Mode{OverlayfsMirror} },
		"no stock":   func(c *Config) { c.Skimmer = "/s"; c.Modes = []Mode{StargzMirror} },
	} {
		bad := good
		spoil(&bad)
		if bad.check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
