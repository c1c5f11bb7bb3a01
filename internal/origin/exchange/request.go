package exchange

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"skimmer/internal/blob"
)

// NewRequest returns a request without a body, with a copy of header.
func NewRequest(ctx context.Context, method string, u *url.URL, header http.Header) *http.Request {
	req := (&http.Request{Method: method, URL: u, Host: u.Host, Header: header.Clone()}).WithContext(ctx)
	if req.Header == nil {
		req.Header = make(http.Header)
	}
	return req
}

// RoundTrip makes one request, as it is. Its answer, body included, ends with
// the request's context or when it makes no progress for too long; errors of
// the body are failures like those returned.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	c.stats.Requests.Add(1)
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "skimmer")
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(2*c.cfg.ConnectTimeout+c.cfg.HeaderTimeout, func() { cancel(errNoHeaders) })
	rt, ok := lookup(req.URL.Host, c.transports)
	if !ok {
		rt = c.cfg.Transport
	}
	resp, err := rt.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		defer cancel(nil)
		return nil, transportFailure(ctx, req, err)
	}
	resp.Request = req
	resp.Body = &body{rc: resp.Body, c: c, req: req, ctx: ctx, cancel: cancel}
	return resp, nil
}

// body is the body of an answer, watched for pauses.
type body struct {
	rc     io.ReadCloser
	c      *Client
	req    *http.Request
	ctx    context.Context // of the attempt
	cancel context.CancelCauseFunc
	timer  *time.Timer // nil until the first Read; runs only during Read
}

func (b *body) Read(p []byte) (int, error) {
	if b.timer == nil {
		b.timer = time.AfterFunc(b.c.cfg.IdleTimeout, func() { b.cancel(errNoBytes) })
	} else {
		b.timer.Reset(b.c.cfg.IdleTimeout)
	}
	n, err := b.rc.Read(p)
	b.timer.Stop()
	b.c.stats.Bytes.Add(int64(n))
	if err != nil && err != io.EOF {
		err = transportFailure(b.ctx, b.req, err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.rc.Close()
	b.cancel(nil)
	return err
}

// maxRedirects bounds a chain of redirects.
const maxRedirects = 5

// Follow goes where an answer redirects to, if it does; crossing takes out of
// a header what must not go along to another host (RFC 9110, section 15.4).
func (c *Client) Follow(resp *http.Response, crossing func(http.Header)) (*http.Response, error) {
	for n := 0; ; n++ {
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		req := resp.Request
		Discard(resp)
		if n == maxRedirects {
			return nil, blob.Errorf(blob.Unavailable, "%s %s: more than %d redirects", req.Method, req.URL.Host, maxRedirects)
		}
		location := resp.Header.Get("Location")
		to, err := req.URL.Parse(location)
		if err != nil || location == "" || to.Host == "" || to.Scheme != "http" && to.Scheme != "https" {
			return nil, blob.Errorf(blob.Unavailable, "%s %s: redirected to no usable address", req.Method, req.URL.Host)
		}
		if to.Scheme == "http" && req.URL.Scheme == "https" && c.Scheme(to.Host) != "http" {
			return nil, blob.Errorf(blob.Unavailable, "%s %s: redirected to plain HTTP on %s; list that host as insecure if that is meant", req.Method, req.URL.Host, to.Host)
		}
		if c.cfg.NoWayBack && IsLoopback(to.Hostname()) && !IsLoopback(req.URL.Hostname()) {
			return nil, blob.Errorf(blob.Forbidden, "%s %s: redirected to this machine, which another may not do", req.Method, req.URL.Host)
		}
		c.stats.Redirects.Add(1)
		next := NewRequest(req.Context(), req.Method, to, req.Header)
		if to.Scheme != req.URL.Scheme || to.Host != req.URL.Host {
			crossing(next.Header)
		}
		if resp, err = c.RoundTrip(next); err != nil {
			return nil, err
		}
	}
}
