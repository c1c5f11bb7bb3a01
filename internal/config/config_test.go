package config_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/config"
)

// equal compares configurations; their addresses have unexported fields.
var equal = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func parse(text string) (config.Peer, error) {
	c := config.DefaultPeer()
	err := config.Parse("peer.yaml", []byte(text), &c)
	return c, err
}

func TestParse(t *testing.T) {
	got, err := parse(`
# A comment.
dataDir: /data
verbose: true
pprofPort: 6060
log:
  format: json
  level: DEBUG
metrics: {server: {port: 0}}
health:
  server:
    ip: "::1"
storage:
  highWater: 1.5TiB
  lowWater: 10GB
  minFree: 4096
origin:
  insecure: [localhost:5000, registry.test]
  caFiles:
    registry.test:443: [/a.pem, /b.pem]
    10.0.0.1:5000: []
  idleTimeout: 1h30m
  retries: 0
lazy:
  # everything below is commented out
runDir:
`)
	if err != nil {
		t.Fatal(err)
	}
	want := config.DefaultPeer()
	want.DataDir, want.Verbose, want.PprofPort = "/data", true, 6060
	want.Log.Format, want.Log.Level = config.FormatJSON, -4
	want.Metrics.Server.Port = 0
	if err := want.Health.Server.IP.UnmarshalText([]byte("::1")); err != nil {
		t.Fatal(err)
	}
	want.Storage = config.Storage{HighWater: 3 << 39, LowWater: 10e9, MinFree: 4096}
	want.Origin.Insecure = []string{"localhost:5000", "registry.test"}
	want.Origin.CAFiles = map[string][]string{"registry.test:443": {"/a.pem", "/b.pem"}, "10.0.0.1:5000": {}}
	want.Origin.IdleTimeout = config.Duration(90 * time.Minute)
	want.Origin.Retries = 0
	if d := cmp.Diff(want, got, equal); d != "" {
		t.Errorf("parsed differs (-want +got):\n%s", d)
	}
	if a, b := got.Metrics.Server.Address(), got.Health.Server.Address(); a != "" || b != "[::1]:4003" {
		t.Errorf("addresses = %q, %q", a, b)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "dataDir: /a\nbogus: 1\n",
			"peer.yaml:2:1: bogus: unknown key (known here: dataDir, runDir, verbose, pprofPort, log, metrics, health, tracing, storage, origin, lazy, snapshotter, credentials, scheduler, seedPeer, upload, download, host, tls, proxy)"},
		{"unknown key further down", "lazy:\n  ioTimout: 5m\n",
			"peer.yaml:2:3: lazy.ioTimout: unknown key (known here: ioTimeout, background, backgroundDelay, backgroundRateLimit, readAheadMax, profiles)"},
		{"wrong case", "storage: {highwater: 1}", "peer.yaml:1:11: storage.highwater: unknown key: it is written highWater"},
		{"key twice", "verbose: true\nverbose: false\n", `peer.yaml:2:1: mapping key "verbose" already defined at [1:1]`},
		{"not yaml", "verbose: [true\n", "peer.yaml:1:10: sequence end token ']' not found"},
		{"not a mapping", "- a\n", "peer.yaml:1:1: needs keys of its own (dataDir, "},
		{"text for a section", "log: json\n", "peer.yaml:1:6: log: needs keys of its own (format, level)"},
		{"mapping for text", "dataDir: {a: b}\n", "peer.yaml:1:10: dataDir: needs text"},
		{"number for text", "runDir: 12\n", "peer.yaml:1:9: runDir: needs text: if this is meant, put it in quotes"},
		{"no map", "origin: {caFiles: [a]}\n", "peer.yaml:1:19: origin.caFiles: needs names with a value each"},
		{"map value", "origin:\n  caFiles:\n    a.test: b.pem\n", "peer.yaml:3:13: origin.caFiles.a.test: needs a list"},
		{"empty map value", "origin:\n  caFiles:\n    a.test:\n", "origin.caFiles.a.test: is empty"},
		{"text for bool", "verbose: yes\n", "peer.yaml:1:10: verbose: needs true or false"},
		{"number too large", "pprofPort: 65536\n", "peer.yaml:1:12: pprofPort: needs a whole number from 0 to 65535"},
		{"number negative", "pprofPort: -1\n", "peer.yaml:1:12: pprofPort: needs a whole number from 0 to 65535"},
		{"number broken", "origin: {retries: 1.5}\n", "origin.retries: needs a whole number from 0 to 255"},
		{"no list", "origin:\n  insecure: localhost\n", "peer.yaml:2:13: origin.insecure: needs a list"},
		{"list item", "origin:\n  insecure:\n  - a\n  - 5000\n", "peer.yaml:4:5: origin.insecure[1]: needs text"},
		{"empty list item", "origin:\n  insecure:\n  - a\n  -\n", "origin.insecure[1]: is empty"},
		{"size", "storage: {minFree: 10G}", `peer.yaml:1:20: storage.minFree: unknown unit "G": use B, KiB`},
		{"duration", "lazy: {ioTimeout: 5}", `peer.yaml:1:19: lazy.ioTimeout: "5" is not a duration: write it as 250ms`},
		{"list for size", "storage: {minFree: [1]}", "storage.minFree: needs a single value"},
		{"level", "log: {level: loud}", `log.level: "loud" is not a level: use debug, info, warn or error`},
		{"format", "log: {format: xml}", `log.format: "xml" is not a log format: use text or json`},
		{"address", "health: {server: {ip: localhost}}", `peer.yaml:1:23: health.server.ip: ParseAddr("localhost")`},
		{"anchor", "log: &a {level: info}", "peer.yaml:1:6: log: anchors, aliases and tags have no place in this file"},
		{"tag", "verbose: !!bool true", "peer.yaml:1:10: verbose: anchors, aliases and tags"},
		{"complex key", "? [a]\n: b\n", "peer.yaml:2:1: found an invalid key for this map"},
		{"second document", "verbose: true\n---\nverbose: false\n", "peer.yaml:3:8: a second document"},
		{"out of bounds", "lazy:\n  ioTimeout: 0s\n", "peer.yaml:2:3: lazy.ioTimeout: must be more than 0"},
		{"wrong together", "storage:\n  highWater: 1GiB\n  lowWater: 2GiB\n",
			"peer.yaml:3:3: storage.lowWater: is 2GiB: must not be more than highWater, which is 1GiB"},
		{"wrong in the outermost", "dataDir: data\n", `peer.yaml:1:1: dataDir: is "data": must be an absolute path`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.text)
			if err == nil {
				t.Fatalf("accepted:\n%s", c.text)
			}
			if got := err.Error(); !strings.HasPrefix(got, "read configuration: ") || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant one line with %s", got, c.want)
			}
		})
	}
}

