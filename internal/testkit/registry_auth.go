package testkit

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// grant is what a token allows.
type grant struct {
	scopes  []string // "repository:NAME:pull"
	expires time.Time
}

// authorize checks a request's credentials and answers it where they do not
// do. It reports whether the request may go on.
func (r *Registry) authorize(w http.ResponseWriter, req *http.Request, op Op, repo string) bool {
	action := "pull"
	if op == Upload {
		action = "push"
	}
	switch r.opts.Auth {
	case BasicAuth:
		if user, password, ok := req.BasicAuth(); ok && r.known(user, password) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="testkit registry"`)
	case TokenAuth:
		token, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		scope := "repository:" + repo + ":" + action
		r.mu.Lock()
		g, ok := r.tokens[token]
		r.mu.Unlock()
		if ok && time.Now().Before(g.expires) && (op == Ping || slices.Contains(g.scopes, scope)) {
			return true
		}
		challenge := fmt.Sprintf(`Bearer realm="%s/token",service="testkit"`, r.URL())
		if op != Ping {
			challenge += fmt.Sprintf(`,scope="repository:%s:%s"`, repo, map[string]string{"pull": "pull", "push": "pull,push"}[action])
		}
		w.Header().Set("WWW-Authenticate", challenge)
	default:
		return true
	}
	r.mu.Lock()
	r.stats.Unauthorized++
	r.mu.Unlock()
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func (r *Registry) known(user, password string) bool {
	want, ok := r.opts.Users[user]
	r.mu.Lock()
	defer r.mu.Unlock()
	return ok && want == password && !r.dismissed[user]
}

// serveToken is the token service: the distribution project's token
// specification for GET, its OAuth2 specification for POST.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		refuse(w, http.StatusBadRequest, "UNSUPPORTED", "bad form")
		return
	}
	user, password, named := req.BasicAuth()
	known := named && r.known(user, password)
	if req.Method == http.MethodPost {
		switch req.PostForm.Get("grant_type") {
		case "refresh_token":
			_, known = r.opts.IdentityTokens[req.PostForm.Get("refresh_token")]
		case "password":
			known = r.known(req.PostForm.Get("username"), req.PostForm.Get("password"))
		}
		named = true
	}
	if named && !known {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	ttl := r.opts.TokenTTL
	if ttl == 0 {
		ttl = 5 * time.Minute
	}
	g := grant{expires: time.Now().Add(ttl)}
	for _, scope := range req.Form["scope"] {
		for one := range strings.FieldsSeq(scope) {
			g.scopes = append(g.scopes, r.allowed(one, known)...)
		}
	}
	token := rand.Text()
	r.mu.Lock()
	r.tokens[token] = g
	r.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]any{
		"token": token, "access_token": token,
		"expires_in": int(ttl.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// allowed returns the single-action scopes of scope that the client gets.
func (r *Registry) allowed(scope string, known bool) []string {
	parts := strings.Split(scope, ":")
	if len(parts) != 3 || parts[0] != "repository" {
		return nil
	}
	var got []string
	for action := range strings.SplitSeq(parts[2], ",") {
		if known || action == "pull" && !r.isPrivate(parts[1]) {
			got = append(got, "repository:"+parts[1]+":"+action)
		}
	}
	return got
}

// Tokens returns all tokens that were given out.
func (r *Registry) Tokens() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.tokens))
}
