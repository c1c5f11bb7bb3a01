package trace

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// everything returns a start that has all kinds of events, one nobody knows,
// and names that nobody should have given.
func everything() Start {
	const ms = time.Millisecond
	layer := digest.FromString("layer")
	return Start{
		Image: "registry.example/team/python:3.12", Manifest: digest.FromString("manifest"),
		Began: time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC), Settled: 912 * ms,
		Profile: "cluster", Wanted: 3 << 20, Used: 2900 << 10, Read: 4 << 20, Inflated: 5 << 20, Fetched: 1700 << 10, Dropped: 3,
		Events: []Event{
			{Kind: Manifest, At: 0, Took: 11 * ms, Bytes: 1432, Origin: 1432},
			{Kind: Index, At: 12 * ms, Took: 30 * ms, Layer: layer, Bytes: 98304, Origin: 70000},
			{Kind: Index, At: 13 * ms, Took: 20 * ms, Layer: digest.FromString("base"), Bytes: 9000, Local: 9000},
			{Kind: Profile, At: 15 * ms, Took: 2500 * time.Microsecond, Bytes: 3100, Peers: 3100},
			{Kind: Metadata, At: 45 * ms, Took: 8 * ms, Bytes: 400 << 10},
			{Kind: Prefetch, At: 46 * ms, Took: 240 * ms, Layer: layer, Chunk: 12, Chunks: 300, Bytes: 3 << 20, Peers: 900 << 10, Origin: 200 << 10},
			{Kind: Mount, At: 54 * ms, Took: 3 * ms},
			{Kind: Fault, At: 100 * ms, Took: 40 * ms, Layer: layer, File: "usr/bin/python3.12", Chunk: 17, Chunks: 1, Bytes: 65536, Peers: 20000},
			{Kind: Fault, At: 110 * ms, Took: 10 * ms, Layer: layer, File: "usr/lib/odd\x1b[31m\u202ename <script>alert(1)</script> & \"quotes\"", Chunk: 3, Chunks: 2, Bytes: 4096, Local: 100, Origin: 2000},
			{Kind: Fault, At: 600 * ms, Took: 300 * ms, Layer: "sha256:\x07", File: " leading blank", Error: "open blob: the registry answered 503\nand more"},
			{Kind: "thaw", At: 905 * ms, Took: ms, File: "große Datei 文件"},
		},
	}
}

// golden compares what was written with a file, or writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: go test -update writes what it is now:\n%s", name, diff)
	}
}

func TestText(t *testing.T) {
	var out strings.Builder
	if err := Text(&out, everything()); err != nil {
		t.Fatal(err)
	}
	golden(t, "start.txt", out.String())
	if strings.ContainsAny(out.String(), "\x1b\x07\u202e") {
		t.Error("the text has characters that move the cursor")
	}
	out.Reset()
	if err := Text(&out, Start{Image: "x", Manifest: "sha256:y"}); err != nil {
		t.Fatal(err)
	}
	golden(t, "empty.txt", out.String())
}

func TestList(t *testing.T) {
	var out strings.Builder
	if err := List(&out, []Start{everything(), {Image: "other\nname"}}); err != nil {
		t.Fatal(err)
	}
	golden(t, "list.txt", out.String())
}

func TestHTML(t *testing.T) {
	var out strings.Builder
	if err := HTML(&out, everything()); err != nil {
		t.Fatal(err)
	}
	golden(t, "start.html", out.String())
	for _, bad := range []string{"<script", "http://", "https://", "\x1b", "ZgotmplZ"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if got, want := strings.Count(out.String(), `<div class="lane">`), len(everything().Events); got != want {
		t.Errorf("%d bars, want %d", got, want)
	}
	out.Reset()
	if err := HTML(&out, Start{}); err != nil || !strings.Contains(out.String(), "Nothing was recorded") {
		t.Errorf("a start without events: %v, %s", err, out.String())
	}
}

func TestSums(t *testing.T) {
	const ms = time.Millisecond
	s := Start{Events: []Event{
		{Kind: Fault, At: 0, Took: 10 * ms, Bytes: 1, Origin: 5},
		{Kind: Fault, At: 2 * ms, Took: 4 * ms, Bytes: 2, Peers: 6},
		{Kind: Fault, At: 8 * ms, Took: 7 * ms, Bytes: 4, Local: 7},
		{Kind: Fault, At: 30 * ms, Took: 5 * ms, Error: "lost"},
		{Kind: Manifest, At: 0, Took: 3 * ms},
	}}
	want := []Sum{
		{Kind: Manifest, Count: 1, Total: 3 * ms, Longest: 3 * ms, Busy: 3 * ms},
		{Kind: Fault, Count: 4, Errors: 1, Total: 26 * ms, Longest: 10 * ms, Busy: 20 * ms, Bytes: 7, Local: 7, Peers: 6, Origin: 5},
	}
	if diff := cmp.Diff(want, s.Sums()); diff != "" {
		t.Error(diff)
	}
	if got := s.Sum(Mount); got != (Sum{Kind: Mount}) {
		t.Errorf("sum of nothing: %+v", got)
	}
	if got := (Start{Read: 200, Inflated: 300}).Amplification(); got != 1.5 {
		t.Errorf("amplification %v, want 1.5", got)
	}
}

func TestMarks(t *testing.T) {
	for _, end := range []time.Duration{time.Millisecond, 9 * time.Millisecond, 17 * time.Millisecond, time.Second, 7 * time.Minute, 1<<63 - 1} {
		marks := marksTo(end)
		if n := len(marks); n < 1 || n > 10 {
			t.Errorf("%v: %d marks", end, n)
		}
		for _, m := range marks {
			if m.Left < 0 || m.Left > 100 {
				t.Errorf("%v: mark at %v %%", end, m.Left)
			}
		}
	}
}

// FuzzText makes starts of what a daemon might answer.
func FuzzText(f *testing.F) {
	seed, err := json.Marshal(everything())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Start
		if json.Unmarshal(data, &s) != nil {
			return
		}
		var text, page strings.Builder
		if err := Text(&text, s); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(text.String(), "\x1b\x07\r") {
			t.Errorf("control characters in %q", text.String())
		}
		if err := HTML(&page, s); err != nil {
			t.Fatal(err)
		}
	})
}
