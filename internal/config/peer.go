package config

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// Peer configures the node daemon: skimmer peer, and the peer that skimmer up
// runs.
type Peer struct {
	// DataDir is where everything is kept that outlives the process: blobs,
	// file system metadata and what is mounted. One process uses it at a time,
	// and its file system has to support sparse files.
	DataDir string `yaml:"dataDir"`
	// RunDir is where the control socket, skimmer.sock, is made. Nothing in it
	// has to survive a reboot.
	RunDir string `yaml:"runDir"`
	// Verbose logs at level debug, whatever log.level says.
	Verbose bool `yaml:"verbose"`
	// PprofPort is the port on 127.0.0.1 for profiles, stack dumps and the log
	// level of the running process; 0 turns it off.
	PprofPort uint16  `yaml:"pprofPort"`
	Log       Log     `yaml:"log"`
	Metrics   Metrics `yaml:"metrics"`
	Health    Health  `yaml:"health"`
	Tracing   Tracing `yaml:"tracing"`
	Storage   Storage `yaml:"storage"`
	Origin    Origin  `yaml:"origin"`
	Lazy      Lazy    `yaml:"lazy"`
	// Snapshotter is the containerd plugin.
	Snapshotter Snapshotter `yaml:"snapshotter"`
	Credentials Credentials `yaml:"credentials"`
	// Scheduler says who decides which peer fetches what from whom.
	Scheduler Schedulers `yaml:"scheduler"`
	SeedPeer  SeedPeer   `yaml:"seedPeer"`
	Upload    Upload     `yaml:"upload"`
	Download  Download   `yaml:"download"`
	Host      Host       `yaml:"host"`
	TLS       TLS        `yaml:"tls"`
	// Proxy is what images are fetched through by containerd and others.
	Proxy Proxy `yaml:"proxy"`
}

// Snapshotter starts containers of containerd from lazily mounted images. See
// skimmer install containerd for containerd's side of it.
type Snapshotter struct {
	// Enable serves containerd's snapshots service, and the image service for
	// the kubelet, on the socket.
	Enable bool `yaml:"enable"`
	// Socket is the unix socket; empty is snapshotter.sock in runDir.
	Socket string `yaml:"socket"`
	// Containerd is containerd's own socket, from which manifests that are
	// there already are read, and to which image service calls are passed on.
	Containerd string `yaml:"containerd"`
}

// Credentials are looked for in what the kubelet sent with its last pull of a
// repository, in Kubernetes secrets, then in docker's config.json.
type Credentials struct {
	Kubernetes Kubernetes `yaml:"kubernetes"`
}

// Kubernetes takes credentials from secrets of type
// kubernetes.io/dockerconfigjson.
type Kubernetes struct {
	// Enable watches the secrets of all namespaces, for which the service
	// account needs get, list and watch.
	Enable bool `yaml:"enable"`
	// Kubeconfig is the file that says where the cluster is; empty is the
	// service account of the pod.
	Kubeconfig string `yaml:"kubeconfig"`
}

// Log is what the daemon writes to standard error.
type Log struct {
	// Format is how a line is written: text or json.
	Format Format `yaml:"format"`
	// Level is from which importance on lines are written: debug, info, warn
	// or error.
	Level Level `yaml:"level"`
}

// Metrics is where Prometheus finds the node's metrics, at /metrics.
type Metrics struct {
	// Server is the address they are served on.
	Server Server `yaml:"server"`
}

// Health is where an orchestrator asks for /healthz (the process runs) and
// /readyz (it can do its work).
type Health struct {
	// Server is the address it is served on.
	Server Server `yaml:"server"`
}

// Server is an address to listen on.
type Server struct {
	// IP is the address of the interface; 0.0.0.0 is all of them, and :: is
	// all of them with IPv6.
	IP netip.Addr `yaml:"ip"`
	// Port is the TCP port; 0 turns the server off.
	Port uint16 `yaml:"port"`
}

