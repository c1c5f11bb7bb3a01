package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Tracing sends the timelines of image starts to an OpenTelemetry collector
// (OTLP): one trace for each start, once its reading has settled.
type Tracing struct {
	// Endpoint is the collector's host:port, or its URL, with https for TLS by
	// the system's authorities; empty sends nothing.
	Endpoint string `yaml:"endpoint"`
	// Protocol is grpc (usually port 4317), http (4318), or https, which is
	// http with TLS. A URL with a path is always spoken to over HTTP.
	Protocol TracingProtocol `yaml:"protocol"`
	// Path is the path of HTTP requests, where endpoint has none.
	Path string `yaml:"path"`
	// Headers are sent with each request, such as what authorizes it.
	Headers map[string]string `yaml:"headers"`
}

// TracingProtocol is how OTLP is spoken: grpc, http or https.
type TracingProtocol string

// The protocols.
const (
	TracingGRPC  TracingProtocol = "grpc"
	TracingHTTP  TracingProtocol = "http"
	TracingHTTPS TracingProtocol = "https"
)

// UnmarshalText reads a protocol's name.
func (p *TracingProtocol) UnmarshalText(text []byte) error {
	switch v := TracingProtocol(text); v {
	case TracingGRPC, TracingHTTP, TracingHTTPS:
		*p = v
		return nil
	}
	return fmt.Errorf("%q is not a protocol: use grpc, http or https", text)
}

// Enabled reports whether anything is sent.
func (t Tracing) Enabled() bool { return t.Endpoint != "" }

// Target returns where to send: a URL, or host:port without TLS, and whether to
// speak gRPC there.
func (t Tracing) Target() (endpoint string, grpc bool) {
	endpoint = t.Endpoint
	if t.Protocol != TracingGRPC && !strings.Contains(endpoint, "://") {
		endpoint = string(t.Protocol) + "://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || !strings.Contains(endpoint, "://") {
		return endpoint, t.Protocol == TracingGRPC
	}
	hasPath := u.Path != "" && u.Path != "/"
	if grpc = t.Protocol == TracingGRPC && !hasPath; !grpc && !hasPath {
		u.Path = t.Path
	}
	return u.String(), grpc
}

// Validate implements Validator.
func (t Tracing) Validate() error {
	var errs []error
	if !strings.HasPrefix(t.Path, "/") {
		errs = append(errs, Invalid("path", "is %q: must begin with /", t.Path))
	}
	if t.Endpoint == "" {
		return errors.Join(errs...)
	}
	if !strings.Contains(t.Endpoint, "://") {
		if _, port, err := net.SplitHostPort(t.Endpoint); err != nil || port == "" {
			errs = append(errs, Invalid("endpoint", "is %q: write it as host:port or as a URL", t.Endpoint))
		}
		return errors.Join(errs...)
	}
	u, err := url.Parse(t.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		errs = append(errs, Invalid("endpoint", "is not a URL such as https://collector.example:4318; what authorizes goes into headers"))
	case u.Scheme != "http" && u.Scheme != "https":
		errs = append(errs, Invalid("endpoint", "begins with %s: use http or https, or host:port", u.Scheme))
	case t.Protocol == TracingHTTPS && u.Scheme == "http":
		errs = append(errs, Invalid("endpoint", "begins with http: protocol is https"))
	}
	return errors.Join(errs...)
}
