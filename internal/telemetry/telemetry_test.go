package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func request(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

func TestLogger(t *testing.T) {
	var level slog.LevelVar
	var out bytes.Buffer
	log := Logger(&out, true, &level)
	log.Debug("hidden")
	level.Set(slog.LevelDebug)
	log.Debug("shown", "n", 3)
	var record struct {
		Level, Msg string
		N          int
	}
	if err := json.Unmarshal(out.Bytes(), &record); err != nil || record.Msg != "shown" || record.N != 3 || record.Level != "DEBUG" {
		t.Errorf("logged %q (%v), want only the second record", out.String(), err)
	}
	out.Reset()
	Logger(&out, false, slog.LevelInfo).Info("hello there", "n", 3)
	if !strings.Contains(out.String(), `level=INFO msg="hello there" n=3`) {
		t.Errorf("logged %q", out.String())
	}
}

func TestMetrics(t *testing.T) {
	m := NewMetrics("1.2", "abc")
	var reads, held atomic.Int64
	err := m.Register(
		Value{Name: "reads_total", Help: "Reads.", Labels: map[string]string{"from": "origin"}, Load: reads.Load},
		Value{Name: "reads_total", Help: "Reads.", Labels: map[string]string{"from": "store"}, Load: held.Load},
		Value{Name: "held_bytes", Help: "Held.", Load: held.Load},
	)
	if err != nil {
		t.Fatal(err)
	}
	reads.Add(7)
	held.Add(-3)
	w := request(m.Handler(), "GET", "/metrics", "")
	for _, want := range []string{
		"# TYPE skimmer_reads_total counter\n", "skimmer_reads_total{from=\"origin\"} 7\n",
		"# TYPE skimmer_held_bytes gauge\n", "skimmer_held_bytes -3\n",
		`skimmer_build_info{go="go`, `revision="abc",version="1.2"} 1`, "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("/metrics has no %q in:\n%s", want, w.Body)
		}
	}
	err = m.Register(
		Value{Name: "held_bytes", Help: "Held.", Load: held.Load},
		Value{Name: "not a name", Help: "Bad.", Load: held.Load},
		Value{Name: "fine", Help: "Good.", Load: held.Load},
	)
	if err == nil || !strings.Contains(err.Error(), "register metric held_bytes: ") || !strings.Contains(err.Error(), `register metric "not a name": `) {
		t.Errorf("registering taken and malformed names: %v", err)
	}
	if w := request(m.Handler(), "GET", "/metrics", ""); !strings.Contains(w.Body.String(), "skimmer_fine -3\n") {
		t.Error("the value between bad ones is missing")
	}
}

func TestDebug(t *testing.T) {
	var level slog.LevelVar
	h := Debug(&level)
	if w := request(h, "GET", "/debug/level", ""); w.Body.String() != "info\n" {
		t.Errorf("level is %q", w.Body)
	}
	if w := request(h, "PUT", "/debug/level", "debug\n"); w.Code != http.StatusNoContent || level.Level() != slog.LevelDebug {
		t.Errorf("setting the level: %d, now %v", w.Code, level.Level())
	}
	for _, bad := range []string{"loud", "", strings.Repeat("x", 1000)} {
		if w := request(h, "PUT", "/debug/level", bad); w.Code != http.StatusBadRequest || level.Level() != slog.LevelDebug {
			t.Errorf("setting the level to %.10q: %d, now %v", bad, w.Code, level.Level())
		}
	}
	if w := request(h, "GET", "/debug/pprof/goroutine?debug=2", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "TestDebug") {
		t.Errorf("stack dump: %d, %.100q", w.Code, w.Body)
	}
	if got := DebugAddress(6060); got != "127.0.0.1:6060" {
		t.Errorf("address = %q", got)
	}
}
