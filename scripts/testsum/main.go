// Command testsum reads the output of one or more runs of go test -json and
// prints what a person wants to know of it: a line for each package, the
// output of what failed, why tests were skipped, and last of all the totals. It exits
// with 1 unless tests ran and all of them passed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	ok, err := summarise(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testsum: %v\n", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

// event is one line of go test -json, as go doc cmd/test2json describes it.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output events, in place of Package
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// summary holds what is kept until a test or package ends.
type summary struct {
	w                       io.Writer
	output                  map[string][]string // by package and test; build output by ImportPath
	failedIn                map[string]bool     // packages with a failed test
	passed, failed, skipped int
	skips                   []string
}

// summarise copies the gist of the events in r to w and reports whether tests
// ran and all passed. Lines that are not events are copied as they are.
func summarise(r io.Reader, w io.Writer) (bool, error) {
	s := &summary{w: w, output: make(map[string][]string), failedIn: make(map[string]bool)}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil || e.Action == "" {
			fmt.Fprintf(w, "%s\n", sc.Bytes())
			continue
		}
		s.event(e)
	}
	if err := sc.Err(); err != nil {
		return false, fmt.Errorf("read test events: %w", err)
	}
	slices.Sort(s.skips)
	for _, skip := range slices.Compact(s.skips) {
		fmt.Fprintln(w, skip)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	return s.failed == 0 && s.passed > 0, nil
}

func (s *summary) event(e event) {
	key := e.ImportPath + e.Package + "\x00" + e.Test
	switch e.Action {
	case "output", "build-output":
		s.output[key] = append(s.output[key], e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	name := e.Package
	if e.Test != "" {
		name += " " + e.Test
	}
	switch {
	case e.Action == "fail":
		s.print(e.FailedBuild + "\x00")
		s.print(key)
		fmt.Fprintf(s.w, "FAIL %s (%.1fs)\n", name, e.Elapsed)
		// A package fails with its tests, and counts only where none of them
		// did: it does not build, or TestMain failed.
		if e.Test != "" || !s.failedIn[e.Package] {
			s.failed++
		}
		s.failedIn[e.Package] = e.Test != ""
	case e.Test == "" && e.Action == "pass":
		fmt.Fprintf(s.w, "ok   %s (%.1fs)\n", name, e.Elapsed)
	case e.Test == "": // a package without tests
	case e.Action == "skip":
		s.skipped++
		s.skips = append(s.skips, "SKIP "+name+": "+reason(s.output[key]))
	default:
		s.passed++
	}
	delete(s.output, key)
}

func (s *summary) print(key string) {
	for _, line := range s.output[key] {
		fmt.Fprint(s.w, line)
	}
	delete(s.output, key)
}

// reason returns what a skipped test said, without the framing around it.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			said = append(said, line)
		}
	}
	return strings.Join(said, " ")
}