// Address returns the address as net.Listen takes it; empty if the server is
// off.
func (s Server) Address() string {
	if s.Port == 0 {
		return ""
	}
	return net.JoinHostPort(s.IP.String(), strconv.Itoa(int(s.Port)))
}

// Validate implements Validator.
func (s Server) Validate() error {
	if s.Port != 0 && !s.IP.IsValid() {
		return Invalid("ip", "is empty: use 0.0.0.0 for all interfaces, or port 0 for no server")
	}
	return nil
}

// Storage limits what is kept in dataDir: half of it for blobs as they were
// fetched, half for what was unpacked of them. What is mounted or being read is
// never removed, so these are aims, not walls; when the disk is full all the
// same, reads pass through without being kept.
type Storage struct {
	// HighWater is how much may be taken before the least recently used is
	// removed; 0 is 80 % of the file system.
	HighWater Bytes `yaml:"highWater"`
	// LowWater is how much is taken once that is done; 0 is 7/8 of highWater.
	LowWater Bytes `yaml:"lowWater"`
	// MinFree is how much of the file system is left to others; 0 is 2 % of
	// it, at most 4GiB.
	MinFree Bytes `yaml:"minFree"`
}

// Validate implements Validator.
func (s Storage) Validate() error {
	switch {
	case s.LowWater != 0 && s.HighWater == 0:
		return Invalid("lowWater", "is %v: needs highWater to be set too", s.LowWater)
	case s.LowWater > s.HighWater:
		return Invalid("lowWater", "is %v: must not be more than highWater, which is %v", s.LowWater, s.HighWater)
	}
	return nil
}

// Origin says how registries are reached. Proxies are taken from the
// environment (HTTPS_PROXY, NO_PROXY), credentials from docker's config.json.
type Origin struct {
	// Insecure lists registries, as host or host:port, that are spoken to over
	// plain HTTP. Those on this machine always are, unless caFiles names them.
	Insecure []string `yaml:"insecure"`
	// CAFiles maps registries, as host or host:port, to lists of PEM files
	// with authorities that are trusted for them beside the system's own. The
	// storage server a registry redirects to is a host of its own.
	CAFiles map[string][]string `yaml:"caFiles"`
	// ConnectTimeout limits making a connection, and the TLS handshake on it.
	ConnectTimeout Duration `yaml:"connectTimeout"`
	// HeaderTimeout limits the wait for the head of a response.
	HeaderTimeout Duration `yaml:"headerTimeout"`
	// IdleTimeout is how long the body of a response may bring nothing before
	// it is given up and continued by another request.
	IdleTimeout Duration `yaml:"idleTimeout"`
	// Retries is how often a request is tried again, with growing pauses or as
	// Retry-After asks, if it failed for a reason that may pass.
	Retries uint8 `yaml:"retries"`
	// MaxRetryAfter is the longest Retry-After that is waited for; a server
	// that asks for more fails the request.
	MaxRetryAfter Duration `yaml:"maxRetryAfter"`
}

// Validate implements Validator.
func (o Origin) Validate() error {
	return errors.Join(
		positive("connectTimeout", o.ConnectTimeout),
		positive("headerTimeout", o.HeaderTimeout),
		positive("idleTimeout", o.IdleTimeout),
		positive("maxRetryAfter", o.MaxRetryAfter),
	)
}

// Lazy says how mounted images get their data.
type Lazy struct {
	// IOTimeout is how long a program that reads missing data waits before it
	// gets an I/O error. Until then it cannot be killed.
	IOTimeout Duration `yaml:"ioTimeout"`
	// Background completes mounted images when nothing else is read, until
	// they need neither network nor daemon.
	Background bool `yaml:"background"`
	// BackgroundDelay is how long nothing must have been read before that
	// begins.
	BackgroundDelay Duration `yaml:"backgroundDelay"`
	// BackgroundRateLimit is how much of that is fetched per second, as
	// compressed bytes; 0 is as fast as it goes while nobody waits for anything.
	BackgroundRateLimit Bytes `yaml:"backgroundRateLimit"`
	// ReadAheadMax limits what a sequential reader makes the node fetch at
	// once.
	ReadAheadMax Bytes `yaml:"readAheadMax"`
	// Profiles are what images read while they start.
	Profiles Profiles `yaml:"profiles"`
}

