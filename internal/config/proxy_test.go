package config

import (
	"strings"
	"testing"
	"time"
)

func TestProxy(t *testing.T) {
	cfg := DefaultPeer()
	// As it is written for Dragonfly's dfdaemon.
	text := `verbose: true
pprofPort: 18066
proxy:
  server:
    port: 4001
  prefetch: true
  registryMirror:
    addr: https://index.docker.io
  rules:
    - regex: blobs/sha256.*
    - regex: internal\.example
      useTLS: true
      redirect: mirror.example:443
      filteredQueryParams: [Signature, Expires]
    - regex: .
      direct: true
  authorizationTTL: 30s
`
	if err := Parse("peer.yaml", []byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	p := cfg.Proxy
	if p.Server.Address() != "127.0.0.1:4001" || !p.Prefetch || len(p.Rules) != 3 || time.Duration(p.AuthorizationTTL) != 30*time.Second {
		t.Errorf("read %+v", p)
	}
	if r := p.Rules[1]; !r.UseTLS || r.Redirect != "mirror.example:443" || len(r.FilteredQueryParams) != 2 || r.Direct {
		t.Errorf("read rule %+v", r)
	}
}

func TestProxyRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"regex":       {"rules: [{regex: '('}]", "proxy.rules[0].regex"},
		"no regex":    {"rules: [{regex: a}, {direct: true}]", "proxy.rules[1].regex"},
		"unknown":     {"rules: [{regexp: a}]", "regexp: unknown key"},
		"redirect":    {"rules: [{regex: a, redirect: 'http://a/'}]", "proxy.rules[0].redirect"},
		"upstream":    {"registryMirror: {addr: index.docker.io}", "proxy.registryMirror.addr"},
		"in upstream": {"registryMirror: {addr: 'https://u:p@index.docker.io'}", "proxy.registryMirror.addr"},
		"authority":   {"server: {caCert: /a.pem}", "proxy.server.caCert"},
		"password":    {"server: {basicAuth: {password: x}}", "proxy.server.basicAuth.username"},
		"ttl":         {"authorizationTTL: -1s", "proxy.authorizationTTL"},
		"allowed":     {"allowHosts: ['a/b']", "proxy.allowHosts"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultPeer()
			err := Parse("peer.yaml", []byte("proxy: {"+c.text+"}\n"), &cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %s", err, c.want)
			}
		})
	}
}
