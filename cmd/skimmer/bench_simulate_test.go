package main

import (
	"slices"
	"strings"
	"testing"

	"skimmer/internal/schedule/sim"
)

func TestBenchSimulateFlags(t *testing.T) {
	good := simulateFlags{runs: "lazy, cost", peers: "10, 200", slots: 3, width: 2, seed: 7}
	cfg, err := good.config()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cfg.Runs, []sim.Run{sim.Lazy, sim.Cost}) || !slices.Equal(cfg.Peers, []int{10, 200}) ||
		cfg.UploadSlots != 3 || cfg.Schedule.Width != 2 || cfg.Seed != 7 {
		t.Errorf("simulation %+v", cfg)
	}
	for flag, spoil := range map[string]func(*simulateFlags){
		"--runs":  func(f *simulateFlags) { f.runs = "lazy,eager" },
		"--peers": func(f *simulateFlags) { f.peers = "ten" },
		"--slots": func(f *simulateFlags) { f.slots = 0 },
		"--width": func(f *simulateFlags) { f.width = -1 },
	} {
		bad := good
		spoil(&bad)
		if _, err := bad.config(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: error %v", flag, err)
		}
	}
}
