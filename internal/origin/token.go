package origin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// authorizer knows what to put into the Authorization header of one client's
// requests to its registry, and into no other. It follows the distribution
// project's token authentication and OAuth2 specifications; it learns from a
// 401 what the registry wants, so a registry that wants nothing costs no
// extra request.
type authorizer struct {
	// constant after newClient
	o          *Origin
	repo       repository
	credential func(context.Context) (Credential, error)
	isGiven    bool // by WithAuthorization: the rest is of no use
	given      given

	// turn is held, as its one element, by whoever obtains a new header. A
	// waiter that is cancelled leaves; one whose predecessor failed tries itself.
	turn chan struct{}

	mu       sync.Mutex // guards the rest
	header   string     // "" until the registry asked for one
	demand   challenge  // what the header answers
	renewAt  time.Time  // zero where the header does not expire
	expireAt time.Time
}

// authorization returns the header to send, "" for none. A token about to
// expire is renewed first; should that fail, it is used while it lasts.
func (a *authorizer) authorization(ctx context.Context) (string, error) {
	if a.isGiven {
		return string(a.given), nil
	}
	a.mu.Lock()
	header, demand, now := a.header, a.demand, time.Now()
	due := !a.renewAt.IsZero() && now.After(a.renewAt)
	usable := now.Before(a.expireAt)
	a.mu.Unlock()
	if !due {
		return header, nil
	}
	renewed, err := a.renew(ctx, header, demand)
	if err != nil && usable && ctx.Err() == nil {
		a.o.cfg.Logger.Debug("using a registry token that could not be renewed while it lasts", "repository", a.repo.String(), "error", err)
		return header, nil
	}
	return renewed, err
}

// refused tells the authorizer that the registry answered 401 to a request
// with the authorization used, and returns a new one. The failure is returned
// where the answer does not say what the registry wants.
func (a *authorizer) refused(ctx context.Context, used string, answer http.Header, f *exchange.Failure) (string, error) {
	if a.isGiven {
		return "", f
	}
	var basic *challenge
	var schemes []string
	for _, c := range parseChallenges(answer.Values("WWW-Authenticate")) {
		switch {
		case c.scheme == "bearer" && c.params["realm"] != "":
			return a.renew(ctx, used, c)
		case c.scheme == "basic" && basic == nil:
			basic = &c
		}
		schemes = append(schemes, c.scheme)
	}
	if basic != nil {
		return a.renew(ctx, used, *basic)
	}
	if len(schemes) == 0 {
		return "", f
	}
	return "", blob.Errorf(blob.Unauthorized, "authenticate to %s: it asks for %s, only basic and bearer are supported", a.repo.host, strings.Join(schemes, ", "))
}

// renew obtains a header that answers demand, unless another caller replaced
// the one used meanwhile.
func (a *authorizer) renew(ctx context.Context, used string, demand challenge) (string, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return "", exchange.Ended(ctx)
	}
	a.mu.Lock()
	header := a.header
	a.mu.Unlock()
	if header != used {
		return header, nil
	}
	cred, err := a.credential(ctx)
	if err != nil {
		return "", blob.Errorf(blob.Unauthorized, "find credentials for %s: %w", a.repo.registry, err)
	}
	var life time.Duration
	switch {
	case cred.RegistryToken != "":
		header = "Bearer " + cred.RegistryToken
	case demand.scheme == "basic" && cred.Username == "" && cred.Password == "":
		return "", blob.Errorf(blob.Unauthorized, "authenticate to %s: it asks for a user and password, and there are none", a.repo.host)
	case demand.scheme == "basic":
		header = basicAuth(cred)
	default:
		var token string
		if token, life, err = a.fetchToken(ctx, demand, cred); err != nil {
			return "", err
		}
		header = "Bearer " + token
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.header, a.demand, a.renewAt = header, demand, time.Time{}
	if life > 0 {
		// By the local clock: the registry's may differ. A fifth of its life is
		// left for requests under way and for renewing it.
		now := time.Now()
		a.expireAt, a.renewAt = now.Add(life), now.Add(life-life/5)
	}
	return header, nil
}

func basicAuth(c Credential) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// Limits of the token service.
const (
	// defaultTokenLife is the life of a token whose answer names none (token
	// specification, "expires_in").
	defaultTokenLife = time.Minute
	maxTokenAnswer   = 1 << 20
)

