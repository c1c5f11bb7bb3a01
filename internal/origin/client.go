package origin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// clientKey tells clients apart.
type clientKey struct {
	repository string
	explicit   bool // the credential came with the request
	credential Credential
	isGiven    bool // it came as a header: WithAuthorization
	given      given
}

// client is what all reads of one repository with one credential share: the
// token, and where the registry sent us for each blob.
type client struct {
	// constant after newClient
	o    *Origin
	repo repository
	auth *authorizer

	mu      sync.Mutex                  // guards the rest
	targets *lru[digest.Digest, target] // where blobs were found
}

// target is where the registry redirected us to for a blob.
type target struct {
	url     *url.URL // its query may be a signature: never shown
	expires time.Time
}

// maxTargets bounds the redirects a client remembers; a repository's images
// seldom have more layers in use.
const maxTargets = 512

// client returns the client for a repository and the context's credential.
func (o *Origin) client(ctx context.Context, repository string) (*client, error) {
	rep, err := parseRepository(repository)
	if err != nil {
		return nil, err
	}
	key := clientKey{repository: rep.String()}
	if key.given, key.isGiven = ctx.Value(givenKey{}).(given); !key.isGiven {
		key.credential, key.explicit = credentialOf(ctx)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if c, ok := o.clients.get(key); ok {
		return c, nil
	}
	c := &client{o: o, repo: rep, targets: newLRU[digest.Digest, target](maxTargets)}
	c.auth = &authorizer{o: o, repo: rep, isGiven: key.isGiven, given: key.given, turn: make(chan struct{}, 1)}
	c.auth.credential = func(ctx context.Context) (Credential, error) {
		if key.explicit {
			return key.credential, nil
		}
		return o.cfg.Keychain.Credential(ctx, rep.String())
	}
	o.clients.put(key, c)
	return c, nil
}

// explain wraps an error of an operation so that it says what was done and,
// where logging in may help, how.
func (c *client) explain(err error, format string, args ...any) error {
	kind := blob.KindOf(err)
	if kind == blob.Unauthorized {
		return blob.Errorf(kind, "%s: %w; log in with \"docker login %s\"", fmt.Sprintf(format, args...), err, c.repo.registry)
	}
	return blob.Errorf(kind, "%s: %w", fmt.Sprintf(format, args...), err)
}

// send makes one request to the registry, path being relative to the
// repository and with a query where it has one, with authorization; a 401 gets it repeated once with a new one.
// Redirects are followed. The caller closes the answer's body.
func (c *client) send(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	path, query, _ := strings.Cut(path, "?")
	u := &url.URL{Scheme: c.o.x.Scheme(c.repo.host), Host: c.repo.host, Path: "/v2/" + c.repo.path + path, RawQuery: query}
	authorization, err := c.auth.authorization(ctx)
	for first := true; err == nil; first = false {
		var resp *http.Response
		resp, err = c.o.x.RoundTrip(newRequest(ctx, method, u, header, authorization))
		if err != nil {
			break
		}
		if resp.StatusCode != http.StatusUnauthorized || !first {
			return c.o.x.Follow(resp, anonymous)
		}
		authorization, err = c.auth.refused(ctx, authorization, resp.Header, exchange.StatusFailure(resp, time.Now()))
	}
	return nil, err
}

func newRequest(ctx context.Context, method string, u *url.URL, header http.Header, authorization string) *http.Request {
	req := exchange.NewRequest(ctx, method, u, header)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return req
}

// fetch asks for bytes of a blob where they were found the last time, or else
// at the registry, and returns an answer of any status.
func (c *client) fetch(ctx context.Context, d digest.Digest, header http.Header) (*http.Response, error) {
	if t, ok := c.target(d); ok {
		resp, err := c.o.x.RoundTrip(newRequest(ctx, http.MethodGet, t.url, header, ""))
		if err != nil {
			c.forget(d, t) // the server may have moved; the registry knows
			return nil, err
		}
		if !stale(resp.StatusCode) {
			return resp, nil
		}
		exchange.Discard(resp)
		c.forget(d, t)
	}
	resp, err := c.send(ctx, http.MethodGet, "/blobs/"+d.String(), header)
	if err != nil {
		return nil, err
	}
	good := resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
	if u := resp.Request.URL; good && u.Host != c.repo.host {
		c.mu.Lock()
		c.targets.put(d, target{u, targetExpiry(u.Query(), time.Now())})
		c.mu.Unlock()
	}
	return resp, nil
}

// stale reports whether a remembered target's answer means that the registry
// must be asked again: storage servers say so in many ways.
func stale(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return true
	}
	return 300 <= status && status < 400
}

func (c *client) target(d digest.Digest) (target, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.targets.get(d)
	if ok && time.Now().After(t.expires) {
		c.targets.remove(d)
		return target{}, false
	}
	return t, ok
}

// forget removes a target, unless another has taken its place.
func (c *client) forget(d digest.Digest, old target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.targets.get(d); ok && t.url == old.url {
		c.targets.remove(d)
	}
}

// How long a redirect is remembered: as its URL says, less a margin for
// clocks and for requests under way, but never longer than a registry should
// go unasked whether we may still read.
const (
	targetLife   = 15 * time.Minute
	targetMargin = 10 * time.Second
)

// targetExpiry reads from the query of a signed URL until when to use it. The
// forms are those of AWS Signature Version 4 and Google Cloud Storage V4
// (date and life), CloudFront and older S3 and GCS signatures (seconds since
// the epoch), and Azure shared access signatures (time).
func targetExpiry(q url.Values, now time.Time) time.Time {
	limit := now.Add(targetLife)
	expires := limit.Add(targetMargin)
	for _, vendor := range []string{"X-Amz-", "X-Goog-"} {
		date, err := time.Parse("20060102T150405Z", q.Get(vendor+"Date"))
		life, err2 := strconv.ParseUint(q.Get(vendor+"Expires"), 10, 31)
		if err == nil && err2 == nil {
			expires = date.Add(time.Duration(life) * time.Second)
		}
	}
	if s, err := strconv.ParseInt(q.Get("Expires"), 10, 64); err == nil {
		expires = time.Unix(s, 0)
	}
	if t, err := time.Parse(time.RFC3339, q.Get("se")); err == nil {
		expires = t
	}
	if expires = expires.Add(-targetMargin); expires.After(limit) {
		return limit
	}
	return expires
}

// anonymous takes our credentials out of a header that goes to another host.
func anonymous(h http.Header) { h.Del("Authorization") }
