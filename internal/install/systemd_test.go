package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "peer.yaml")
	s := Systemd{Unit: filepath.Join(dir, "system", "skimmer.service"), Binary: "/usr/local/bin/skimmer", PeerConfig: config}
	if s.Name() != "skimmer.service" {
		t.Errorf("name %q", s.Name())
	}
	do(t, s.Install)
	text := string(read(t, s.Unit))
	for _, line := range []string{
		"ExecStart=/usr/local/bin/skimmer peer --config " + config, "Type=notify", "KillMode=process", "Restart=always",
		"Before=containerd.service", "MountFlags=shared", "OOMScoreAdjust=-999",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("unit lacks %s", line)
		}
	}
	for _, word := range []string{"PrivateTmp=", "ProtectSystem=", "ProtectHome=", "PrivateMounts="} {
		if strings.Contains(text, word) {
			t.Errorf("unit has %s, which hides mounts from containers", word)
		}
	}
	if again, err := s.Install(); err != nil || !again.Empty() {
		t.Errorf("again: %v\n%s", err, again.Diff())
	}
	if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
		real := s
		real.Binary = analyze // which has to exist
		do(t, real.Install)
		out, err := exec.Command(analyze, "verify", "--man=no", s.Unit).CombinedOutput()
		if err != nil || strings.Contains(string(out), "skimmer.service:") {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
	do(t, s.Uninstall)
	if _, err := os.Stat(s.Unit); !os.IsNotExist(err) {
		t.Errorf("the unit is still there: %v", err)
	}
	if again, err := s.Uninstall(); err != nil || !again.Empty() {
		t.Errorf("uninstall again: %v", err)
	}

	if err := os.WriteFile(s.Unit, []byte("[Service]\nExecStart=/other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Install(); blob.KindOf(err) != blob.Invalid {
		t.Errorf("over somebody else's unit: %v", err)
	}
	if _, err := s.Uninstall(); blob.KindOf(err) != blob.Invalid {
		t.Errorf("removing somebody else's unit: %v", err)
	}
	s.Binary = "bin/skimmer"
	if _, err := s.Install(); blob.KindOf(err) != blob.Invalid {
		t.Errorf("relative program: %v", err)
	}
}

// TestReadContainerd reads what was installed, as doctor does.
func TestReadContainerd(t *testing.T) {
	for _, sample := range []string{"v2-comments", "v3-default", "v4", "v2-dotted"} {
		c := world(t, read(t, "testdata/config/"+sample+".toml"), "2.1.0")
		before, err := ReadContainerd(c.Config)
		if err != nil || before.Snapshotter == "stargz" || before.Annotations {
			t.Errorf("%s before: %+v, %v", sample, before, err)
		}
		do(t, c.Install)
		got, err := ReadContainerd(c.Config)
		if err != nil || got.Snapshotter != "stargz" || !got.Annotations || got.Proxies["stargz"] != c.Address {
			t.Errorf("%s: %+v, %v", sample, got, err)
		}
	}
	if _, err := ReadContainerd(filepath.Join(t.TempDir(), "none")); blob.KindOf(err) != blob.NotFound {
		t.Errorf("no file: %v", err)
	}
}
