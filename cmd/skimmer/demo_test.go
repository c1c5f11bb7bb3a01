package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"skimmer/internal/lab"
)

func TestDemoTable(t *testing.T) {
	r := lab.DemoResult{
		Image:    lab.DemoImage{Name: "python", Layers: 4, Size: 200 << 20, TarSize: 600 << 20},
		Registry: "docker-registry",
		Latency:  20 * time.Millisecond,
		Rate:     12 << 20,
		Runs: []lab.DemoRun{
			{Name: lab.RunCold, Steps: []lab.DemoStep{
				{Name: "mount", Took: 23 * time.Millisecond, Requests: 12, Bytes: 2 << 20},
				{Name: "version", Args: []string{"/usr/bin/python3", "-c", "print('a')"}, Took: 40 * time.Millisecond, FirstOutput: 61 * time.Millisecond},
			}},
			{Name: lab.RunWarm, Steps: []lab.DemoStep{{Name: "mount", Took: time.Millisecond}}},
		},
		Notes: []string{"There is no comparison."},
	}
	var out bytes.Buffer
	if err := demoTable(&out, r); err != nil {
		t.Fatal(err)
	}
	want := `
python: 200.0 MiB in the registry (600.0 MiB unpacked), 4 layers, served by docker-registry, 20ms per request, 12.0 MiB/s per connection

                                              took   first output after   fetched   of the image   requests
mounted lazily, nothing here yet
   mount                                      23ms                        2.0 MiB            1 %         12
   /usr/bin/python3 -c 'print('\''a'\'')'     40ms                 61ms       0 B            0 %          0
mounted lazily again, everything cached
   mount                                       1ms                            0 B            0 %          0

There is no comparison.
`
	if got := out.String(); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
}

func TestStepPrinter(t *testing.T) {
	var out bytes.Buffer
	s := newStepPrinter(&out)
	s.report(lab.Progress{Step: "one", Fraction: -1})
	s.report(lab.Progress{Step: "two", Fraction: 0.1})
	s.report(lab.Progress{Step: "two", Fraction: 0.9})
	s.end()
	s.end()
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "one ") || !strings.HasPrefix(lines[1], "two ") || lines[2] != "" {
		t.Errorf("without a terminal: %q", out.String())
	}
	out.Reset()
	s.terminal = true
	s.report(lab.Progress{Step: "one", Fraction: 0.25})
	if got := out.String(); !strings.HasSuffix(got, "one … 25 %") || strings.Contains(got, "\n") {
		t.Errorf("on a terminal: %q", got)
	}
}

func TestDemoRefuses(t *testing.T) {
	for want, f := range map[string]demoFlags{
		`no image called "nothing"`: {image: "nothing"},
		"cannot be negative":        {image: "python", rate: -1},
	} {
		if err := newApp().demo(t.Context(), f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", f, err, want)
		}
	}
	if os.Geteuid() != 0 {
		if err := newApp().demo(t.Context(), demoFlags{image: "python"}); err == nil || !strings.Contains(err.Error(), "root") {
			t.Errorf("not as root: %v", err)
		}
	}
}

func TestShellWords(t *testing.T) {
	if got, want := shellWords([]string{"a", "b c", "it's", ""}), `a 'b c' 'it'\''s' ''`; got != want {
		t.Errorf("shellWords = %s, want %s", got, want)
	}
}
