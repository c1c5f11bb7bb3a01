package distribute

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/lab/cluster"
)

func TestBound(t *testing.T) {
	const size, rate = 25_000_000, 200_000_000 // a second to send once
	for _, c := range []struct {
		nodes, seeds int
		want         time.Duration
	}{
		{1, 0, time.Second}, {8, 0, time.Second}, {8, 2, time.Second},
	} {
		if got := Bound(size, rate, c.nodes, c.seeds); got != c.want {
			t.Errorf("%d nodes, %d seeds: %v, want %v", c.nodes, c.seeds, got, c.want)
		}
	}
	if got := Bound(size, 0, 8, 0); got != 0 {
		t.Errorf("no limit: %v", got)
	}
}

// report is what an experiment may have measured.
func report() Report {
	nodes := func(first, second time.Duration) []NodeResult {
		return []NodeResult{{Name: "n1", Time: first}, {Name: "n2", Time: second}}
	}
	r := Report{Machine: Machine{"6.1", 2, "cubic"}, Nodes: 2, Seeds: 1, Size: 100e6, Rate: 200e6, Results: []Result{
		{
			Mode: Direct, Bound: 4 * time.Second, Nodes: nodes(9*time.Second, 8*time.Second), Origin: cluster.Sent{Bytes: 200e6, Again: 100e6}, Egress: 2,
			Samples: []Sample{{0, 0, []int64{0, 0}}, {10 * time.Second, 210e6, []int64{105e6, 105e6}}},
		},
		{
			Mode: Swarm, Bound: 4 * time.Second, Nodes: nodes(5*time.Second, 4500*time.Millisecond), Origin: cluster.Sent{Bytes: 101e6, Again: 1e6}, Egress: 1.01,
			Helpers: []cluster.Usage{{CPU: time.Second, Peak: 64 << 20}},
			Samples: []Sample{{0, 0, []int64{0, 0}}, {5 * time.Second, 106e6, []int64{105e6, 105e6}}},
		},
	}}
	for i := range r.Results[1].Nodes {
		r.Results[1].Nodes[i].Copied = r.Results[1].Nodes[i].Time + time.Second
		r.Results[1].Nodes[i].Usage = &cluster.Usage{CPU: time.Second, Peak: 128 << 20}
	}
	return r
}

func TestWriteTable(t *testing.T) {
	var out strings.Builder
	if err := report().WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"100.0 MB to 2 nodes and 1 seeds, every link 200 Mbit/s each way",
		"direct  9.00 s     8.00 s      4.00 s       2.25     –          2.000          100.00 MB   –           –",
		"swarm   5.00 s     4.50 s      4.00 s       1.25     6.00 s     1.010          1.00 MB     10.00 s     128 MiB",
		"n1    9.00 s  5.00 s  6.00 s  1.00 s  128 MiB",
		"n2    8.00 s  4.50 s  5.50 s  1.00 s  128 MiB",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestWriteSVG(t *testing.T) {
	for name, r := range map[string]Report{"full": report(), "nothing": {Size: 1}} {
		var out strings.Builder
		if err := r.WriteSVG(&out); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v in\n%s", name, err, out.String())
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
				lines++
			}
		}
		if want := 2 * len(r.Results); lines != want {
			t.Errorf("%s: %d lines, want one for each node and mode, %d", name, lines, want)
		}
		if strings.Contains(out.String(), "NaN") || strings.Contains(out.String(), "Inf") {
			t.Errorf("%s: places that are none:\n%s", name, out.String())
		}
	}
}

func TestBadConfig(t *testing.T) {
	good := Config{Nodes: 2, Size: 1, Modes: []Mode{Direct}}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"nodes": func(c *Config) { c.Nodes = 0 }, "too many": func(c *Config) { c.Seeds = cluster.MaxNodes },
		"size": func(c *Config) { c.Size = 0 }, "rate": func(c *Config) { c.Rate = -1 },
		"modes": func(c *Config) { c.Modes = nil }, "program": func(c *Config) { c.Modes = []Mode{Swarm} },
	} {
		bad := good
		spoil(&bad)
		if _, err := Run(t.Context(), bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestDirect measures what needs none of us.
func TestDirect(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root, and CI must have it")
		}
		t.Skip("NOT TESTED: network namespaces need root")
	}
	const size, nodes, rate = 1 << 20, 3, 100_000_000
	dir := filepath.Join(t.TempDir(), "d")
	r, err := Run(t.Context(), Config{Dir: dir, Nodes: nodes, Size: size, Rate: rate, Modes: []Mode{Direct}})
	if err != nil {
		t.Fatal(err)
	}
	res := r.Results[0]
	if want := (cluster.Sent{Requests: nodes, Bytes: nodes * size, Again: (nodes - 1) * size}); res.Origin != want || res.Egress != nodes {
		t.Errorf("the origin sent %+v, %v times the file; want %+v", res.Origin, res.Egress, want)
	}
	// All of it has to pass the origin's link.
	if least := 9 * nodes * res.Bound / 10; res.Makespan() < least {
		t.Errorf("done after %v, want at least %v", res.Makespan(), least)
	}
	last := res.Samples[len(res.Samples)-1]
	for i, n := range last.Received {
		if n < size {
			t.Errorf("node %d received %d bytes, less than the file has", i+1, n)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory afterwards: %v", err)
	}
}
