// Package telemetry is how a process is looked into while it runs: its log,
// its metrics, and the endpoints a person debugs it by.
//
// The data path does not import it. Loggers are handed to it, and it counts
// with atomics of its own, which [Metrics.Register] reads when Prometheus
// asks, so that counting costs an addition and nothing else.
package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Logger returns a logger that writes to w, as text (logfmt) or as JSON, one
// line for each record from level on; level may be changed at any time.
func Logger(w io.Writer, json bool, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if json {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// namespace is what the names of all our metrics begin with.
const namespace = "skimmer"

// Metrics is the metrics of a process. It is safe for concurrent use.
type Metrics struct {
	reg *prometheus.Registry
}

// NewMetrics returns the metrics every process has: those of the Go runtime
// and of the operating system's process, and skimmer_build_info, whose labels
// say what is running.
func NewMetrics(version, revision string) *Metrics {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace:   namespace,
		Name:        "build_info",
		Help:        "What is running, in its labels; the value is always 1.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "go": runtime.Version()},
	})
	build.Set(1)
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build,
	)
	return &Metrics{reg: reg}
}

// Value is a number that somebody else keeps and Prometheus reads.
type Value struct {
	// Name is the metric's name without the leading skimmer_, with its unit,
	// such as store_bytes. Names that end in _total are counters, which never
	// fall; all others are gauges.
	Name string
	// Help is a sentence that says what is counted.
	Help string
	// Labels tell values with the same Name and Help apart.
	Labels map[string]string
	// Load returns the value. It is called concurrently and does not block.
	Load func() int64
}

var metricName = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

// Register adds values. The error names each that could not be added, because
// its name is malformed or taken; the others are added all the same.
func (m *Metrics) Register(values ...Value) error {
	var errs []error
	for _, v := range values {
		// The client takes any UTF-8; queries and dashboards do not.
		if !metricName.MatchString(v.Name) {
			errs = append(errs, fmt.Errorf("register metric %q: name must be lower-case words joined by _", v.Name))
			continue
		}
		load := func() float64 { return float64(v.Load()) }
		opts := prometheus.Opts{Namespace: namespace, Name: v.Name, Help: v.Help, ConstLabels: v.Labels}
		var c prometheus.Collector
		if strings.HasSuffix(v.Name, "_total") {
			c = prometheus.NewCounterFunc(prometheus.CounterOpts(opts), load)
		} else {
			c = prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts), load)
		}
		if err := m.reg.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register metric %s: %w", v.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Handler serves the metrics at /metrics, in the formats of Prometheus and
// OpenMetrics.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return mux
}

// DebugAddress returns the address Debug is to be served on, which only this
// machine can reach.
func DebugAddress(port uint16) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
}

// Debug serves what a person looks at when something is wrong: profiles and
// stack dumps below /debug/pprof/ (see net/http/pprof), and /debug/level,
// where GET returns the log level and PUT sets it. It has no access control,
// and a profile may hold secrets: serve it on DebugAddress only.
func Debug(level *slog.LevelVar) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/level", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.ToLower(level.Level().String()))
	})
	mux.HandleFunc("PUT /debug/level", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 100))
		if err == nil {
			err = level.UnmarshalText([]byte(strings.TrimSpace(string(text))))
		}
		if err != nil {
			http.Error(w, "the body must be debug, info, warn or error", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}
