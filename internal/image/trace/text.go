package trace

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// Text writes a start for people: what it was, a line for each event, and one
// for each kind. Names that hold what a terminal does not show as it is are
// quoted. Its errors are those of w.
func Text(w io.Writer, s Start) error {
	var out strings.Builder
	for _, line := range headOf(s) {
		fmt.Fprintln(&out, line)
	}
	if len(s.Events) > 0 {
		fmt.Fprintln(&out)
		tw := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "AT\tTOOK\tKIND\tLAYER\tCHUNKS\tBYTES\tFROM\tWHAT")
		for _, e := range s.Events {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
				millis(e.At), millis(e.Took), shown(string(e.Kind)), orDash(layerOf(e.Layer)), orDash(chunksOf(e)), orDash(bytesOf(e.Bytes)), orDash(sourcesOf(e)), orDash(whatOf(e)))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(&out)
		fmt.Fprintln(tw, "KIND\tCOUNT\tTOTAL\tBUSY\tLONGEST\tBYTES\tLOCAL\tPEERS\tORIGIN\tFAILED")
		for _, u := range s.Sums() {
			fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", shown(string(u.Kind)), u.Count, millis(u.Total), millis(u.Busy), millis(u.Longest),
				orDash(bytesOf(u.Bytes)), orDash(bytesOf(u.Local)), orDash(bytesOf(u.Peers)), orDash(bytesOf(u.Origin)), u.Errors)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// headOf says in lines what a start was and what it cost.
func headOf(s Start) []string {
	settled := "reading has not settled"
	if s.Settled > 0 {
		settled = "settled after " + millis(s.Settled)
	}
	lines := []string{
		shown(s.Image) + "  " + shown(string(s.Manifest)),
		"began " + s.Began.UTC().Format("2006-01-02 15:04:05.000 UTC") + ", " + settled,
	}
	switch s.Profile {
	case "":
		lines = append(lines, "no profile")
	default:
		line := "profile from " + shown(s.Profile) + ": wanted " + size(s.Wanted)
		if s.Wanted > 0 {
			line += fmt.Sprintf(", of which %s (%.0f %%) were read", size(s.Used), 100*float64(s.Used)/float64(s.Wanted))
		}
		lines = append(lines, line)
	}
	line := fmt.Sprintf("read %s, fetched %s, unpacked %s", size(s.Read), size(s.Fetched), size(s.Inflated))
	if a := s.Amplification(); a > 0 {
		line += fmt.Sprintf(": %.2f times what was read", a)
	}
	lines = append(lines, line)
	if s.Dropped > 0 {
		lines = append(lines, fmt.Sprintf("%d more events were not recorded", s.Dropped))
	}
	return lines
}

// whatOf names what an event was about, and what went wrong.
func whatOf(e Event) string {
	what := shown(e.File)
	if e.Error != "" {
		what = strings.TrimSpace(what + " failed: " + shown(e.Error))
	}
	return what
}

// shown returns a name as it is where every character of it is one that is
// seen, and quoted otherwise: nobody's file name moves the cursor.
func shown(name string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar || r == '"' || r == '\\' }
	if strings.ContainsFunc(name, odd) || strings.TrimSpace(name) != name {
		return strconv.Quote(name)
	}
	return name
}

// layerOf returns as much of a layer's digest as tells layers apart.
func layerOf(d digest.Digest) string {
	if d.Validate() != nil {
		return shown(string(d))
	}
	return d.Encoded()[:12]
}

// chunksOf returns the numbers of an event's chunks, "" for none.
func chunksOf(e Event) string {
	switch {
	case e.Chunks <= 0:
		return ""
	case e.Chunks == 1:
		return strconv.Itoa(e.Chunk)
	}
	return fmt.Sprintf("%d-%d", e.Chunk, e.Chunk+e.Chunks-1)
}

// sourcesOf says where an event's compressed bytes came from, "" for nowhere.
func sourcesOf(e Event) string {
	var from []string
	for _, s := range []struct {
		name string
		n    int64
	}{{"local", e.Local}, {"peers", e.Peers}, {"origin", e.Origin}} {
		if s.n > 0 {
			from = append(from, s.name+" "+size(s.n))
		}
	}
	return strings.Join(from, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// bytesOf is size, with "" for none.
func bytesOf(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

// size writes n bytes in powers of 1024.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		if f /= 1024; f < 1023.95 {
			return fmt.Sprintf("%.1f %s", f, unit)
		}
	}
	return fmt.Sprintf("%.1f TiB", f/1024)
}

// millis writes a duration in milliseconds, so that columns can be compared.
func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + "ms"
}

// List writes a line for each of several starts. Its errors are those of w.
func List(w io.Writer, starts []Start) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "IMAGE\tMANIFEST\tBEGAN\tSETTLED\tPROFILE\tFAULTS\tWAITED\tREAD\tFETCHED")
	for _, s := range starts {
		settled := "-"
		if s.Settled > 0 {
			settled = millis(s.Settled)
		}
		faults := s.Sum(Fault)
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", shown(s.Image), orDash(layerOf(s.Manifest)), s.Began.UTC().Format("2006-01-02 15:04:05"),
			settled, orDash(shown(s.Profile)), faults.Count, millis(faults.Busy), size(s.Read), size(s.Fetched))
	}
	return tw.Flush()
}
