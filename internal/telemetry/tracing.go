package telemetry

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"skimmer/internal/image/trace"
)

const (
	// exportTimeout limits one request to a collector.
	exportTimeout = 10 * time.Second
	// batch is how many spans a request has at most: collectors refuse
	// messages of more than 4 MiB.
	batch = 2000
)

// TracerConfig says where a [Tracer] sends spans, and in whose name.
type TracerConfig struct {
	// Endpoint is the collector's: host:port without encryption, or a URL, with
	// https for TLS by the system's authorities. A URL's path is that of HTTP,
	// /v1/traces if it has none.
	Endpoint string
	// GRPC speaks OTLP over gRPC, otherwise it is protobuf over HTTP.
	GRPC bool
	// Headers are sent with each request.
	Headers map[string]string
	// Service, Version and Host are what spans say they come from.
	Service, Version, Host string
}

// Tracer gives an OpenTelemetry collector the timelines of starts. It is safe
// for concurrent use.
type Tracer struct {
	exporter sdktrace.SpanExporter
	resource *resource.Resource
}

// NewTracer returns a tracer. It does not wait for the collector, which may
// come and go.
func NewTracer(ctx context.Context, cfg TracerConfig) (*Tracer, error) {
	exporter, err := newExporter(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("set up tracing: %w", err)
	}
	var attrs []attribute.KeyValue
	for _, a := range []struct{ key, value string }{
		{"service.name", cfg.Service}, {"service.version", cfg.Version}, {"host.name", cfg.Host},
	} {
		if a.value != "" {
			attrs = append(attrs, attribute.String(a.key, a.value))
		}
	}
	return &Tracer{exporter, resource.NewSchemaless(attrs...)}, nil
}

func newExporter(ctx context.Context, cfg TracerConfig) (sdktrace.SpanExporter, error) {
	secure, host, path, err := splitEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	if cfg.GRPC {
		opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(host), otlptracegrpc.WithTimeout(exportTimeout), otlptracegrpc.WithHeaders(cfg.Headers)}
		if !secure {
			opts = append(opts, otlptracegrpc.WithInsecure())
		}
		return otlptracegrpc.New(ctx, opts...)
	}
	opts := []otlptracehttp.Option{
		otlptracehttp.WithEndpoint(host), otlptracehttp.WithURLPath(path), otlptracehttp.WithTimeout(exportTimeout), otlptracehttp.WithHeaders(cfg.Headers),
	}
	if !secure {
		opts = append(opts, otlptracehttp.WithInsecure())
	}
	return otlptracehttp.New(ctx, opts...)
}

// splitEndpoint takes an endpoint apart, as TracerConfig has it.
func splitEndpoint(endpoint string) (secure bool, host, path string, err error) {
	path = "/v1/traces"
	if !strings.Contains(endpoint, "://") {
		if _, _, err := net.SplitHostPort(endpoint); err != nil {
			return false, "", "", fmt.Errorf("read endpoint %q: %w", endpoint, err)
		}
		return false, endpoint, path, nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return false, "", "", fmt.Errorf("read endpoint: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return false, "", "", fmt.Errorf("read endpoint %q: want host:port, or a URL with http or https", endpoint)
	}
	if u.Path != "" && u.Path != "/" {
		path = u.Path
	}
	return u.Scheme == "https", u.Host, path, nil
}

// Export sends a start that has ended: one span for all of it and, below that,
// one for each event, with its times, sizes and sources. It returns when the
// collector has taken them; what it did not take, after some tries or when ctx
// ended, is lost. A nil Tracer takes everything and sends nothing.
func (t *Tracer) Export(ctx context.Context, s trace.Start) error {
	if t == nil {
		return nil
	}
	spans := t.spans(ctx, s)
	for len(spans) > 0 {
		n := min(batch, len(spans))
		if err := t.exporter.ExportSpans(ctx, spans[:n]); err != nil {
			return fmt.Errorf("export the start of %s: %w", s.Image, err)
		}
		spans = spans[n:]
	}
	return nil
}

// Close ends the connection to the collector.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.exporter.Shutdown(ctx); err != nil {
		return fmt.Errorf("end tracing: %w", err)
	}
	return nil
}

