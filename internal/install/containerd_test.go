package install

import (
	"bytes"
	"compress/gzip"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"skimmer/internal/blob"
)

var update = flag.Bool("update", false, "write the golden diffs anew")

// world puts a sample where containerd would have it.
func world(t *testing.T, text []byte, version string) Containerd {
	t.Helper()
	c := Containerd{Config: filepath.Join(t.TempDir(), "config.toml"), Address: "/run/skimmer/snapshotter.sock", Version: version, Unpacker: "/usr/local/bin/skimmer"}
	if text != nil {
		if err := os.WriteFile(c.Config, text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// do applies a change.
func do(t *testing.T, change func() (*Change, error)) *Change {
	t.Helper()
	c, err := change()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(); err != nil {
		t.Fatal(err)
	}
	return c
}

var versions = map[byte]string{'2': "1.7.27", '3': "2.1.0", '4': "2.4.2"}

// TestGolden edits real configurations, shows the differences, and takes them
// back.
func TestGolden(t *testing.T) {
	samples, err := filepath.Glob("testdata/config/*.toml")
	if err != nil || len(samples) < 8 {
		t.Fatalf("samples %q, %v", samples, err)
	}
	for _, sample := range samples {
		name := strings.TrimSuffix(filepath.Base(sample), ".toml")
		t.Run(name, func(t *testing.T) {
			version := "1.6.20"
			if name[0] == 'v' {
				version = versions[name[1]]
			}
			original := read(t, sample)
			c := world(t, original, version)
			change := do(t, c.Install)
			// The golden diffs were made on amd64.
			diff := strings.ReplaceAll(change.Diff(), filepath.Dir(c.Config), "/etc/containerd")
			diff = strings.ReplaceAll(diff, unpackEntry("")["platform"].(string), "linux/amd64")
			golden := filepath.Join("testdata", "diff", name+".diff")
			if *update {
				if err := os.WriteFile(golden, []byte(diff), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(read(t, golden)), diff); d != "" {
				t.Errorf("golden -, now +; -update if it should be so:\n%s", d)
			}
			checkInstalled(t, read(t, c.Config), name)
			if info, err := os.Stat(c.Config); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("file is %v, %v; want the mode it had", info.Mode(), err)
			}

			if again, err := c.Install(); err != nil || !again.Empty() {
				t.Errorf("again: %v\n%s", err, again.Diff())
			}
			do(t, c.Uninstall)
			if got := read(t, c.Config); !bytes.Equal(got, original) {
				t.Errorf("after uninstall:\n%s", unified("original", "now", string(original), string(got)))
			}
			if _, err := os.Stat(c.Config + BackupSuffix); err == nil {
				t.Error("the backup is still there")
			}
			if again, err := c.Uninstall(); err != nil || !again.Empty() {
				t.Errorf("uninstall again: %v\n%s", err, again.Diff())
			}

			// A file that was changed in between keeps the change.
			do(t, c.Install)
			mine := "\n[ttrpc] # mine\n  uid = 7\n"
			if err := os.WriteFile(c.Config, append(read(t, c.Config), mine...), 0o640); err != nil {
				t.Fatal(err)
			}
			do(t, c.Uninstall)
			want := string(original)
			if !strings.HasSuffix(want, "\n") {
				want += "\n"
			}
			if got := string(read(t, c.Config)); got != want+mine {
				t.Errorf("after uninstall of a changed file:\n%s", unified("original and mine", "now", want+mine, got))
			}
		})
	}
}

// checkInstalled decodes a configuration with structs of its own.
func checkInstalled(t *testing.T, text []byte, name string) {
	t.Helper()
	type cri struct {
		Snapshotter string `toml:"snapshotter"`
		Disabled    *bool  `toml:"disable_snapshot_annotations"`
	}
	var cfg struct {
		Version int `toml:"version"`
		Plugins struct {
			V2 struct {
				Containerd cri `toml:"containerd"`
			} `toml:"io.containerd.grpc.v1.cri"`
			V3       cri `toml:"io.containerd.cri.v1.images"`
			Transfer struct {
				Unpack []struct {
					Snapshotter string `toml:"snapshotter"`
				} `toml:"unpack_config"`
			} `toml:"io.containerd.transfer.v1.local"`
		} `toml:"plugins"`
		Proxy map[string]struct {
			Type    string            `toml:"type"`
			Address string            `toml:"address"`
			Exports map[string]string `toml:"exports"`
		} `toml:"proxy_plugins"`
		Processors map[string]struct {
			Accepts, Args []string
			Returns, Path string
		} `toml:"stream_processors"`
	}
	if err := toml.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	got := cfg.Plugins.V2.Containerd
	if cfg.Version > 2 {
		got = cfg.Plugins.V3
	}
	if got.Snapshotter != "stargz" || got.Disabled == nil || *got.Disabled {
		t.Errorf("%s: CRI has %+v", name, got)
	}
	if u := cfg.Processors["skimmer"]; len(u.Accepts) != 2 || !strings.HasSuffix(u.Returns, ".layer.v1.tar") ||
		u.Path != "/bin/sh" || !slices.Equal(u.Args, []string{"-c", unpackScript, "/usr/local/bin/skimmer"}) {
		t.Errorf("%s: stream processor %+v", name, u)
	}
	p := cfg.Proxy["stargz"]
	if p.Type != "snapshot" || p.Address != "/run/skimmer/snapshotter.sock" {
		t.Errorf("%s: proxy plugin %+v", name, p)
	}
	if cfg.Version > 2 {
		if p.Exports["enable_remote_snapshot_annotations"] != "true" || p.Exports["root"] != "/var/lib/skimmer" {
			t.Errorf("%s: exports %v", name, p.Exports)
		}
		unpack := cfg.Plugins.Transfer.Unpack
		found := 0
		for _, u := range unpack {
			if u.Snapshotter == "stargz" {
				found++
			}
		}
		if len(unpack) < 2 || found != 1 {
			t.Errorf("%s: unpack_config %v: want ours beside what was there", name, unpack)
		}
	}
}

func TestNoFile(t *testing.T) {
	c := world(t, nil, "")
	if _, err := c.Install(); blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), "install containerd first") {
		t.Errorf("without a version: %v", err)
	}
	for version, want := range map[string]string{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3": "version = 2",
		"containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4":          "version = 3",
	} {
		c := world(t, nil, version)
		do(t, c.Install)
		text := read(t, c.Config)
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s: no %q in\n%s", version, want, text)
		}
		checkInstalled(t, text, version)
		if again, err := c.Install(); err != nil || !again.Empty() {
			t.Errorf("again: %v\n%s", err, again.Diff())
		}
		do(t, c.Uninstall)
		if _, err := os.Stat(c.Config); !os.IsNotExist(err) {
			t.Errorf("uninstall left %v:\n%s", err, read(t, c.Config))
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"version 1", "disabled_plugins = [\"cri\"]\n", "version 1"},
		{"future", "version = 9\n", "version 9 is not known"},
		{"broken", "version = 2\n[plugins\n", "line 2"},
		{"value", "version = 2\nproxy_plugins = 7\n", "not a table"},
		{"array", "version = 2\n[[proxy_plugins.stargz]]\ntype = \"snapshot\"\n", "not a table"},
		{"unpack", "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = 3\n", "not a list"},
	} {
		if _, err := world(t, []byte(c.text), "2.1.0").Install(); blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	for _, c := range []Containerd{{Name: "overlayfs"}, {Name: "a b"}, {Address: "relative"}, {Address: "/a\"b"}, {Address: ""}} {
		if _, err := c.Install(); blob.KindOf(err) != blob.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestImports(t *testing.T) {
	c := world(t, []byte("version = 2\nimports = [\"conf.d/*.toml\"]\n"), "1.7.0")
	dir := filepath.Join(filepath.Dir(c.Config), "conf.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	other, cri := filepath.Join(dir, "a.toml"), filepath.Join(dir, "b.toml")
	if err := os.WriteFile(other, []byte("version = 2\n[debug]\nlevel = \"info\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Install(); err != nil {
		t.Errorf("import about something else: %v", err)
	}
	if err := os.WriteFile(cri, []byte("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Install(); err == nil || !strings.Contains(err.Error(), "--config "+cri) {
		t.Errorf("import that overrides: %v", err)
	}
}

// TestUninstallKeepsChoices makes sure that what somebody decided since is
// not undone.
func TestUninstallKeepsChoices(t *testing.T) {
	original := read(t, "testdata/config/v2-comments.toml")
	c := world(t, original, "1.7.0")
	do(t, c.Install)
	text := bytes.ReplaceAll(read(t, c.Config), []byte(`snapshotter = "stargz"`), []byte(`snapshotter = "nydus"`))
	if err := os.WriteFile(c.Config, text, 0o640); err != nil {
		t.Fatal(err)
	}
	change := do(t, c.Uninstall)
	// The annotations are for nydus, too.
	want := strings.Replace(string(original), `snapshotter = "overlayfs"`, `snapshotter = "nydus"`, 1) + "\n"
	want = strings.Replace(want, "disable_snapshot_annotations = true", "disable_snapshot_annotations = false", 1)
	if got := string(read(t, c.Config)); got != want {
		t.Errorf("%s", unified("want", "got", want, got))
	}
	if len(change.Notes) != 2 || !strings.Contains(change.Notes[0], "nydus") {
		t.Errorf("notes %q", change.Notes)
	}
	// A stargz of somebody else is none of our business.
	c = world(t, read(t, "testdata/config/v2-stargz.toml"), "1.7.0")
	if change, err := c.Uninstall(); err != nil || !change.Empty() {
		t.Errorf("uninstall of what is not ours: %v\n%s", err, change.Diff())
	}
}

// TestTwoNames installs under two names, and takes one after the other back.
// A program that decompresses layers already goes on doing so: of two, containerd takes
// either.
func TestOtherUnpacker(t *testing.T) {
	text := "version = 2\n[stream_processors.fast]\naccepts = [\"application/vnd.oci.image.layer.v1.tar+gzip\"]\n" +
		"returns = \"application/vnd.oci.image.layer.v1.tar\"\npath = \"fast\"\n" +
		"[stream_processors.\"io.containerd.ocicrypt.decoder.v1.tar\"]\naccepts = [\"application/vnd.oci.image.layer.v1.tar+encrypted\"]\n"
	c := world(t, []byte(text), "1.7.0")
	change := do(t, c.Install)
	if got := string(read(t, c.Config)); strings.Contains(got, "stream_processors.skimmer") || len(change.Notes) != 1 || !strings.Contains(change.Notes[0], "fast") {
		t.Errorf("notes %q, and it is\n%s", change.Notes, got)
	}
	do(t, c.Uninstall)
	if got := string(read(t, c.Config)); got != text {
		t.Errorf("after uninstall:\n%s", unified("original", "now", text, got))
	}
	c = world(t, []byte("version = 2\n"), "1.7.0")
	c.Unpacker = "/home/a \"b\"/skimmer"
	if change := do(t, c.Install); len(change.Notes) != 1 || strings.Contains(string(read(t, c.Config)), "stream_processors") {
		t.Errorf("a path with quotes: notes %q, and it is\n%s", change.Notes, read(t, c.Config))
	}
	c = world(t, []byte(strings.Replace(text, "+gzip", "", 1)), "1.7.0")
	if change := do(t, c.Install); len(change.Notes) != 0 || !strings.Contains(string(read(t, c.Config)), "stream_processors.skimmer") {
		t.Errorf("beside others: notes %q, and it is\n%s", change.Notes, read(t, c.Config))
	}
}

// What containerd runs is our program, at whatever path; where that is gone, gzip.
func TestUnpackScript(t *testing.T) {
	program := filepath.Join(t.TempDir(), "a  b*", "skimmer")
	if err := os.Mkdir(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte("layer")); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	run := func() string {
		cmd := exec.Command("/bin/sh", "-c", unpackScript, program)
		cmd.Stdin = bytes.NewReader(packed.Bytes())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := run(); got != "layer" {
		t.Errorf("without the program it makes %q of the layer", got)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho ours $*\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := run(); got != "ours unpack-stream\n" {
		t.Errorf("with the program it makes %q of the layer", got)
	}
}

func TestTwoNames(t *testing.T) {
	original := read(t, "testdata/config/v2-comments.toml")
	a := world(t, original, "1.7.0")
	b := a
	a.Name, b.Name = "skimmer", "stargz"
	do(t, a.Install)
	other := a
	other.Name = "nydus"
	if change, err := other.Uninstall(); err != nil || !change.Empty() || len(change.Notes) != 1 {
		t.Errorf("uninstall of what is not there: %v\n%s", err, change.Diff())
	}
	do(t, b.Install)
	do(t, b.Uninstall)
	if text := string(read(t, a.Config)); strings.Contains(text, "stargz") || !strings.Contains(text, "[proxy_plugins.skimmer]") {
		t.Errorf("after uninstall of stargz:\n%s", text)
	}
	unnamed := a
	unnamed.Name = ""
	do(t, unnamed.Uninstall)
	if got := string(read(t, a.Config)); got != string(original)+"\n" {
		t.Errorf("%s", unified("original", "now", string(original)+"\n", got))
	}
	if _, err := os.Stat(a.Config + BackupSuffix); err == nil {
		t.Error("the backup is still there")
	}
}

func TestApplySeesOthers(t *testing.T) {
	c := world(t, []byte("version = 2\n"), "1.7.0")
	change, err := c.Install()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Config, []byte("version = 2\n# new\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := change.Apply(); blob.KindOf(err) != blob.Busy {
		t.Errorf("applied over a change of somebody else: %v", err)
	}
}

func TestApplyKeepsLink(t *testing.T) {
	c := world(t, []byte("version = 2\n"), "1.7.0")
	link := filepath.Join(t.TempDir(), "link.toml")
	if err := os.Symlink(c.Config, link); err != nil {
		t.Fatal(err)
	}
	linked := c
	linked.Config = link
	do(t, linked.Install)
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link became %v, %v", info.Mode(), err)
	}
	checkInstalled(t, read(t, c.Config), "linked")
}

// TestContainerdReads asks every containerd of this machine what it makes of
// its default configuration with ours in it.
func TestContainerdReads(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "skimmer", "containerd-*", "containerd"))
	if err != nil {
		t.Fatal(err)
	}
	if path, err := exec.LookPath("containerd"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must have containerd")
		}
		t.Skip("NOT TESTED: needs containerd")
	}
	for _, binary := range found {
		version, err := exec.Command(binary, "--version").Output()
		if err != nil {
			t.Fatal(err)
		}
		original, err := exec.Command(binary, "config", "default").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{original, nil} {
			c := world(t, text, strings.TrimSpace(string(version)))
			c.Name = "skimmer"
			do(t, c.Install)
			dump, err := exec.Command(binary, "--config", c.Config, "config", "dump").CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", binary, err, dump)
			}
			dump = bytes.ReplaceAll(dump, []byte("'"), []byte(`"`))
			for _, want := range []string{
				"disable_snapshot_annotations = false", "[proxy_plugins.skimmer]", `snapshotter = "skimmer"`,
				`address = "/run/skimmer/snapshotter.sock"`, "[stream_processors.skimmer]", `path = "/bin/sh"`,
			} {
				if !bytes.Contains(dump, []byte(want)) {
					t.Errorf("%s does not say %s", binary, want)
				}
			}
			do(t, c.Uninstall)
			if got, err := readFile(c.Config); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%s: uninstall did not restore the default", binary)
			}
		}
	}
}

// FuzzEdit edits any text: what comes out must say what is wanted, hold every
// line that was there but those of our keys, and be taken back.
func FuzzEdit(f *testing.F) {
	samples, _ := filepath.Glob("testdata/config/*.toml")
	for _, sample := range samples {
		text, err := os.ReadFile(sample)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range []string{
		"version = 2\nplugins = {}\nproxy_plugins = { }\n",
		"version = 3\n[ plugins . \"io.containerd.cri.v1.images\" . registry ]\n[plugins.'io.containerd.cri.v1.images']\n",
		"version = 3\n[plugins]\n\"io.containerd.cri.v1.images\" = { snapshotter = \"x\" } # c\n'io.containerd.transfer.v1.local'.unpack_config = []",
		"version = 2\nproxy_plugins.stargz = {type = 'snapshot', exports = {root = '/x'}}\nx = \"\"\"\n[proxy_plugins]\n\"\"\"\n",
		"[[a.b]]\nc = 1\n[a.b.d]\n[[a.b]]\nversion = 2\n",
		"version = 3\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = [ # none\n]\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := Containerd{Address: "/run/s.sock", Version: "2.1.0", Unpacker: "/usr/bin/skimmer"}
		if err := c.complete(); err != nil {
			t.Fatal(err)
		}
		edited, _, err := c.edit(text)
		if err != nil {
			return
		}
		again, _, err := c.edit(edited)
		if err != nil || !bytes.Equal(again, edited) {
			t.Fatalf("not idempotent: %v\n%q\n%q", err, edited, again)
		}
		kept := make(map[string]int)
		for line := range strings.Lines(string(edited)) {
			kept[strings.TrimRight(line, "\r\n")]++
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			if kept[line]--; kept[line] < 0 && !ours(line) {
				t.Fatalf("line %q is lost in\n%q", line, edited)
			}
		}
		restored, _, err := c.restore(edited, text)
		if err != nil || !bytes.Equal(restored, text) {
			t.Fatalf("restored %q, %v", restored, err)
		}
	})
}

// ours reports whether editing may change a line: it holds one of our keys,
// or an inline table one may belong in.
func ours(line string) bool {
	for _, word := range []string{"snapshot", "type", "address", "exports", "root", "{", "}", "[", "]", "\\"} {
		if strings.Contains(line, word) {
			return true
		}
	}
	return false
}

func FuzzDiff(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nx\nc")
	f.Add("", "a\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		var from, to strings.Builder
		for _, e := range compare(lines(a), lines(b)) {
			if e.op != '+' {
				from.WriteString(e.line)
			}
			if e.op != '-' {
				to.WriteString(e.line)
			}
		}
		if from.String() != a || to.String() != b {
			t.Errorf("diff of %q and %q is of %q and %q", a, b, from.String(), to.String())
		}
		if (unified("a", "b", a, b) == "") != (a == b) {
			t.Errorf("diff of %q and %q: %q", a, b, unified("a", "b", a, b))
		}
	})
}
