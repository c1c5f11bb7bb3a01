//go:build e2e

package swarm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skimmer/internal/lab/distribute"
	"skimmer/internal/testkit"
)

// TestBenchDistribute runs the measurement with little.
func TestBenchDistribute(t *testing.T) {
	testkit.NeedMount(t)
	chart := filepath.Join(t.TempDir(), "chart.svg")
	out, err := output(t.Context(), binary, "bench", "distribute", "--nodes", "3", "--seeds", "1", "--size", "8MiB",
		"--rate", "200Mbit", "--svg", chart, "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var r distribute.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("decode %.200s: %v", out, err)
	}
	if len(r.Results) != 2 {
		t.Fatalf("%d modes, want 2", len(r.Results))
	}
	direct, swarm := r.Results[0], r.Results[1]
	if direct.Egress < 3 || swarm.Egress > once {
		t.Errorf("left the origin: directly %.3f times the file, by the swarm %.3f times", direct.Egress, swarm.Egress)
	}
	for _, n := range swarm.Nodes {
		if n.Usage == nil || n.Usage.Peak == 0 || n.Time == 0 {
			t.Errorf("node %+v", n)
		}
	}
	drawn, err := os.ReadFile(chart)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(drawn), "<polyline"); got != 6 {
		t.Errorf("the chart has %d lines, want 6", got)
	}
}
