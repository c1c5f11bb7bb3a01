package forward

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"

	"skimmer/internal/blob"
)

// statuses is the table from Kind to what a client is answered.
var statuses = map[blob.Kind]int{
	blob.Internal:     http.StatusInternalServerError,
	blob.Invalid:      http.StatusBadRequest,
	blob.NotFound:     http.StatusNotFound,
	blob.Unauthorized: http.StatusUnauthorized,
	blob.Forbidden:    http.StatusForbidden,
	blob.Corrupt:      http.StatusBadGateway,
	blob.Unavailable:  http.StatusBadGateway,
	blob.Busy:         http.StatusServiceUnavailable,
	blob.Timeout:      http.StatusGatewayTimeout,
	blob.Full:         http.StatusInsufficientStorage,
	blob.Canceled:     http.StatusServiceUnavailable,
}

var (
	errLoop       = errors.New("pass a request on: it has been here before")
	errMisdirect  = errors.New("answer inside a tunnel: the Host header names another host than CONNECT did")
	errUnexpected = blob.Errorf(blob.Unavailable, "pass a request on: the server demands authentication for a proxy, which it is not")
)

// fail answers a request with why it cannot be. Errors of this proxy are told
// from a server's by Proxy-Status (RFC 9209).
func (p *Proxy) fail(w http.ResponseWriter, req *http.Request, err error) {
	if _, ok := req.Context().Value(insideKey{}).(tunnelTo); ok && lacksTLS(err) {
		// The client asked to speak TLS with that server, not with this proxy. In a
		// tunnel that nobody opened its handshake would fail, whereupon docker, for
		// one, tries plain HTTP with registries that it was told are insecure. An
		// answer, whatever it said, would prove to it that the server has TLS.
		p.log.Warn("proxy request failed: the server speaks no TLS", "method", req.Method, "host", req.Host, "error", err)
		panic(http.ErrAbortHandler) // net/http ends the connection
	}
	err = sorted(err)
	kind, status := blob.KindOf(err), 0
	switch {
	case errors.Is(err, errLoop):
		status = http.StatusLoopDetected
	case errors.Is(err, errMisdirect):
		status = http.StatusMisdirectedRequest
	default:
		status = statuses[kind]
	}
	if kind == blob.Forbidden {
		p.stats.Refused.Add(1)
	}
	if kind == blob.Canceled {
		p.log.Debug("proxy request ended", "method", req.Method, "host", req.Host)
	} else {
		p.log.Warn("proxy request failed", "method", req.Method, "host", req.Host, "error", err)
	}
	w.Header().Set("Proxy-Status", p.name+"; error="+proxyError(err))
	http.Error(w, "skimmer: "+err.Error(), status)
}

// lacksTLS reports an error of a server that has nothing, or something else
// than TLS, where TLS was asked for.
func lacksTLS(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) || errors.Is(err, syscall.ECONNREFUSED)
}

// sorted gives an error of making a connection or reading an answer a kind.
func sorted(err error) error {
	var timeout net.Error
	switch kind := blob.KindOf(err); {
	case kind != blob.Internal || errors.Is(err, errLoop) || errors.Is(err, errMisdirect):
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		return blob.Errorf(blob.Timeout, "pass a request on: %w", err)
	default:
		return blob.Errorf(blob.Unavailable, "pass a request on: %w", err)
	}
}

// proxyError returns RFC 9209's word for an error.
func proxyError(err error) string {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	kind := blob.KindOf(err)
	switch {
	case errors.Is(err, errLoop):
		return "proxy_loop_detected"
	case kind == blob.Forbidden:
		return "destination_ip_prohibited"
	case kind == blob.Invalid || errors.Is(err, errMisdirect):
		return "http_request_error"
	case kind == blob.Canceled || kind == blob.Busy:
		return "connection_limit_reached"
	case errors.As(err, &dns):
		return "dns_error"
	case errors.As(err, &certificate):
		return "tls_certificate_error"
	case kind == blob.Timeout:
		return "connection_timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection_refused"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection_terminated"
	case kind == blob.Unavailable:
		return "destination_unavailable"
	}
	return "proxy_internal_error"
}

// credential is what clients have to show: hashes, so that comparing takes the
// same time for all.
type credential struct {
	demanded       bool
	user, password [sha256.Size]byte
}

func newCredential(user, password string) credential {
	return credential{user != "", sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))}
}

// shownBy reports whether a request shows the credential, or need not.
func (c credential) shownBy(req *http.Request) bool {
	if !c.demanded {
		return true
	}
	shown := http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}
	user, password, ok := shown.BasicAuth()
	given := newCredential(user, password)
	same := subtle.ConstantTimeCompare(given.user[:], c.user[:]) & subtle.ConstantTimeCompare(given.password[:], c.password[:])
	return ok && same == 1
}

// demand asks a client for the credential.
func (p *Proxy) demand(w http.ResponseWriter, req *http.Request) {
	p.log.Debug("proxy request without the password", "method", req.Method, "host", req.Host)
	w.Header().Set("Proxy-Authenticate", `Basic realm="skimmer proxy", charset="UTF-8"`)
	http.Error(w, "skimmer: this proxy demands a user and a password (proxy.server.basicAuth)", http.StatusProxyAuthRequired)
}
