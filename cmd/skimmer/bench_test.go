package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"skimmer/internal/lab/coldstart"
)

func TestBenchColdstartFlags(t *testing.T) {
	this, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Any program that exists will do where none is started.
	good := coldstartFlags{images: "python, busybox", shapes: "5ms/200Mbit,none", runs: 2, containerd: this, peerShape: "500us/1Gbit", firstNode: "started", whole: true, chunkSize: 1 << 20}
	cfg, err := good.config()
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Images) != 2 || len(cfg.Paths) != 2 || cfg.Skimmer != this {
		t.Errorf("experiment %+v", cfg)
	}
	if cfg.PeerPath.Bits != 1_000_000_000 || cfg.FirstNode != coldstart.Started || !cfg.Whole {
		t.Errorf("experiment %+v", cfg)
	}
	if want := []coldstart.Mode{coldstart.Overlayfs, coldstart.Skimmer, coldstart.SkimmerProfile, coldstart.SkimmerPeers}; !slices.Equal(cfg.Modes, want) {
		t.Errorf("modes without a baseline: %v, want %v", cfg.Modes, want)
	}
	good.baseline = this
	if cfg, err = good.config(); err != nil || !slices.Equal(cfg.Modes, coldstart.DefaultModes()) {
		t.Errorf("modes with a baseline: %v, %v; want all", cfg.Modes, err)
	}
	for flag, spoil := range map[string]func(*coldstartFlags){
		"--images":     func(f *coldstartFlags) { f.images = "cobol" },
		"--chunk-size": func(f *coldstartFlags) { f.chunkSize = 0 },
		"shape":        func(f *coldstartFlags) { f.shapes = "5ms" },
		"modes":        func(f *coldstartFlags) { f.modes = "nydus" },
		"--peer-shape": func(f *coldstartFlags) { f.peerShape = "fast" },
		"--first-node": func(f *coldstartFlags) { f.firstNode = "gone" },
		"--runs":       func(f *coldstartFlags) { f.runs = 0 },
		"--baseline":   func(f *coldstartFlags) { f.baseline = "/no/such/program" },
		"--containerd": func(f *coldstartFlags) { f.containerd = "/no/such/program" },
	} {
		bad := good
		spoil(&bad)
		if _, err := bad.config(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: error %v", flag, err)
		}
	}
}

func TestBenchCommandLine(t *testing.T) {
	cmd := newBenchColdstartCommand(newApp())
	if err := cmd.ParseFlags([]string{"--runs", "7", "--baseline", "/tmp/there", "--html", "x.html", "--read-through=false"}); err != nil {
		t.Fatal(err)
	}
	if got, want := commandLine(cmd), "coldstart --baseline bin/stargz-snapshotter --read-through=false --runs=7"; got != want {
		t.Errorf("command %q, want %q", got, want)
	}
}