func TestParseReportsEverything(t *testing.T) {
	_, err := parse("verbose: maybe\nbogus: 1\nlazy: {ioTimeout: 5}\n")
	var first *config.Problem
	if !errors.As(err, &first) || first.Key != "verbose" || first.Line != 1 || first.Column != 10 {
		t.Errorf("first problem = %+v", first)
	}
	if n := strings.Count(err.Error(), "peer.yaml:"); n != 3 {
		t.Errorf("%d problems reported, want 3:\n%v", n, err)
	}
}

// A key that is wrong by its default together with the file has no line.
func TestParseProblemWithoutPlace(t *testing.T) {
	c := config.DefaultPeer()
	c.Storage.LowWater = 5
	err := config.Parse("", nil, &c)
	if want := "read configuration: storage.lowWater: is 5: needs highWater to be set too"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "peer.yaml")
	if err := os.WriteFile(path, []byte("bogus: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.DefaultPeer()
	if err := config.Load(path, &c); err == nil || !strings.Contains(err.Error(), path+":1:1: bogus: ") {
		t.Errorf("load: %v", err)
	}
	if err := config.Load(path+".missing", &c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("load of a missing file: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := config.Load(path, &c); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("load of a huge file: %v", err)
	}
	c = config.DefaultPeer()
	if err := config.Load("", &c); err != nil {
		t.Errorf("load of no file: %v", err)
	}
	if d := cmp.Diff(config.DefaultPeer(), c, equal); d != "" {
		t.Errorf("no file changed the defaults:\n%s", d)
	}
}

func TestFind(t *testing.T) {
	if got := config.Find("/a/b.yaml", "peer"); got != "/a/b.yaml" {
		t.Errorf("a named file became %q", got)
	}
	if got := config.Find("", "no-such-role"); got != "" {
		t.Errorf("a missing default file became %q", got)
	}
}

func FuzzParse(f *testing.F) {
	sample, err := os.ReadFile("../../docs/config/peer.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	for _, s := range []string{
		"", "---\n", "verbose: true\n", "log: {level: debug, format: json}", "origin:\n  insecure:\n  - a\n  - b: c\n",
		"a: &a [*a]", "<<: {dataDir: /x}", "? [a]\n: b", "dataDir: |\n  /x\n", "pprofPort: 0x10", "lazy: !!map {}",
		"verbose: true\n---\nverbose: false", "storage: {minFree: 9999999999999999999EiB}", "\xff\xfe", "{", "- - - -",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := config.DefaultPeer()
		err := config.Parse("f", text, &c)
		if err == nil {
			if err := c.Validate(); err != nil {
				t.Errorf("accepted what is not valid: %v", err)
			}
			return
		}
		var p *config.Problem
		if !errors.As(err, &p) || p.File != "f" || p.Err.Error() == "" {
			t.Errorf("error without a place: %v", err)
		}
	})
}
