package config_test

import (
	"encoding"
	"math"
	"strings"
	"testing"
	"time"

	"skimmer/internal/config"
)

func TestBytes(t *testing.T) {
	for text, want := range map[string]config.Bytes{
		"0": 0, "4096": 4096, "64MiB": 64 << 20, "10GB": 10e9, "1.5GiB": 3 << 29, "0.125KiB": 128, "1.001kB": 1001,
		"7 TiB": 7 << 40, "3B": 3, "1KB": 1000, "9223372036854775807": math.MaxInt64, "7.999EiB": 7<<60 + 999*((1<<60)/1000) + 999*((1<<60)%1000)/1000,
	} {
		var b config.Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q = %d, %v, want %d", text, b, err, want)
		}
	}
	for _, text := range []string{
		"", "-1", "1e3", "GiB", "1.GiB", "1.0005GiB", "10G", "10Gb", "10gib", "0x10", "8EiB", "9223372036854775808",
		"99999999999999999999", "1 2", "१KiB",
	} {
		var b config.Bytes
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken as %d", text, b)
		}
	}
	for b, want := range map[config.Bytes]string{
		0: "0", 1: "1", 1000: "1kB", 1024: "1KiB", 5120: "5KiB", 1536: "1536", 64 << 20: "64MiB", 10e9: "10GB", 3 << 29: "1536MiB", math.MaxInt64: "9223372036854775807",
	} {
		if got := b.String(); got != want {
			t.Errorf("%d is written %q, want %q", int64(b), got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"5m": 5 * time.Minute, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, "10h": 10 * time.Hour, "0s": 0, "1h0m5s": time.Hour + 5*time.Second,
	} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%q = %v, %v, want %v", text, d, err, want)
		}
		if got := d.String(); got != text {
			t.Errorf("%q is written back as %q", text, got)
		}
	}
	for _, text := range []string{"", "5", "-5m", "5 minutes", "5d"} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken as %v", text, d)
		}
	}
}

// FuzzValues holds every type that reads text to reading back what it wrote.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"0", "1.5GiB", "10GB", "999999EB", "5m", "1h0m0.5s", "info", "WARN", "json", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var b, b2 config.Bytes
		roundTrip(t, s, &b, &b2)
		if b != b2 || b < 0 {
			t.Errorf("%q became %d, then %d", s, b, b2)
		}
		var d, d2 config.Duration
		roundTrip(t, s, &d, &d2)
		if d != d2 || d < 0 {
			t.Errorf("%q became %d, then %d", s, d, d2)
		}
		var l, l2 config.Level
		roundTrip(t, s, &l, &l2)
		if l != l2 || l.String() != "info" && !strings.EqualFold(l.String(), s) {
			t.Errorf("%q became level %v, then %v", s, l, l2)
		}
	})
}

// roundTrip reads s into a, and what a writes into b.
func roundTrip(t *testing.T, s string, a, b interface {
	encoding.TextMarshaler
	encoding.TextUnmarshaler
}) {
	if a.UnmarshalText([]byte(s)) != nil {
		return
	}
	text, err := a.MarshalText()
	if err != nil {
		t.Fatalf("%q cannot be written: %v", s, err)
	}
	if err := b.UnmarshalText(text); err != nil {
		t.Errorf("%q was written %q, which is refused: %v", s, text, err)
	}
}
