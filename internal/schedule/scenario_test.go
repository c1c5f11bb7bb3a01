package schedule

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
)

var update = flag.Bool("update", false, "rewrite the scenarios with what happens")

// TestScenarios plays the files in testdata. A file is blocks of events, a
// line of dashes, and the actions they cause. All invariants are checked after
// every event.
//
//	options width=1 maxrun=4 bulkrun=2    figures; runs in bytes
//	blob x 8 [piece=1]                    a blob of 8 pieces
//	join a [slots=4] [rack=r] [zone=z] [seed]
//	want a x 1 0-3,5 [prefetch] [window=6-7] [origin=o]
//	have a x 0-3 [sums=0-3] [sums=0-3!]   with ! for digests that are not right
//	announce a x [0-3] [sums=0-3]
//	fail a x b busy [0-3]                 b is a peer, or origin
//	progress a x 0-3
//	cancel a x 1
//	reject a x 0-3
//	uploading a 4 [other=1]
//	leaving a
//	left a
//	tick 2s                               after so much time
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("%s: want\n%s\ngot\n%s", file, text, got)
			}
		})
	}
}

// play returns a scenario with the actions that its events cause.
func play(t *testing.T, text string) string {
	t.Helper()
	s := &scenario{t: t, shapes: map[string]Shape{}}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n\n") {
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		events, _, hasActions := strings.Cut(block+"\n", "----\n")
		out.WriteString(events)
		var actions []string
		for line := range strings.Lines(events) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				actions = append(actions, s.line(line)...)
			}
		}
		if hasActions || len(actions) > 0 {
			out.WriteString("----\n")
		}
		for _, a := range actions {
			out.WriteString(a + "\n")
		}
	}
	return out.String()
}

type scenario struct {
	t       *testing.T
	tracker *Tracker
	now     time.Time
	opt     Options
	shapes  map[string]Shape
}

// line makes what a line says happen.
func (s *scenario) line(line string) []string {
	f := strings.Fields(line)
	switch f[0] {
	case "options":
		o := options(f[1:])
		s.opt = Options{Width: s.number(o["width"]), MaxRun: int64(s.number(o["maxrun"])), BulkRun: int64(s.number(o["bulkrun"])),
			MaxWants: s.number(o["maxwants"]), MaxBlobs: s.number(o["maxblobs"]),
			MaxPieces: s.number(o["maxpieces"]), MaxAllPieces: s.number(o["maxallpieces"])}
		return nil
	case "blob":
		n := int64(s.number(f[2]))
		size := int64(max(1, s.number(options(f[3:])["piece"])))
		s.shapes[f[1]] = Shape{Size: n * size, PieceSize: size}
		return nil
	}
	if s.tracker == nil {
		s.tracker = New(s.opt)
	}
	var out []string
	for _, a := range s.tracker.Step(s.event(f), s.now) {
		out = append(out, format(a, time.Time{}))
	}
	for _, wrong := range check(s.tracker) {
		s.t.Errorf("after %q: %s", line, wrong)
	}
	return out
}

func (s *scenario) event(f []string) Event {
	for len(f) < 6 {
		f = append(f, "")
	}
	id, o := PeerID(f[1]), options(f)
	switch f[0] {
	case "join":
		slots := 4
		if o["slots"] != "" {
			slots = s.number(o["slots"])
		}
		_, seed := o["seed"]
		return PeerJoined{ID: id, Addr: f[1] + ":4000", Seed: seed, UploadSlots: slots, Location: Location{Rack: o["rack"], Zone: o["zone"]}}
	case "leaving":
		return PeerLeaving{id}
	case "left":
		return PeerLeft{id}
	case "announce":
		have := f[3]
		if strings.HasPrefix(have, "sums=") {
			have = ""
		}
		return Announce{id, f[2], s.shapes[f[2]], s.runs(have), s.sums(o["sums"])}
	case "want":
		w := Want{Peer: id, Blob: f[2], Shape: s.shapes[f[2]], ID: uint64(s.number(f[3])), Runs: s.runs(f[4]),
			Window: s.runs(o["window"]), Origin: o["origin"]}
		if _, ok := o["prefetch"]; ok {
			w.Priority = blob.Prefetch
		}
		if _, ok := o["background"]; ok {
			w.Priority = blob.Background
		}
		return w
	case "have":
		return Have{id, f[2], s.runs(f[3]), s.sums(o["sums"])}
	case "fail":
		if f[3] == "origin" {
			f[3] = ""
		}
		return Fail{id, f[2], s.runs(f[5]), PeerID(f[3]), Reason(f[4])}
	case "progress":
		return Progress{id, f[2], s.runs(f[3])[0]}
	case "cancel":
		return Cancel{id, f[2], uint64(s.number(f[3]))}
	case "reject":
		return Reject{id, f[2], s.runs(f[3])}
	case "uploading":
		return Uploading{id, s.number(f[2]), s.number(o["other"])}
	case "tick":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(d)
		return Tick{}
	}
	s.t.Fatalf("no such event: %v", f)
	return nil
}

