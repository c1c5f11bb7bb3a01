package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"skimmer/internal/lab/distribute"
)

func TestBenchDistributeFlags(t *testing.T) {
	this, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good := distributeFlags{nodes: 4, seeds: 1, size: "64MiB", rate: "200Mbit", modes: "swarm"}
	cfg, err := good.config()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Nodes != 4 || cfg.Seeds != 1 || cfg.Size != 64<<20 || cfg.Rate != 200_000_000 || cfg.Skimmer != this ||
		!slices.Equal(cfg.Modes, []distribute.Mode{distribute.Swarm}) {
		t.Errorf("experiment %+v", cfg)
	}
	good.rate = "0"
	if cfg, err = good.config(); err != nil || cfg.Rate != 0 {
		t.Errorf("no limit: %d, %v", cfg.Rate, err)
	}
	for flag, spoil := range map[string]func(*distributeFlags){
		"--nodes":   func(f *distributeFlags) { f.nodes = 0 },
		"--seeds":   func(f *distributeFlags) { f.seeds = -1 },
		"--size":    func(f *distributeFlags) { f.size = "big" },
		"--rate":    func(f *distributeFlags) { f.rate = "fast" },
		"--modes":   func(f *distributeFlags) { f.modes = "torrent" },
		"--skimmer": func(f *distributeFlags) { f.skimmer = "/no/such/program" },
	} {
		bad := good
		spoil(&bad)
		if _, err := bad.config(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: error %v", flag, err)
		}
	}
}
