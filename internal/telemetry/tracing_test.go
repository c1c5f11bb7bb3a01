package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"skimmer/internal/image/trace"
)

// receiver is a collector that keeps what it is sent, over HTTP or gRPC.
type receiver struct {
	collectorpb.UnimplementedTraceServiceServer

	mu       sync.Mutex
	headers  []http.Header                            // mu guards
	paths    []string                                 // mu guards
	requests []*collectorpb.ExportTraceServiceRequest // mu guards
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var body io.Reader = req.Body
	if req.Header.Get("Content-Encoding") == "gzip" {
		zr, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = zr
	}
	data, err := io.ReadAll(body)
	var msg collectorpb.ExportTraceServiceRequest
	if err := errors.Join(err, proto.Unmarshal(data, &msg)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.headers, r.paths = append(r.headers, req.Header), append(r.paths, req.URL.Path)
	r.mu.Unlock()
	answer, err := r.Export(req.Context(), &msg)
	if err == nil {
		data, err = proto.Marshal(answer)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(data)
}

// Export implements the collector's gRPC service.
func (r *receiver) Export(_ context.Context, msg *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, msg)
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// spans returns all spans that came, and the attributes of the first resource.
func (r *receiver) spans(t *testing.T) (spans []*tracepb.Span, resource map[string]any) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.requests {
		for _, rs := range req.ResourceSpans {
			resource = map[string]any{}
			for _, kv := range rs.Resource.Attributes {
				resource[kv.Key] = kv.Value.GetStringValue()
			}
			for _, ss := range rs.ScopeSpans {
				spans = append(spans, ss.Spans...)
			}
		}
	}
	return spans, resource
}

func attributes(s *tracepb.Span) map[string]any {
	all := map[string]any{}
	for _, kv := range s.Attributes {
		all[kv.Key] = kv.Value.GetStringValue()
		if n := kv.Value.GetIntValue(); n != 0 {
			all[kv.Key] = n
		}
	}
	return all
}

func aStart() trace.Start {
	return trace.Start{
		Image: "registry.example/python:3.12", Manifest: digest.FromString("m"), Began: time.Unix(1700000000, 5000), Settled: 300 * time.Millisecond,
		Profile: "cluster", Read: 77,
		Events: []trace.Event{
			{Kind: trace.Manifest, Took: 12 * time.Millisecond, Bytes: 900, Origin: 900},
			{Kind: trace.Fault, At: 100 * time.Millisecond, Took: 250 * time.Millisecond, Layer: digest.FromString("l"), File: "usr/\xff\xfe", Chunk: 4, Chunks: 2, Peers: 55, Error: "lost"},
		},
	}
}

func checkSpans(t *testing.T, r *receiver) {
	t.Helper()
	spans, resource := r.spans(t)
	if len(spans) != 3 || resource["service.name"] != "skimmer" || resource["host.name"] != "node1" {
		t.Fatalf("%d spans of %v, want 3", len(spans), resource)
	}
	byName := map[string]*tracepb.Span{}
	for _, s := range spans {
		byName[s.Name] = s
	}
	parent, manifest, fault := byName["image start"], byName["manifest"], byName["fault"]
	if parent == nil || manifest == nil || fault == nil {
		t.Fatalf("spans %v", byName)
	}
	began := uint64(time.Unix(1700000000, 5000).UnixNano())
	for _, c := range []struct {
		span       *tracepb.Span
		start, end time.Duration
	}{{parent, 0, 350 * time.Millisecond}, {manifest, 0, 12 * time.Millisecond}, {fault, 100 * time.Millisecond, 350 * time.Millisecond}} {
		if c.span.StartTimeUnixNano != began+uint64(c.start) || c.span.EndTimeUnixNano != began+uint64(c.end) {
			t.Errorf("%s from %d to %d", c.span.Name, c.span.StartTimeUnixNano-began, c.span.EndTimeUnixNano-began)
		}
		if c.span != parent && (!bytes.Equal(c.span.ParentSpanId, parent.SpanId) || !bytes.Equal(c.span.TraceId, parent.TraceId)) {
			t.Errorf("%s is not below the start", c.span.Name)
		}
	}
	if a := attributes(parent); a["container.image.name"] != "registry.example/python:3.12" || a["skimmer.profile"] != "cluster" || a["skimmer.read_bytes"] != int64(77) {
		t.Errorf("attributes of the start: %v", a)
	}
	if a := attributes(fault); a["file.path"] != "usr/\uFFFD" || a["skimmer.chunk"] != int64(4) || a["skimmer.peers_bytes"] != int64(55) {
		t.Errorf("attributes of the fault: %v", a)
	}
	if fault.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || fault.Status.GetMessage() != "lost" {
		t.Errorf("status of the fault: %v", fault.Status)
	}
}

func TestExportHTTP(t *testing.T) {
	r := new(receiver)
	server := httptest.NewServer(r)
	defer server.Close()
	tracer, err := NewTracer(t.Context(), TracerConfig{
		Endpoint: server.URL + "/otlp/v1/traces", Headers: map[string]string{"authorization": "Bearer x"}, Service: "skimmer", Version: "1", Host: "node1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Export(t.Context(), aStart()); err != nil {
		t.Fatal(err)
	}
	checkSpans(t, r)
	if r.paths[0] != "/otlp/v1/traces" || r.headers[0].Get("Authorization") != "Bearer x" {
		t.Errorf("sent to %v with %v", r.paths, r.headers)
	}
	// A long one goes in several requests, in one trace.
	many := aStart()
	for range 2 * batch {
		many.Events = append(many.Events, trace.Event{Kind: trace.Fault, Took: 1})
	}
	if err := tracer.Export(t.Context(), many); err != nil {
		t.Fatal(err)
	}
	spans, _ := r.spans(t)
	traces := map[string]int{}
	for _, s := range spans {
		traces[string(s.TraceId)]++
	}
	if len(r.requests) != 4 || len(spans) != 3+3+2*batch || len(traces) != 2 {
		t.Errorf("%d requests with %d spans in %d traces", len(r.requests), len(spans), len(traces))
	}
	if err := tracer.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestExportGRPC(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, server := new(receiver), grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() {
		server.Stop()
		<-served
	}()
	tracer, err := NewTracer(t.Context(), TracerConfig{Endpoint: ln.Addr().String(), GRPC: true, Service: "skimmer", Host: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Export(t.Context(), aStart()); err != nil {
		t.Fatal(err)
	}
	checkSpans(t, r)
	if err := tracer.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestExportFails(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }))
	defer server.Close()
	tracer, err := NewTracer(t.Context(), TracerConfig{Endpoint: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Export(t.Context(), aStart()); err == nil || !strings.Contains(err.Error(), "export the start of registry.example/python:3.12") {
		t.Errorf("a collector that refuses: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tracer.Export(ended, aStart()); err == nil {
		t.Error("exported though the context had ended")
	}
	var off *Tracer
	if err := errors.Join(off.Export(t.Context(), aStart()), off.Close(t.Context())); err != nil {
		t.Errorf("no tracer: %v", err)
	}
	for _, bad := range []string{"", "collector", "ftp://c:1", "http://", "http://%zz"} {
		if _, err := NewTracer(t.Context(), TracerConfig{Endpoint: bad}); err == nil {
			t.Errorf("endpoint %q was taken", bad)
		}
	}
}
