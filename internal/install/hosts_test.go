package install

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func apply(t *testing.T, plan func() (*Change, error)) *Change {
	t.Helper()
	c, err := plan()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHosts(t *testing.T) {
	dir := t.TempDir()
	h := Hosts{Dir: dir, Registry: "docker.io", Mirror: "http://127.0.0.1:4001"}
	apply(t, h.Install)
	path := filepath.Join(dir, "docker.io", "hosts.toml")
	want := `# Written by skimmer install containerd.
server = "https://registry-1.docker.io"

[host."http://127.0.0.1:4001"]
  capabilities = ["pull", "resolve"]
  [host."http://127.0.0.1:4001".header]
    X-Dragonfly-Registry = ["https://registry-1.docker.io"]
`
	if text, err := os.ReadFile(path); err != nil || string(text) != want {
		t.Errorf("wrote %v:\n%s", err, text)
	}
	if c := apply(t, h.Install); !c.Empty() {
		t.Errorf("installing again changes\n%s", c.Diff())
	}
	h.Mirror = "http://127.0.0.1:5001"
	apply(t, h.Install)
	if text, err := os.ReadFile(path); err != nil || string(text) != strings.ReplaceAll(want, "4001", "5001") {
		t.Errorf("moved to %v:\n%s", err, text)
	}
	apply(t, Hosts{Dir: dir, Registry: "_default", Mirror: h.Mirror}.Install)
	if found, err := InstalledHosts(dir); err != nil || !slices.Equal(found, []string{"_default", "docker.io"}) {
		t.Errorf("found %v, %v", found, err)
	}
	apply(t, Hosts{Dir: dir, Registry: "docker.io"}.Uninstall)
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("what is left of it: %v", err)
	}
	if c := apply(t, Hosts{Dir: dir, Registry: "docker.io"}.Uninstall); !c.Empty() {
		t.Errorf("uninstalling again changes\n%s", c.Diff())
	}
}

// What others wrote stays as it was, behind what is added.
func TestHostsOfOthers(t *testing.T) {
	for name, text := range map[string]string{
		"only server": "server = \"https://r.example\"",
		"another mirror": `# ours
server = "https://r.example"
skip_verify = true

# the old one
[host."https://old.example"]
  capabilities = ["pull"]
`,
		"empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "r.example", "hosts.toml")
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			h := Hosts{Dir: dir, Registry: "r.example", Mirror: "http://127.0.0.1:4001"}
			c := apply(t, h.Install)
			after := string(c.After)
			if i, j := strings.Index(after, "127.0.0.1:4001"), strings.Index(after, "old.example"); i < 0 || j >= 0 && j < i {
				t.Errorf("wrote\n%s", after)
			}
			if c := apply(t, h.Install); !c.Empty() {
				t.Errorf("installing again changes\n%s", c.Diff())
			}
			apply(t, h.Uninstall)
			got, err := os.ReadFile(path)
			if err != nil || strings.TrimSpace(string(got)) != strings.TrimSpace(text) {
				t.Errorf("left %v:\n%s\nwant\n%s", err, got, text)
			}
		})
	}
}

func TestHostsRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, h := range map[string]Hosts{
		"path":     {Dir: dir, Registry: "../etc", Mirror: "http://127.0.0.1:4001"},
		"url":      {Dir: dir, Registry: "https://docker.io", Mirror: "http://127.0.0.1:4001"},
		"mirror":   {Dir: dir, Registry: "docker.io", Mirror: "127.0.0.1:4001"},
		"password": {Dir: dir, Registry: "docker.io", Mirror: "http://127.0.0.1:4001", Server: "https://u:p@docker.io"},
	} {
		if _, err := h.Install(); blob.KindOf(err) != blob.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(dir, "r.example", "hosts.toml")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"not toml":      "server = ",
		"there before":  "[host.\"http://127.0.0.1:4001\"]\n",
		"host no table": "host = 1\n",
		"cut":           hostsBegin + "\n[host.a]\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := (Hosts{Dir: dir, Registry: "r.example", Mirror: "http://127.0.0.1:4001"}).Install(); blob.KindOf(err) != blob.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// CRI is told of the directory, and untold, whatever version of containerd.
func TestHostsDir(t *testing.T) {
	for version, text := range map[string]string{
		"1.7.0":      "version = 2\n",
		"2.0.0":      "version = 3\n",
		"2.1.0 kept": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/etc/elsewhere:/etc/docker/certs.d'\n",
	} {
		for _, dir := range []string{DefaultHostsDir, "/srv/certs.d"} {
			t.Run(version+" "+dir, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "config.toml")
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				c := Containerd{Config: path, Address: "/run/s.sock", Version: strings.Fields(version)[0], HostsDir: dir}
				apply(t, c.Install)
				want := dir
				if strings.Contains(text, "elsewhere") {
					want = "/etc/elsewhere"
				}
				if found, err := c.FindHostsDir(); err != nil || found != want {
					t.Errorf("containerd looks in %s, %v", found, err)
				}
				if again := apply(t, c.Install); !again.Empty() {
					t.Errorf("installing again changes\n%s", again.Diff())
				}
				apply(t, Containerd{Config: path}.Uninstall)
				if got, err := os.ReadFile(path); err != nil || string(got) != text {
					t.Errorf("left %v:\n%s", err, got)
				}
			})
		}
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	old := "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'docker.io']\n  endpoint = ['https://m.example']\n"
	if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (Containerd{Config: path, Address: "/run/s.sock", Version: "1.7.0", HostsDir: DefaultHostsDir}).Install(); blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), "registry.mirrors") {
		t.Errorf("mirrors in the old way: %v", err)
	}
}