// fetchToken asks the token service a challenge names for a token to pull,
// and returns it and its life.
func (a *authorizer) fetchToken(ctx context.Context, demand challenge, cred Credential) (string, time.Duration, error) {
	realm, err := a.realm(demand, cred)
	if err != nil {
		return "", 0, err
	}
	var token string
	var life time.Duration
	err = a.o.x.Retry(ctx, func() (err error) {
		token, life, err = a.askToken(ctx, realm, demand, cred)
		return err
	})
	if err != nil {
		kind := blob.KindOf(err)
		if kind == blob.Forbidden && cred == (Credential{}) {
			kind = blob.Unauthorized // what nobody may do, somebody with credentials may
		}
		return "", 0, blob.Errorf(kind, "fetch a token for %s as %v: %w", a.repo, cred, err)
	}
	return token, life, nil
}

// realm checks where a challenge sends us: credentials that are not sent to
// the registry in the clear are not sent to its token service in the clear.
func (a *authorizer) realm(demand challenge, cred Credential) (*url.URL, error) {
	u, err := url.Parse(demand.params["realm"])
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, blob.Errorf(blob.Invalid, "authenticate to %s: its token service has no usable address", a.repo.host)
	}
	if u.Scheme == "http" && cred != (Credential{}) && a.o.x.Scheme(u.Host) != "http" {
		return nil, blob.Errorf(blob.Unauthorized, "authenticate to %s: its token service on %s wants credentials over plain HTTP; list that host as insecure if that is meant", a.repo.host, u.Host)
	}
	return u, nil
}

func (a *authorizer) askToken(ctx context.Context, realm *url.URL, demand challenge, cred Credential) (string, time.Duration, error) {
	req, err := tokenRequest(ctx, realm, demand, "repository:"+a.repo.path+":pull", cred)
	if err != nil {
		return "", 0, err
	}
	a.o.stats.TokenFetches.Add(1)
	resp, err := a.o.x.RoundTrip(req)
	if err == nil && req.Method == http.MethodGet {
		resp, err = a.o.x.Follow(resp, anonymous)
	}
	if err != nil {
		return "", 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return "", 0, exchange.StatusFailure(resp, time.Now())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer))
	if err != nil {
		return "", 0, err
	}
	token, life, err := parseToken(body)
	if err != nil {
		return "", 0, blob.Errorf(blob.Unavailable, "GET %s: %w", realm.Host, err)
	}
	return token, life, nil
}

// tokenRequest writes the request of the token specification, or for an
// identity token that of its OAuth2 variant.
func tokenRequest(ctx context.Context, realm *url.URL, demand challenge, scope string, cred Credential) (*http.Request, error) {
	q := realm.Query()
	if s := demand.params["service"]; s != "" {
		q.Set("service", s)
	}
	q.Set("scope", scope)
	u := *realm
	if cred.IdentityToken != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("client_id", "skimmer")
		q.Set("refresh_token", cred.IdentityToken)
		u.RawQuery = ""
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(q.Encode()))
		if err != nil {
			return nil, fmt.Errorf("make token request to %s: %w", u.Host, err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make token request to %s: %w", u.Host, err)
	}
	if cred.Username != "" || cred.Password != "" {
		req.Header.Set("Authorization", basicAuth(cred))
	}
	return req, nil
}

// parseToken reads a token service's answer.
func parseToken(body []byte) (token string, life time.Duration, err error) {
	var doc struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	// The decoder's error may quote the answer, and with it a token.
	if json.Unmarshal(body, &doc) != nil {
		return "", 0, fmt.Errorf("the token service's answer is not what the specification says")
	}
	if token = doc.Token; token == "" {
		token = doc.AccessToken
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return "", 0, fmt.Errorf("the token service's answer has a token with bytes no header may have")
		}
	}
	if token == "" {
		return "", 0, fmt.Errorf("the token service's answer has no token")
	}
	life = defaultTokenLife
	if doc.ExpiresIn > 0 {
		life = time.Duration(min(doc.ExpiresIn, exchange.MaxWait.Seconds()) * float64(time.Second))
	}
	return token, life, nil
}
