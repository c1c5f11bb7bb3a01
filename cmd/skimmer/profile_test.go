package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/image/convert"
	"skimmer/internal/image/profile"
	"skimmer/internal/peer"
	"skimmer/internal/scheduler"
	"skimmer/internal/testkit"
)

func testProfile(manifest digest.Digest) profile.Profile {
	return profile.Profile{
		Manifest: manifest, Platform: "linux/amd64", Recorded: time.Unix(1_700_000_000, 0).UTC(), Starts: 2,
		Layers: []profile.Layer{
			{Digest: digest.FromString("a"), TOC: digest.FromString("toc a"), Chunks: 100},
			{Digest: digest.FromString("b"), TOC: digest.FromString("toc b"), Chunks: 7},
		},
		Reads: []profile.Read{
			{Layer: 0, First: 10, Count: 20, At: 30 * time.Millisecond, Starts: 2},
			{Layer: 1, First: 0, Count: 1, At: 40 * time.Millisecond, Starts: 1},
			{Layer: 0, First: 5, Count: 1, At: 1900 * time.Millisecond, Starts: 2},
		},
	}
}

// TestProfileCommands takes a profile through all commands, as on a node whose
// peer is not running.
func TestProfileCommands(t *testing.T) {
	dir, reg := t.TempDir(), testRegistry(t)
	image := reg + "/app:esgz"
	converted, _ := mustRun(t, "", "image", "convert", savedImage(t), image, "-o", "json")
	var made convert.Result
	if err := json.Unmarshal([]byte(converted), &made); err != nil {
		t.Fatal(err)
	}
	node := []string{"--socket", filepath.Join(dir, "none"), "--data-dir", filepath.Join(dir, "data")}
	run := func(stdin string, args ...string) string {
		t.Helper()
		stdout, _ := mustRun(t, stdin, append(append([]string{"profile"}, args...), node...)...)
		return stdout
	}
	fails := func(words, stdin string, args ...string) {
		t.Helper()
		stdout, _, err := runImage(t.Context(), stdin, append(append([]string{"profile"}, args...), node...)...)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: %v, want %q; it printed %s", args, err, words, stdout)
		}
	}
	contains := func(text string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("it printed\n%swithout %q", text, w)
			}
		}
	}
	fails("there are no profiles in", "", "ls")

	p := testProfile(made.Digest)
	data, err := profile.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	file, other := filepath.Join(dir, "p.profile"), filepath.Join(dir, "other.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(testProfile(digest.FromString("other")))
	if err != nil {
		t.Fatal(err)
	}
	contains(run(string(doc), "import", file, "-"), "imported "+p.Manifest.String(), "imported "+digest.FromString("other").String())
	fails("checksum", string(data[:len(data)-1])+"x", "import", "-")
	fails("import "+other, "", "import", other)

	name := p.Manifest.Encoded()[:12]
	contains(run("", "ls"), "MANIFEST", "sha256:"+name, "linux/amd64", "days ago")
	contains(run("", "show", name), "learned from 2 starts", "3 reads of 22 chunks", "LAYER", "100", "FROM", "####", "1.8s")
	contains(run("", "show", "--reads", name), "10-29", "1 of 2", "1.9s")
	fails("none that begins so", "", "show", "sha256:00000")
	fails("2 begin so", "", "show", "sha256:")

	var got profile.Profile
	if err := json.Unmarshal([]byte(run("", "export", name, "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Error(diff)
	}
	if run("", "export", name) != string(data) {
		t.Error("what is exported is not what was imported")
	}
	run("", "export", name, other)
	if again, err := os.ReadFile(other); err != nil || string(again) != string(data) {
		t.Errorf("exported to a file: %d bytes, %v", len(again), err)
	}

	contains(run("", "push", name, image), "stored in "+reg+"/app")
	fails("not a registry reference", "", "push", name, "oci:x")
	fails("the registry has no such image", "", "push", digest.FromString("other").Encoded()[:12], image)

	fails("or all with --all", "", "rm")
	fails("or all with --all", "", "rm", "--all", name)
	fails("remove profiles from the cluster: no peer is running", "", "rm", "--cluster", name)
	contains(run("", "rm", name), "removed "+p.Manifest.String())
	contains(run("", "rm", "--all"), "removed "+digest.FromString("other").String())
	contains(run("", "ls"), "no profiles")
}

// TestProfileRemoveCluster removes profiles from a scheduler.
func TestProfileRemoveCluster(t *testing.T) {
	testkit.NeedMount(t)
	sched := scheduler.New(scheduler.Config{})
	defer closeScheduler(context.Background(), sched)
	dir, err := os.MkdirTemp("", "sk") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	startPeer(t, peer.Config{
		DataDir: filepath.Join(dir, "data"), Socket: socket, Starts: peer.StartsConfig{Profiles: true},
		Swarm: &peer.SwarmConfig{Listen: "127.0.0.1:0", Scheduler: sched},
	})
	want := []digest.Digest{digest.FromString("here"), digest.FromString("there")}
	for i, d := range want {
		doc, err := json.Marshal(testProfile(d))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ask(t, socket, "profile", "import", file); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, time.Minute, "the scheduler has what was imported", func() error {
		if s := sched.Stats(); s.Profiles != 2 {
			return fmt.Errorf("it has %d profiles", s.Profiles)
		}
		return nil
	})
	// The second is not on this node any more, and is removed by its whole name.
	if _, _, err := ask(t, socket, "profile", "rm", want[1].String()); err != nil {
		t.Error(err)
	}
	if s := sched.Stats(); s.Profiles != 2 {
		t.Errorf("a removal from the node left the scheduler %d profiles", s.Profiles)
	}
	if _, _, err := ask(t, socket, "profile", "rm", "--cluster", want[1].Encoded()[:12]); err == nil || !strings.Contains(err.Error(), "none that begins so") {
		t.Errorf("by the beginning of its name: %v", err)
	}
	out, _, err := ask(t, socket, "profile", "rm", "--cluster", want[0].Encoded()[:12], want[1].String())
	if err != nil {
		t.Error(err)
	}
	has(t, "rm", out, "removed "+want[0].String(), "removed "+want[1].String())
	if s := sched.Stats(); s.Profiles != 0 {
		t.Errorf("the scheduler still has %d profiles", s.Profiles)
	}
	if out, _, err := ask(t, socket, "profile", "ls"); err != nil || !strings.Contains(out, "no profiles") {
		t.Errorf("list: %v %s", err, out)
	}
}

func TestProfileTimeline(t *testing.T) {
	if timeline(nil) != nil {
		t.Error("nothing has a timeline")
	}
	for _, end := range []time.Duration{0, time.Millisecond, 15 * time.Millisecond, 16 * time.Millisecond, time.Second, 24 * time.Hour} {
		reads := []profile.Read{{Count: 3}, {Count: 5, At: end / 3}, {Count: 1, At: end}}
		spans := timeline(reads)
		chunks := 0
		for _, s := range spans {
			chunks += s.chunks
		}
		if len(spans) > 16 || chunks != 9 || end > 20*time.Millisecond && len(spans) < 6 {
			t.Errorf("until %v: %d spans with %d chunks", end, len(spans), chunks)
		}
	}
}

// TestImageOptimizeFlags finds that what cannot be is refused before anything is
// fetched.
func TestImageOptimizeFlags(t *testing.T) {
	for _, c := range []struct{ args, words string }{
		{"app.example/app:v1", "got 1 names of images before --, want 2"},
		{"app.example/app:v1 -- /bin/true", "got 1 names"},
		{"--profile-only app.example/app:v1 oci:x", "got 2 names"},
		{"--profile-only oci:x", "--save-profile FILE"},
		{"--profile-only --profile=false oci:x", "needs --save-profile"},
		{"--net bridge app.example/app:v1 oci:x", "--net \"bridge\""},
		{"--wait-for -1s app.example/app:v1 oci:x", "--wait-for"},
		{"--platform linux/amd64 --platform linux/arm64 app.example/app:v1 oci:x", "one image is run"},
		{"--chunk-size 1GiB app.example/app:v1 oci:x", "--chunk-size"},
	} {
		_, _, err := runImage(t.Context(), "", append([]string{"image", "optimize"}, strings.Fields(c.args)...)...)
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", c.args, err, c.words)
		}
	}
}
