package config

import (
	"strings"
	"testing"
)

func TestTracing(t *testing.T) {
	for _, c := range []struct {
		yaml, endpoint string
		grpc           bool
	}{
		{"{endpoint: 'c:4317'}", "c:4317", true},
		{"{endpoint: 'https://c:4317'}", "https://c:4317", true},
		{"{endpoint: 'c:4318', protocol: http}", "http://c:4318/v1/traces", false},
		{"{endpoint: 'c:4318', protocol: https, path: /other}", "https://c:4318/other", false},
		{"{endpoint: 'http://c:4318/', protocol: http}", "http://c:4318/v1/traces", false},
		{"{endpoint: 'https://c/otlp/v1/traces'}", "https://c/otlp/v1/traces", false},
		{"{endpoint: 'https://c', headers: {authorization: Bearer x}}", "https://c", true},
	} {
		cfg := DefaultPeer()
		if err := Parse("peer.yaml", []byte("tracing: "+c.yaml), &cfg); err != nil {
			t.Errorf("%s: %v", c.yaml, err)
			continue
		}
		endpoint, grpc := cfg.Tracing.Target()
		if endpoint != c.endpoint || grpc != c.grpc || !cfg.Tracing.Enabled() {
			t.Errorf("%s: sent to %s, gRPC %v; want %s, %v", c.yaml, endpoint, grpc, c.endpoint, c.grpc)
		}
	}
	if DefaultPeer().Tracing.Enabled() {
		t.Error("on by default")
	}
	for yaml, want := range map[string]string{
		"{endpoint: collector}":                      "tracing.endpoint",
		"{endpoint: 'ftp://c:1'}":                    "tracing.endpoint",
		"{endpoint: 'http://'}":                      "tracing.endpoint",
		"{endpoint: 'http://u:p@c'}":                 "tracing.endpoint",
		"{endpoint: 'http://c', protocol: https}":    "tracing.endpoint",
		"{endpoint: 'c:1', protocol: udp}":           "tracing.protocol",
		"{endpoint: 'c:1', path: v1}":                "tracing.path",
		"{endpoint: 'c:1', sampler: 0.1}":            "tracing.sampler",
		"{endpoint: 'http://c', headers: [a, b, c]}": "tracing.headers",
	} {
		cfg := DefaultPeer()
		if err := Parse("peer.yaml", []byte("tracing: "+yaml), &cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", yaml, err, want)
		}
	}
}