// spans makes spans of a start, the children first.
func (t *Tracer) spans(ctx context.Context, s trace.Start) []sdktrace.ReadOnlySpan {
	var ended collector
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(t.resource), sdktrace.WithSpanProcessor(&ended), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	tracer := provider.Tracer("skimmer/internal/image/trace")
	end := s.Settled
	for _, e := range s.Events {
		end = max(end, e.At+e.Took)
	}
	ctx, parent := tracer.Start(ctx, "image start", oteltrace.WithNewRoot(), oteltrace.WithTimestamp(s.Began), oteltrace.WithAttributes(startAttributes(s)...))
	for _, e := range s.Events {
		_, span := tracer.Start(ctx, valid(string(e.Kind)), oteltrace.WithTimestamp(s.Began.Add(e.At)), oteltrace.WithAttributes(eventAttributes(e)...))
		if e.Error != "" {
			span.SetStatus(codes.Error, valid(e.Error))
		}
		span.End(oteltrace.WithTimestamp(s.Began.Add(e.At + e.Took)))
	}
	parent.End(oteltrace.WithTimestamp(s.Began.Add(end)))
	return ended.take()
}

func startAttributes(s trace.Start) []attribute.KeyValue {
	return append([]attribute.KeyValue{
		text("container.image.name", s.Image),
		text("oci.manifest.digest", string(s.Manifest)),
		text("skimmer.profile", s.Profile),
		attribute.Float64("skimmer.settled_ms", float64(s.Settled)/1e6),
	}, numbers(
		number{"skimmer.profile.wanted_bytes", s.Wanted}, number{"skimmer.profile.used_bytes", s.Used},
		number{"skimmer.read_bytes", s.Read}, number{"skimmer.inflated_bytes", s.Inflated}, number{"skimmer.fetched_bytes", s.Fetched},
		number{"skimmer.dropped_events", int64(s.Dropped)})...)
}

func eventAttributes(e trace.Event) []attribute.KeyValue {
	var attrs []attribute.KeyValue
	if e.Layer != "" {
		attrs = append(attrs, text("skimmer.layer", string(e.Layer)))
	}
	if e.File != "" {
		attrs = append(attrs, text("file.path", e.File))
	}
	if e.Chunks > 0 {
		attrs = append(attrs, attribute.Int("skimmer.chunk", e.Chunk), attribute.Int("skimmer.chunks", e.Chunks))
	}
	return append(attrs, numbers(
		number{"skimmer.bytes", e.Bytes}, number{"skimmer.local_bytes", e.Local},
		number{"skimmer.peers_bytes", e.Peers}, number{"skimmer.origin_bytes", e.Origin})...)
}

// text is attribute.String for what may not be UTF-8, such as names of files,
// with which nothing could be encoded.
func text(key, value string) attribute.KeyValue { return attribute.String(key, valid(value)) }

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

type number struct {
	key   string
	value int64
}

// numbers returns attributes for those that are not 0.
func numbers(all ...number) []attribute.KeyValue {
	var attrs []attribute.KeyValue
	for _, n := range all {
		if n.value != 0 {
			attrs = append(attrs, attribute.Int64(n.key, n.value))
		}
	}
	return attrs
}

// collector keeps the spans that ended.
type collector struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan // mu guards
}

var _ sdktrace.SpanProcessor = (*collector)(nil)

// OnStart implements sdktrace.SpanProcessor.
func (c *collector) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor.
func (c *collector) OnEnd(s sdktrace.ReadOnlySpan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spans = append(c.spans, s)
}

// Shutdown implements sdktrace.SpanProcessor.
func (c *collector) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdktrace.SpanProcessor.
func (c *collector) ForceFlush(context.Context) error { return nil }

func (c *collector) take() []sdktrace.ReadOnlySpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans
}
