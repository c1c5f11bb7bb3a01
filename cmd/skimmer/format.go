package main

import (
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// formatBytes writes n bytes as people read them, in powers of 1024.
func formatBytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	for _, u := range units {
		if f /= 1024; f < 1023.95 {
			return fmt.Sprintf("%.1f %s", f, u)
		}
	}
	return fmt.Sprintf("%.1f EiB", f/1024)
}

// millis writes a duration with the precision that matters for mounting.
func millis(d time.Duration) string {
	switch {
	case d == 0:
		return "none"
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// percent writes part of whole; nothing of nothing is all of it.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "100 %"
	}
	return fmt.Sprintf("%.3g %%", 100*float64(part)/float64(whole))
}

// shortDigest writes as much of a digest as tells layers apart.
func shortDigest(d digest.Digest) string {
	if d.Validate() != nil {
		return d.String()
	}
	return d.Encoded()[:12]
}