func (s *scenario) number(text string) int {
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *scenario) runs(text string) []Run {
	var out []Run
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		first, last, ok := strings.Cut(part, "-")
		if !ok {
			last = first
		}
		lo, hi := s.number(first), s.number(last)
		out = append(out, Run{lo, hi + 1 - lo})
	}
	return out
}

func (s *scenario) sums(text string) []PieceSum {
	text, wrong := strings.CutSuffix(text, "!")
	var out []PieceSum
	for _, r := range s.runs(text) {
		for p := r.First; p < r.End(); p++ {
			out = append(out, PieceSum{Piece: p, Sum: sumOf(p, wrong)})
		}
	}
	return out
}

// sumOf stands for the digest of what piece p is, or of something else.
func sumOf(p int, wrong bool) Sum {
	s := Sum{byte(p), byte(p >> 8)}
	if wrong {
		s[31] = 1
	}
	return s
}

func options(fields []string) map[string]string {
	out := map[string]string{}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		out[name] = value
	}
	return out
}

// format returns an action as scenarios have it.
func format(a Action, start time.Time) string {
	switch a := a.(type) {
	case Grant:
		text := fmt.Sprintf("grant %s %s #%d %s", a.To, a.Blob, a.Want, a.Priority)
		if a.Origin != "" {
			text += " origin=" + a.Origin
		}
		for i, p := range a.Parts {
			text += []string{": ", " | "}[min(i, 1)] + formatRuns(p.Runs)
			if !p.Lease.IsZero() {
				text += fmt.Sprintf(" lease until %v", p.Lease.Sub(start))
			}
			for i, src := range p.Sources {
				text += []string{" from ", " or "}[min(i, 1)] + string(src.ID)
			}
			text += formatSums(" sums=", p.Sums)
		}
		return text
	case Revoke:
		from := a.From
		if from == "" {
			from = "origin"
		}
		return fmt.Sprintf("revoke %s %s %s from %s", a.To, a.Blob, formatRuns(a.Runs), from)
	case Drop:
		return fmt.Sprintf("drop %s %s %s", a.To, a.Blob, a.Source)
	case Forget:
		return fmt.Sprintf("forget %s %s %s", a.To, a.Blob, formatRuns(a.Runs))
	case Sums:
		return fmt.Sprintf("sums %s %s%s", a.To, a.Blob, formatSums(" ", a.Sums))
	case Parked:
		return fmt.Sprintf("parked %s %s #%d %s", a.To, a.Blob, a.Want, a.Why)
	case Refused:
		return fmt.Sprintf("refused %s %s #%d %s", a.To, a.Blob, a.Want, a.Why)
	}
	return fmt.Sprintf("%T", a)
}

func formatRuns(runs []Run) string {
	var parts []string
	for _, r := range runs {
		part := strconv.Itoa(r.First)
		if r.Count > 1 {
			part += "-" + strconv.Itoa(r.End()-1)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}

func formatSums(before string, sums []PieceSum) string {
	var out string
	for _, wrong := range []bool{false, true} {
		set := newSet(maxPieces)
		for _, s := range sums {
			if s.Sum == sumOf(s.Piece, wrong) {
				set.add(s.Piece, s.Piece+1)
			}
		}
		if set.count > 0 {
			out += before + formatRuns(set.list())
			if wrong {
				out += "!"
			}
		}
	}
	return out
}
