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
	good := coldstartFlags{images: "python, busybox", shapes: "5ms/200Mbit,none", runs: 2, containerd: this}
	cfg, err := good.config()
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Images) != 2 || len(cfg.Paths) != 2 || cfg.Skimmer != this {
		t.Errorf("experiment %+v", cfg)
	}
	if want := []coldstart.Mode{coldstart.Overlayfs, coldstart.Skimmer}; !slices.Equal(cfg.Modes, want) {
		t.Errorf("modes without a baseline: %v, want %v", cfg.Modes, want)
	}
	good.baseline = this
	if cfg, err = good.config(); err != nil || !slices.Equal(cfg.Modes, coldstart.DefaultModes()) {
		t.Errorf("modes with a baseline: %v, %v; want all", cfg.Modes, err)
	}
	for flag, spoil := range map[string]func(*coldstartFlags){
		"--images":     func(f *coldstartFlags) { f.images = "cobol" },
		"shape":        func(f *coldstartFlags) { f.shapes = "5ms" },
		"modes":        func(f *coldstartFlags) { f.modes = "nydus" },
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
