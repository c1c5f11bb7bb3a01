package main

import (
	"context"
	"log/slog"
	"os"

	"skimmer/internal/config"
	"skimmer/internal/image/trace"
	"skimmer/internal/telemetry"
)

// startTracing returns what sends the timelines of starts to the collector of
// the configuration, until ctx ends, and what is to be called after the last;
// nil where there is no collector.
func startTracing(ctx context.Context, cfg config.Peer, log *slog.Logger) (started func(trace.Start), end func() error, err error) {
	if !cfg.Tracing.Enabled() {
		return nil, func() error { return nil }, nil
	}
	host := cfg.Host.Hostname
	if host == "" {
		host, _ = os.Hostname() // it is for people: without a name it is as good
	}
	endpoint, grpc := cfg.Tracing.Target()
	tracer, err := telemetry.NewTracer(ctx, telemetry.TracerConfig{
		Endpoint: endpoint, GRPC: grpc, Headers: cfg.Tracing.Headers, Service: "skimmer", Version: version, Host: host,
	})
	if err != nil {
		return nil, nil, err
	}
	started = func(s trace.Start) {
		if err := tracer.Export(ctx, s); err != nil && ctx.Err() == nil {
			log.Warn("cannot send the timeline of a start to the collector", "endpoint", endpoint, "image", s.Image, "error", err)
		}
	}
	return started, func() error { return tracer.Close(context.WithoutCancel(ctx)) }, nil
}
