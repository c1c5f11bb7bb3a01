package config

import (
	"errors"
	"net/netip"
	"net/url"
	"regexp"
	"time"
)

// Proxy is the registry mirror and the forward proxy, on one port: what
// containerd, the stargz snapshotter and docker fetch images through. See
// skimmer install containerd for containerd's side of it.
type Proxy struct {
	// Server is where they are served.
	Server ProxyServer `yaml:"server"`
	// RegistryMirror says which registry is meant where a request names none.
	RegistryMirror RegistryMirror `yaml:"registryMirror"`
	// Rules say, for requests to the forward proxy, which URLs are fetched
	// through the swarm. The first rule whose regex matches decides; what none
	// matches is passed on as by any proxy.
	Rules []ProxyRule `yaml:"rules"`
	// Prefetch fetches the rest of a blob that was asked for in ranges, when
	// nobody is waiting for anything else.
	Prefetch bool `yaml:"prefetch"`
	// PrefetchRateLimit is how many bytes are fetched so per second at most; 0
	// is no limit.
	PrefetchRateLimit Bytes `yaml:"prefetchRateLimit"`
	// AuthorizationTTL is how long it is remembered that a registry let
	// somebody read a repository. What is on this node's disk is served only to
	// those whom the registry lets.
	AuthorizationTTL Duration `yaml:"authorizationTTL"`
	// AuthorizationGrace is how long it is remembered while the registry cannot
	// be asked.
	AuthorizationGrace Duration `yaml:"authorizationGrace"`
	// AllowHosts lists hosts, addresses and networks (10.0.0.0/8) that the
	// forward proxy may reach though they are on this machine or link-local.
	AllowHosts []string `yaml:"allowHosts"`
}

// ProxyServer is the address of the mirror and proxy.
type ProxyServer struct {
	// IP is the address of the interface. Whoever reaches the port may use this
	// node as a proxy: other than on the loopback interface, set basicAuth.
	IP netip.Addr `yaml:"ip"`
	// Port is the TCP port; 0 turns mirror and proxy off.
	Port uint16 `yaml:"port"`
	// CACert is a PEM file with an authority whose certificates the proxy's
	// users trust. With it, CONNECT to hosts that rules name is opened and what
	// is asked for inside fetched through the swarm; without it, tunnels are
	// passed on unseen.
	CACert string `yaml:"caCert"`
	// CAKey is the PEM file with the authority's key.
	CAKey string `yaml:"caKey"`
	// BasicAuth, where it names a user, is what users of the forward proxy have
	// to show.
	BasicAuth BasicAuth `yaml:"basicAuth"`
}

// BasicAuth is a user of the forward proxy.
type BasicAuth struct {
	// Username is the user's name; empty lets everybody.
	Username string `yaml:"username"`
	// Password is the password.
	Password string `yaml:"password"`
}

// RegistryMirror says where images come from that a client names no registry
// for.
type RegistryMirror struct {
	// Addr is the URL of a registry. Requests with a header X-Dragonfly-Registry
	// or a parameter ns (containerd) name theirs; empty refuses the others.
	Addr string `yaml:"addr"`
}

// ProxyRule says what becomes of requests for some URLs.
type ProxyRule struct {
	// Regex is searched for in the whole URL.
	Regex string `yaml:"regex"`
	// UseTLS asks the server over HTTPS.
	UseTLS bool `yaml:"useTLS"`
	// Redirect asks this host in place of the URL's.
	Redirect string `yaml:"redirect"`
	// Direct passes the request on, past the swarm.
	Direct bool `yaml:"direct"`
	// FilteredQueryParams lists parameters that do not matter to what is
	// fetched, a signature for instance.
	FilteredQueryParams []string `yaml:"filteredQueryParams"`
}

func defaultProxy() Proxy {
	return Proxy{
		Server:             ProxyServer{IP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Port: 4001},
		RegistryMirror:     RegistryMirror{Addr: "https://index.docker.io"},
		Rules:              []ProxyRule{},
		AuthorizationTTL:   Duration(5 * time.Minute),
		AuthorizationGrace: Duration(time.Hour),
		AllowHosts:         []string{},
	}
}

// Address returns the address as net.Listen takes it; empty if the server is
// off.
func (s ProxyServer) Address() string { return Server{IP: s.IP, Port: s.Port}.Address() }

// Validate implements Validator.
func (s ProxyServer) Validate() error {
	err := Server{IP: s.IP, Port: s.Port}.Validate()
	if (s.CACert == "") != (s.CAKey == "") {
		err = errors.Join(err, Invalid("caCert", "and caKey go together"))
	}
	if s.BasicAuth.Username == "" && s.BasicAuth.Password != "" {
		err = errors.Join(err, Invalid("basicAuth.username", "is empty though there is a password"))
	}
	return err
}

// Validate implements Validator.
func (m RegistryMirror) Validate() error {
	if m.Addr == "" {
		return nil
	}
	u, err := url.Parse(m.Addr)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return Invalid("addr", "is %q: must be a URL such as https://index.docker.io", m.Addr)
	}
	return nil
}

// Validate implements Validator.
func (r ProxyRule) Validate() error {
	var errs []error
	if _, err := regexp.Compile(r.Regex); err != nil || r.Regex == "" {
		errs = append(errs, Invalid("regex", "is %q: must be a regular expression", r.Regex))
	}
	if r.Redirect != "" {
		if err := host(r.Redirect); err != nil {
			errs = append(errs, Invalid("redirect", "%q: %w: write it as host or host:port", r.Redirect, err))
		}
	}
	return errors.Join(errs...)
}

// Validate implements Validator.
func (p Proxy) Validate() error {
	var errs []error
	for _, d := range []struct {
		key   string
		value Duration
	}{{"authorizationTTL", p.AuthorizationTTL}, {"authorizationGrace", p.AuthorizationGrace}} {
		if d.value < 0 {
			errs = append(errs, Invalid(d.key, "is negative"))
		}
	}
	for _, a := range p.AllowHosts {
		if _, err := netip.ParsePrefix(a); err == nil {
			continue
		}
		if err := host(a); err != nil {
			errs = append(errs, Invalid("allowHosts", "%q: %w: write a host, an address or a network", a, err))
		}
	}
	return errors.Join(errs...)
}