// Profiles say which parts of an image a start of it reads. The first start of an
// image is watched until nothing new is read; whoever starts it next, here or on
// another node of the cluster, fetches those parts at once. A profile names parts
// by number and has no content and no file names.
type Profiles struct {
	// Enable records profiles, gives them to the scheduler, and fetches by them.
	Enable bool `yaml:"enable"`
	// Max limits how much is fetched by a profile, as compressed bytes.
	Max Bytes `yaml:"max"`
	// Registry looks for a profile beside the image in its registry, where
	// skimmer image optimize --profile-only puts it, if neither node nor
	// scheduler has one. It costs the first start of an image a request or two.
	Registry bool `yaml:"registry"`
}

// Validate implements Validator.
func (l Lazy) Validate() error {
	return errors.Join(
		positive("ioTimeout", l.IOTimeout),
		positive("backgroundDelay", l.BackgroundDelay),
		positive("readAheadMax", l.ReadAheadMax),
		positive("profiles.max", l.Profiles.Max),
	)
}

func positive[T Duration | Bytes](key string, v T) error {
	if v <= 0 {
		return Invalid(key, "must be more than 0")
	}
	return nil
}

// DefaultPeer returns the configuration of a node with an empty file.
func DefaultPeer() Peer {
	everywhere := netip.IPv4Unspecified()
	return Peer{
		DataDir: "/var/lib/skimmer",
		RunDir:  "/run/skimmer",
		Log:     Log{Format: FormatText},
		Metrics: Metrics{Server: Server{IP: everywhere, Port: 4002}},
		Health:  Health{Server: Server{IP: everywhere, Port: 4003}},
		Tracing: Tracing{Protocol: TracingGRPC, Path: "/v1/traces", Headers: map[string]string{}},
		Origin: Origin{
			Insecure:       []string{},
			CAFiles:        map[string][]string{},
			ConnectTimeout: Duration(5 * time.Second),
			HeaderTimeout:  Duration(20 * time.Second),
			IdleTimeout:    Duration(20 * time.Second),
			Retries:        4,
			MaxRetryAfter:  Duration(time.Minute),
		},
		Lazy: Lazy{
			IOTimeout:       Duration(5 * time.Minute),
			Background:      true,
			BackgroundDelay: Duration(5 * time.Second),
			ReadAheadMax:    8 << 20,
			Profiles:        Profiles{Enable: true, Max: 256 << 20, Registry: true},
		},
		Snapshotter: Snapshotter{Enable: true, Containerd: "/run/containerd/containerd.sock"},
		Scheduler:   Schedulers{Addresses: []string{}, Server: Listen{Port: DefaultSchedulerPort}},
		SeedPeer:    SeedPeer{Addresses: []string{}},
		Upload:      Upload{Server: Listen{Port: 4000}, Slots: 64},
		Proxy:       defaultProxy(),
	}
}

// Validate implements Validator.
func (p Peer) Validate() error {
	var errs []error
	for _, dir := range []struct{ key, value string }{{"dataDir", p.DataDir}, {"runDir", p.RunDir}} {
		if dir.value == "" || dir.value[0] != '/' {
			errs = append(errs, Invalid(dir.key, "is %q: must be an absolute path", dir.value))
		}
	}
	if p.Upload.Server.Port == 0 && p.InSwarm() {
		errs = append(errs, Invalid("upload.server.port", "is 0: a node with schedulers or seed peers, or that is a seed, serves others"))
	}
	return errors.Join(errs...)
}
