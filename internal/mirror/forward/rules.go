package forward

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"skimmer/internal/blob"
)

// Rule says what becomes of requests for some URLs.
type Rule struct {
	// Regex is searched for in the URL, with its query and without: a rule that
	// ends with $ need not know of queries. Scheme and host are in lower case, the
	// port is left out where it is the scheme's.
	Regex string
	// UseTLS asks the server over https.
	UseTLS bool
	// Redirect asks this host, "host" or "host:port", in place of the URL's.
	Redirect string
	// Direct passes the request on, past the swarm.
	Direct bool
	// FilteredQueryParams lists parameters that do not tell files apart.
	FilteredQueryParams []string
}

// rule is a Rule that can be applied.
type rule struct {
	Rule
	regex *regexp.Regexp
	prog  *syntax.Prog
}

type rules []rule

func compile(list []Rule) (rules, error) {
	var out rules
	for i, r := range list {
		regex, err := regexp.Compile(r.Regex)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "compile rule %d of the proxy: %w", i+1, err)
		}
		if r.Redirect != "" {
			if _, err := hostOf(r.Redirect, "https"); err != nil {
				return nil, blob.Errorf(blob.Invalid, "compile rule %d of the proxy: redirect %q is not a host", i+1, r.Redirect)
			}
		}
		parsed, err := syntax.Parse(withoutLead(r.Regex), syntax.Perl)
		if err != nil { // without its lead it is another expression
			parsed, err = syntax.Parse(r.Regex, syntax.Perl)
		}
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "compile rule %d of the proxy: %w", i+1, err)
		}
		prog, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "compile rule %d of the proxy: %w", i+1, err)
		}
		out = append(out, rule{r, regex, prog})
	}
	return out, nil
}

// withoutLead takes away a ".*" at the beginning, which changes nothing for a
// search, but would make the rule name every host.
func withoutLead(expr string) string {
	rest, ok := strings.CutPrefix(expr, ".*")
	if !ok || rest == "" || strings.ContainsAny(rest[:1], "*+?{^|)") || strings.Contains(rest, "|") {
		return expr
	}
	return rest
}

// matches reports whether the rule is about a URL.
func (r rule) matches(u *url.URL) bool {
	if r.regex.MatchString(u.String()) {
		return true
	}
	if u.RawQuery == "" && !u.ForceQuery {
		return false
	}
	bare := *u
	bare.RawQuery, bare.ForceQuery = "", false
	return r.regex.MatchString(bare.String())
}

// rewrite returns the URL to ask in place of u.
func (r rule) rewrite(u *url.URL) *url.URL {
	out := *u
	if r.UseTLS && out.Scheme == "http" {
		out.Scheme = "https"
	}
	if r.Redirect != "" {
		out.Host, _ = hostOf(r.Redirect, out.Scheme) // compile did it, too
	}
	return &out
}

// decision is what becomes of a request.
type decision struct {
	target   *url.URL
	swarm    bool
	filtered []string // query parameters that do not tell files apart
}

// decide applies the rules, and what the client says itself, to a request.
func (rs rules) decide(target *url.URL, header http.Header) decision {
	d := decision{target: target}
	for _, r := range rs {
		if r.matches(target) {
			d = decision{target: r.rewrite(target), swarm: !r.Direct, filtered: r.FilteredQueryParams}
			break
		}
	}
	if forced, err := strconv.ParseBool(header.Get(headerUseP2P)); err == nil && forced {
		d.swarm = true
	}
	if values := header.Values(headerFiltered); len(values) > 0 {
		d.filtered = nil
		for name := range strings.SplitSeq(strings.Join(values, ","), ",") {
			if name = strings.TrimSpace(name); name != "" {
				d.filtered = append(d.filtered, name)
			}
		}
	}
	return d
}

// aBlob is what a rule for the blobs of all registries matches.
const aBlob = "v2/a/blobs/sha256:0000000000000000000000000000000000000000000000000000000000000000"

