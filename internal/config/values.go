package config

import (
	"fmt"
	"log/slog"
	"math"
	"math/bits"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Bytes is a size in bytes, never negative. Files write it as a whole number
// or with a unit: 64MiB, 1.5GiB (powers of 1024), 10GB (powers of 1000).
type Bytes int64

// units are what sizes can be written in.
var units = []struct {
	name  string
	bytes uint64
}{
	{"EiB", 1 << 60}, {"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"EB", 1e18}, {"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

var size = regexp.MustCompile(`^([0-9]+)(?:\.([0-9]{1,3}))? *([A-Za-z]*)$`)

// UnmarshalText reads a size. It refuses units that could mean two things
// (10G, 10Gb).
func (b *Bytes) UnmarshalText(text []byte) error {
	m := size.FindStringSubmatch(string(text))
	if m == nil {
		return fmt.Errorf("%q is not a size: write it as 512MiB, 10GB or a number of bytes", text)
	}
	unit, err := unitNamed(m[3])
	if err != nil {
		return err
	}
	whole, err := strconv.ParseUint(m[1], 10, 64)
	hi, lo := bits.Mul64(whole, unit)
	if err != nil || hi != 0 || lo > math.MaxInt64 {
		return fmt.Errorf("%q is too large a size", text)
	}
	if m[2] != "" {
		thousandths, _ := strconv.ParseUint((m[2] + "00")[:3], 10, 64)
		// Split, so that it cannot overflow: unit is at most 2^60.
		lo += unit/1000*thousandths + unit%1000*thousandths/1000
	}
	if lo > math.MaxInt64 {
		return fmt.Errorf("%q is too large a size", text)
	}
	*b = Bytes(lo)
	return nil
}

func unitNamed(name string) (uint64, error) {
	if name == "" {
		return 1, nil
	}
	for _, u := range units {
		if u.name == name || u.name == "kB" && name == "KB" {
			return u.bytes, nil
		}
	}
	return 0, fmt.Errorf("unknown unit %q: use B, KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB (powers of 1000)", name)
}

// MarshalText writes the size with the unit that needs the smallest number.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

func (b Bytes) String() string {
	number, unit := int64(b), ""
	for _, u := range units {
		if n := int64(u.bytes); int64(b)%n == 0 && int64(b)/n < number {
			number, unit = int64(b)/n, u.name
		}
	}
	return strconv.FormatInt(number, 10) + unit
}

// Duration is a length of time, never negative. Files write it as Go does:
// 5m, 1h30m, 250ms.
type Duration time.Duration

// UnmarshalText reads a duration; a number without a unit is refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: write it as 250ms, 30s, 5m or 1h30m", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration without units that are zero.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Level is from which importance on things are logged: debug, info, warn or
// error.
type Level slog.Level

// UnmarshalText reads a level's name.
func (l *Level) UnmarshalText(text []byte) error {
	for _, v := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(string(text), v.String()) {
			*l = Level(v)
			return nil
		}
	}
	return fmt.Errorf("%q is not a level: use debug, info, warn or error", text)
}

// MarshalText writes the level's name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

func (l Level) String() string { return strings.ToLower(slog.Level(l).String()) }

// Format is how log lines are written: text or json.
type Format string

// The log formats.
const (
	FormatText Format = "text"
	FormatJSON Format = "json"
)

// UnmarshalText reads a format's name.
func (f *Format) UnmarshalText(text []byte) error {
	switch v := Format(text); v {
	case FormatText, FormatJSON:
		*f = v
		return nil
	}
	return fmt.Errorf("%q is not a log format: use text or json", text)
}
