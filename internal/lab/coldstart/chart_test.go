package coldstart

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/image/trace"
)

// charted returns a report with all there is to draw: two paths, a bar that is
// cut, and names that must be escaped.
func charted() Report {
	var samples []Sample
	for _, path := range []Path{{5 * time.Millisecond, 200_000_000}, {20 * time.Millisecond, 100_000_000}} {
		for _, name := range []string{"python", "a <b> & \"c\""} {
			for n := range time.Duration(2) {
				for _, m := range []struct {
					mode          Mode
					first, cached time.Duration
				}{{Overlayfs, 20 * time.Second, 150}, {Stargz, 2 * time.Second, 500}, {Skimmer, (700 + 100*n) * time.Millisecond, 160}} {
					first, cached := sample(m.mode, First, m.first), sample(m.mode, Again, m.cached*time.Millisecond)
					for _, s := range []Sample{first, cached} {
						s.Case, s.Conditions.Path = name, path
						if m.mode == Skimmer && s.Start == First {
							s.Phases = &Phases{Profile: "cluster", Sums: []trace.Sum{{Kind: trace.Fault, Count: 3, Busy: 40 * time.Millisecond}}}
						}
						samples = append(samples, s)
					}
				}
			}
		}
	}
	return Report{
		Machine: Machine{Kernel: "6.18<script>", CPUs: 2, Containerd: "2.4.2", Registry: "docker-registry"}, Command: "skimmer bench coldstart --images=a&b",
		Images:  []Image{{Name: "python", Size: 254_600_000, Layers: make([]digest.Digest, 4)}},
		Results: summarize(samples, Path{}), Samples: samples,
	}
}

func TestSVG(t *testing.T) {
	r := charted()
	var out strings.Builder
	if err := r.WriteSVG(&out); err != nil {
		t.Fatal(err)
	}
	classes := map[string]int{}
	var texts []string
	for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		switch v := token.(type) {
		case xml.StartElement:
			for _, a := range v.Attr {
				if a.Name.Local == "class" {
					classes[v.Name.Local+" "+a.Value]++
				}
				if a.Name.Local == "href" {
					t.Errorf("it refers to %s", a.Value)
				}
			}
		case xml.CharData:
			texts = append(texts, string(v))
		}
	}
	// Two paths with two cases of three modes each; one of each in the legend.
	for class, want := range map[string]int{
		"rect pull": 13, "rect create": 13, "rect run": 13, "rect cached": 13, "path cut": 4, "path bound": 13, "path line": 1 + 4,
	} {
		if classes[class] != want {
			t.Errorf("%d of %s, want %d", classes[class], class, want)
		}
	}
	for _, want := range []string{"a <b> & \"c\"", "750 ms, 0.38 × stargz", "20,000 ms, 10.00 × stargz", "0.5 s"} {
		if !slices.Contains(texts, want) {
			t.Errorf("no text %q in %q", want, texts)
		}
	}
}

func TestHTML(t *testing.T) {
	var out strings.Builder
	if err := charted().WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<svg ", "prefers-color-scheme: dark", "a &lt;b&gt; &amp;", "× stargz", "sudo skimmer bench coldstart --images=a&amp;b", "6.18&lt;script&gt;", "cluster",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	for _, bad := range []string{"<script", "ZgotmplZ", "src=", "href=", "url(", "@import"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if err := (Report{}).WriteHTML(io.Discard); err != nil {
		t.Errorf("nothing measured: %v", err)
	}
}