// name reports whether rules want to see what is asked of an https host inside
// a tunnel: the first of them that names it decides. A rule names a host when
// what it matches, a ".*" in front apart, can begin before the URL's path, so
// that one which leaves the host open names all; and when it matches the blobs
// of any registry.
func (rs rules) name(host string) bool {
	base := "https://" + host + "/"
	for _, r := range rs {
		switch {
		case !r.Direct && (reaches(r.prog, base) || r.regex.MatchString(base+aBlob)):
			return true
		case r.Direct && r.regex.MatchString(base):
			return false
		}
	}
	return false
}

// reaches reports whether a match of prog that begins in text can be: it ends
// there, or text ends first.
func reaches(prog *syntax.Prog, text string) bool {
	at := make(map[uint32]bool) // instructions that the next rune is for
	before := rune(-1)
	for _, r := range text {
		at[uint32(prog.Start)] = true
		open, matched := follow(prog, at, syntax.EmptyOpContext(before, r))
		if matched {
			return true
		}
		clear(at)
		for pc := range open {
			if inst := &prog.Inst[pc]; inst.MatchRune(r) {
				at[inst.Out] = true
			}
		}
		before = r
	}
	return len(at) > 0
}

// follow returns the instructions that take a rune which can be reached from
// some without one, and whether a match can.
func follow(prog *syntax.Prog, from map[uint32]bool, holds syntax.EmptyOp) (map[uint32]bool, bool) {
	seen, takes := make(map[uint32]bool), make(map[uint32]bool)
	var todo []uint32
	for pc := range from {
		todo = append(todo, pc)
	}
	matched := false
	for len(todo) > 0 {
		pc := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[pc] {
			continue
		}
		seen[pc] = true
		switch inst := &prog.Inst[pc]; inst.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			todo = append(todo, inst.Out, inst.Arg)
		case syntax.InstCapture, syntax.InstNop:
			todo = append(todo, inst.Out)
		case syntax.InstEmptyWidth:
			if want := syntax.EmptyOp(inst.Arg); want&^holds == 0 {
				todo = append(todo, inst.Out)
			}
		case syntax.InstMatch:
			matched = true
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			takes[pc] = true
		case syntax.InstFail:
		}
	}
	return takes, matched
}

// targetOf returns the URL a client asks for, written in one way, without user
// and fragment.
//
// Errors: Invalid, without quoting the URL, which may be secret.
func targetOf(u *url.URL) (*url.URL, error) {
	out := &url.URL{Scheme: strings.ToLower(u.Scheme), Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery}
	if out.Scheme != "http" && out.Scheme != "https" || u.Opaque != "" {
		return nil, blob.Errorf(blob.Invalid, "read URL: its scheme is %.20q: this proxy knows http and https", u.Scheme)
	}
	var err error
	if out.Host, err = hostOf(u.Host, out.Scheme); err != nil {
		return nil, err
	}
	if out.Path == "" {
		out.Path = "/"
	}
	return out, nil
}

// defaultPorts are those that schemes have.
var defaultPorts = map[string]string{"http": "80", "https": "443"}

// hostOf writes host, which may have a port, in one way: in lower case, without
// the scheme's port.
func hostOf(host, scheme string) (string, error) {
	name, port := host, ""
	if strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']') {
		var err error
		if name, port, err = net.SplitHostPort(host); err != nil {
			return "", blob.Errorf(blob.Invalid, "read URL: its host is malformed")
		}
	} else if strings.HasPrefix(host, "[") {
		name = strings.Trim(host, "[]")
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", blob.Errorf(blob.Invalid, "read URL: its port is not one")
		}
	}
	name = strings.ToLower(name)
	addr, err := netip.ParseAddr(name)
	switch {
	case err == nil && addr.Zone() != "" || err != nil && !isName(name):
		return "", blob.Errorf(blob.Invalid, "read URL: its host is malformed")
	case err == nil && addr.Is6():
		name = "[" + name + "]"
	}
	if port == "" || port == defaultPorts[scheme] {
		return name, nil
	}
	return name + ":" + port, nil
}

// isName reports whether s can be the name of a host. Underscores are in names
// that people have.
func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '.' || r == '_')
	})
}

func portOf(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }

// withPort returns host with its port, that of scheme where it has none.
func withPort(host, scheme string) string {
	u := url.URL{Host: host}
	if u.Port() != "" {
		return host
	}
	return net.JoinHostPort(u.Hostname(), defaultPorts[scheme])
}

// place writes a URL as it may be shown.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }
