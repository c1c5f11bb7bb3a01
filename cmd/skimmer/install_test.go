package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skimmer/internal/config"
	"skimmer/internal/install/doctor"
)

// TestInstallContainerd goes the way of somebody who looks first, installs,
// and changes their mind.
func TestInstallContainerd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	const original = "version = 2\n# mine\n[debug]\n  level = \"info\"\n"
	if err := os.WriteFile(file, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		stdout, _ := mustRun(t, "", append(args, "--config", file)...)
		return stdout
	}
	has := func(want string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%v: no %q in\n%s", err, want, text)
		}
	}
	diff := run("install", "containerd", "--dry-run", "--address", "/s.sock", "--name", "skimmer", "--containerd-version", "1.7.1")
	if !strings.Contains(diff, "+[proxy_plugins.skimmer]") || strings.Contains(diff, "\n-") {
		t.Errorf("diff:\n%s", diff)
	}
	has(original)
	if out := run("install", "containerd", "--address", "/s.sock", "--containerd-version", "1.7.1"); !strings.Contains(out, "wrote "+file) || !strings.Contains(out, "restart containerd") {
		t.Errorf("install printed %q", out)
	}
	has(`address = "/s.sock"`)
	if out := run("install", "containerd", "--address", "/s.sock", "--restart"); out != file+": nothing to do\n" {
		t.Errorf("install again printed %q", out)
	}
	if out := run("uninstall", "containerd", "--dry-run"); !strings.Contains(out, "-[proxy_plugins.stargz]") {
		t.Errorf("diff of uninstall:\n%s", out)
	}
	var got changed
	if err := json.Unmarshal([]byte(run("uninstall", "containerd", "-o", "json")), &got); err != nil || !got.Changed || got.Path != file {
		t.Errorf("uninstall: %+v, %v", got, err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != original {
		t.Errorf("uninstall left %q, %v", text, err)
	}
}

func TestInstallSystemd(t *testing.T) {
	dir := t.TempDir()
	unit, cfg := filepath.Join(dir, "x.service"), filepath.Join(dir, "peer.yaml")
	install := []string{"install", "systemd", "--unit", unit, "--config", cfg}
	stdout, stderr := mustRun(t, "", append(install, "--dry-run")...)
	if !strings.Contains(stdout, "+ExecStart=") || !strings.Contains(stderr, cfg) {
		t.Errorf("dry run printed\n%s%s", stdout, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("dry run left %v, %v", left, err)
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return // the rest would change the services of this machine
	}
	mustRun(t, "", install...)
	var peer config.Peer
	if err := config.Load(cfg, &peer); err != nil {
		t.Errorf("the configuration that was written: %v", err)
	}
	if stdout, _ := mustRun(t, "", install...); stdout != unit+": nothing to do\n" {
		t.Errorf("again: %q", stdout)
	}
	if _, _, err := runImage(t.Context(), "", append(install, "--now")...); err == nil || !strings.Contains(err.Error(), "does not run systemd") {
		t.Errorf("--now without systemd: %v", err)
	}
	if stdout, _ := mustRun(t, "", "uninstall", "systemd", "--unit", unit); stdout != "removed "+unit+"\n" {
		t.Errorf("uninstall printed %q", stdout)
	}
}

func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := filepath.Join(dir, "peer.yaml")
	if err := os.WriteFile(cfg, []byte("dataDir: "+dir+"\nrunDir: "+dir+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	stdout, _, err := runImage(t.Context(), "", "doctor", "--config", cfg, "--containerd", filepath.Join(dir, "c.sock"),
		"--scheduler", l.Addr().String(), "-o", "json")
	if err == nil {
		t.Error("doctor finds nothing wrong where nothing runs")
	}
	var checks []doctor.Check
	if err := json.Unmarshal([]byte(stdout), &checks); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	status := make(map[string]doctor.Status)
	for _, c := range checks {
		status[c.Name] = c.Status
	}
	if status["snapshotter"] != doctor.Fail || status["scheduler"] != doctor.OK || status["sparse"] != doctor.OK {
		t.Errorf("checks %v", status)
	}
	table, _, _ := runImage(t.Context(), "", "doctor", "--config", cfg, "--containerd", filepath.Join(dir, "c.sock"))
	if !strings.Contains(table, "FAIL  snapshotter") || !strings.Contains(table, "-> start the peer") {
		t.Errorf("table:\n%s", table)
	}
}

func TestPullIntoContainerdRefuses(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	for want, args := range map[string][]string{
		"connect to containerd on " + socket: {"example.test/a:1", "--containerd", socket},
		"--snapshotter is for pulling into":  {"example.test/a:1", "dir", "--snapshotter", "x"},
		"--jobs is for copying":              {"example.test/a:1", "--jobs", "2"},
		"containerd takes one":               {"example.test/a:1", "--platform", "linux/amd64", "--platform", "linux/arm64"},
		"between 1 and 2":                    {},
	} {
		_, _, err := runImage(t.Context(), "", append([]string{"image", "pull"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pull %q: %v, want %q", args, err, want)
		}
	}
}
