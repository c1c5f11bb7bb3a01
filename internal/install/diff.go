package install

import (
	"fmt"
	"strings"
)

// around is how many unchanged lines a diff shows around changed ones.
const around = 3

// edit is a line of a diff.
type edit struct {
	op   byte // ' ', '-' or '+'
	line string
}

// unified returns the difference of two texts as diff -u writes it; empty if
// there is none.
func unified(from, to, a, b string) string {
	if a == b {
		return ""
	}
	edits := compare(lines(a), lines(b))
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", from, to)
	lineA, lineB := 1, 1
	for i := 0; i < len(edits); {
		if edits[i].op == ' ' {
			i, lineA, lineB = i+1, lineA+1, lineB+1
			continue
		}
		// A hunk goes on until more lines are the same than two contexts hold.
		start, end := max(i-around, 0), i
		for j := i; j < len(edits) && j-end <= 2*around; j++ {
			if edits[j].op != ' ' {
				end = j + 1
			}
		}
		stop := min(end+around, len(edits))
		writeHunk(&out, edits[start:stop], lineA-(i-start), lineB-(i-start))
		for ; i < stop; i++ {
			if edits[i].op != '+' {
				lineA++
			}
			if edits[i].op != '-' {
				lineB++
			}
		}
	}
	return out.String()
}

// writeHunk writes edits that begin at the given lines.
func writeHunk(out *strings.Builder, edits []edit, lineA, lineB int) {
	countA, countB := 0, 0
	for _, e := range edits {
		if e.op != '+' {
			countA++
		}
		if e.op != '-' {
			countB++
		}
	}
	// An empty side stands behind the line before it.
	if countA == 0 {
		lineA--
	}
	if countB == 0 {
		lineB--
	}
	fmt.Fprintf(out, "@@ -%d,%d +%d,%d @@\n", lineA, countA, lineB, countB)
	for _, e := range edits {
		out.WriteByte(e.op)
		out.WriteString(e.line)
		if !strings.HasSuffix(e.line, "\n") {
			out.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

// lines splits a text after its newlines.
func lines(s string) []string {
	var all []string
	for l := range strings.Lines(s) {
		all = append(all, l)
	}
	return all
}

// maxSteps bounds the work of compare, which grows with its square.
const maxSteps = 1000

// compare returns how a becomes b in the fewest steps (E. Myers, "An O(ND)
// difference algorithm", 1986), or, for texts with hardly a line in common,
// by replacing all.
func compare(a, b []string) []edit {
	n, m := len(a), len(b)
	limit := min(n+m, maxSteps)
	furthest := make([]int, 2*limit+2) // by diagonal, offset by limit
	var trace [][]int
	for steps := 0; steps <= limit; steps++ {
		trace = append(trace, append([]int(nil), furthest[limit-steps:limit+steps+1]...))
		for k := -steps; k <= steps; k += 2 {
			x := 0
			if down(furthest[:], limit, k, steps) {
				x = furthest[limit+k+1]
			} else {
				x = furthest[limit+k-1] + 1
			}
			for x < n && x-k < m && a[x] == b[x-k] {
				x++
			}
			furthest[limit+k] = x
			if x >= n && x-k >= m {
				return walkBack(a, b, trace)
			}
		}
	}
	var all []edit
	for _, l := range a {
		all = append(all, edit{'-', l})
	}
	for _, l := range b {
		all = append(all, edit{'+', l})
	}
	return all
}

// down reports whether diagonal k is best reached by inserting a line.
func down(furthest []int, offset, k, steps int) bool {
	return steps == 0 || k == -steps || k != steps && furthest[offset+k-1] < furthest[offset+k+1]
}

// walkBack turns the trace of compare, whose element number i has the
// furthest points before step i for diagonals -i to i, into edits.
func walkBack(a, b []string, trace [][]int) []edit {
	var back []edit
	x, y := len(a), len(b)
	for steps := len(trace) - 1; steps >= 0; steps-- {
		k := x - y
		prevX, prevY := 0, 0
		if steps > 0 {
			prevK := k - 1
			if down(trace[steps], steps, k, steps) {
				prevK = k + 1
			}
			prevX = trace[steps][steps+prevK]
			prevY = prevX - prevK
		}
		for x > prevX && y > prevY {
			x, y = x-1, y-1
			back = append(back, edit{' ', a[x]})
		}
		switch {
		case steps == 0:
		case x == prevX:
			y--
			back = append(back, edit{'+', b[y]})
		default:
			x--
			back = append(back, edit{'-', a[x]})
		}
	}
	edits := make([]edit, len(back))
	for i, e := range back {
		edits[len(back)-1-i] = e
	}
	return edits
}
