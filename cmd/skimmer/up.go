package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/config"
	"skimmer/internal/daemon"
	"skimmer/internal/mirror/forward"
	"skimmer/internal/origin"
	"skimmer/internal/origin/keychain"
	"skimmer/internal/peer"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/store"
	"skimmer/internal/telemetry"
	"skimmer/internal/transfer"
)

// upOptions are the flags of "skimmer up".
type upOptions struct {
	config, dataDir, socket string
	exitWhenIdle            bool
	// everything runs a scheduler too; seed makes the node a seed peer.
	everything, seed bool
}

func newUpCommand(a *app) *cobra.Command {
	return newNodeCommand(a, &upOptions{everything: true, seed: true}, &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process on this machine",
		Long: `Run a scheduler and a node that is also a seed peer, in one process with
embedded storage, in the foreground until it is stopped with Ctrl-C. Everything
is kept below one data directory and needs no configuration;
/etc/skimmer/peer.yaml is read where it exists.

Nodes elsewhere can join it, once upload.server.ip and scheduler.server.ip name
an address they reach; without, both listen on this machine only.

Its registry mirror, which is a forward proxy too, answers on 127.0.0.1:4001.

A stopped node leaves mounts in place. Programs that read what has arrived go
on; those that read what has not wait until a node runs again.`,
		Example: `  skimmer up
  skimmer up --data-dir /data/skimmer --verbose
  skimmer up --config ./peer.yaml`,
	})
}

func newPeerCommand(a *app) *cobra.Command {
	var o upOptions
	cmd := newNodeCommand(a, &o, &cobra.Command{
		Use:   "peer",
		Short: "Run the node daemon",
		Long: `Run the daemon of a node in the foreground: it mounts images lazily, and
starts containerd's containers from them (see skimmer install containerd).
/etc/skimmer/peer.yaml is read where it exists; every setting has a default.

It is also a registry mirror and a forward proxy on 127.0.0.1:4001 for clients
that fetch whole images: skimmer install containerd --registry points containerd
to it.

With schedulers in its configuration it exchanges blobs with other nodes, so
that each byte leaves the registry once. A seed peer reads from registries for
all others.

It can be stopped, killed or replaced by another version at any time: mounts
stay, programs that read what has not arrived wait until it runs again, and
then go on.`,
		Example: `  skimmer peer
  skimmer peer --config ./peer.yaml
  skimmer peer --seed
  skimmer install systemd --now`,
	})
	cmd.Flags().BoolVar(&o.seed, "seed", false, "be a seed peer: read from registries for all others (seedPeer.enable of the configuration)")
	return cmd
}

// newNodeCommand completes a command that runs a node.
func newNodeCommand(a *app, o *upOptions, cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := o.load()
		if err != nil {
			return err
		}
		return a.up(cmd.Context(), cfg, *o)
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "configuration file (default /etc/skimmer/peer.yaml where it exists)")
	f.StringVar(&o.dataDir, "data-dir", "", "where everything is kept (default: dataDir of the configuration)")
	f.StringVar(&o.socket, "socket", "", "control socket; that for containerd is made beside it (default: skimmer.sock in runDir of the configuration)")
	f.BoolVar(&o.exitWhenIdle, "exit-when-idle", false, "stop once nothing is mounted any more")
	_ = f.MarkHidden("exit-when-idle")
	_ = cmd.MarkFlagDirname("data-dir")
	_ = cmd.MarkFlagFilename("config", "yaml")
	return cmd
}

// load reads the configuration and lets flags override it.
func (o *upOptions) load() (config.Peer, error) {
	cfg := config.DefaultPeer()
	if err := config.Load(config.Find(o.config, "peer"), &cfg); err != nil {
		return cfg, err
	}
	if o.dataDir != "" {
		dir, err := filepath.Abs(o.dataDir)
		if err != nil {
			return cfg, fmt.Errorf("read --data-dir: %w", err)
		}
		cfg.DataDir = dir
	}
	if o.socket == "" {
		o.socket = filepath.Join(cfg.RunDir, filepath.Base(defaultSocket))
	}
	if cfg.Snapshotter.Socket == "" {
		cfg.Snapshotter.Socket = filepath.Join(filepath.Dir(o.socket), "snapshotter.sock")
	}
	if o.seed && !o.everything {
		cfg.SeedPeer.Enable = true
		if err := cfg.Validate(); err != nil {
			return cfg, fmt.Errorf("be a seed peer: %w", err)
		}
	}
	if o.exitWhenIdle {
		o.everything = false
		cfg.Snapshotter.Enable = false
		cfg.Scheduler.Addresses, cfg.SeedPeer = nil, config.SeedPeer{}
		// A peer started for one mount must not fight over ports with others.
		cfg.Metrics.Server.Port, cfg.Health.Server.Port, cfg.Proxy.Server.Port, cfg.PprofPort = 0, 0, 0, 0
	}
	return cfg, nil
}

func (a *app) up(ctx context.Context, cfg config.Peer, o upOptions) (err error) {
	if os.Getuid() != 0 {
		return errors.New("start the node: mounting needs root; run it with sudo")
	}
	level := new(slog.LevelVar)
	level.Set(slog.Level(cfg.Log.Level))
	if cfg.Verbose || a.verbose {
		level.Set(slog.LevelDebug)
	}
	log := telemetry.Logger(a.stderr, cfg.Log.Format == config.FormatJSON, level)
	c := peerConfig(cfg, o, log)
	started, endTracing, err := startTracing(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, endTracing()) }()
	c.Starts.Started = started
	sched, err := o.joinSwarm(cfg, &c, log)
	if err != nil {
		return err
	}
	if sched != nil {
		defer closeScheduler(ctx, sched)
	}
	p, err := newPeer(ctx, c)
	if err != nil {
		return err
	}
	metrics := telemetry.NewMetrics(version, revision())
	values := peerMetrics(p)
	if sched != nil {
		values = append(values, schedulerMetrics(sched.Stats)...)
	}
	if err := metrics.Register(values...); err != nil {
		return errors.Join(err, p.Close())
	}

	// Started in this order, stopped in the reverse one: whoever asks whether
	// the node is healthy is answered as long as the node runs.
	group := daemon.New(log)
	for _, s := range []struct {
		name, addr string
		handler    http.Handler
	}{
		{"health", cfg.Health.Server.Address(), group.Handler()},
		{"metrics", cfg.Metrics.Server.Address(), metrics.Handler()},
		{"debug", debugAddress(cfg), telemetry.Debug(level)},
	} {
		if s.addr != "" {
			group.Add(daemon.HTTP(s.name, s.addr, s.handler, log))
		}
	}
	if addr := cfg.Scheduler.Server; sched != nil && addr.Port != 0 {
		group.Add(schedulerService(sched, addr.Address(loopback), log))
	}
	group.Add(daemon.Service{Name: "peer", StopLimit: time.Minute, Run: func(ctx context.Context, ready func()) error {
		return errors.Join(p.Run(ctx, ready), p.Close())
	}})
	if addr := cfg.Proxy.Server.Address(); c.Mirror != nil {
		if ip := cfg.Proxy.Server.IP; !ip.IsLoopback() && cfg.Proxy.Server.BasicAuth.Username == "" {
			log.Warn("whoever reaches the mirror's port may use this node as a proxy: set proxy.server.basicAuth, or proxy.server.ip to 127.0.0.1", "address", addr)
		}
		group.Add(daemon.HTTP("mirror", addr, p.MirrorHandler(), log))
	}
	// Where a service before the peer fails, Run of the peer is never called.
	return errors.Join(group.Run(ctx), p.Close())
}

// loopback is where skimmer up serves other nodes unless it is told otherwise:
// whoever reaches a node's port may read what the node has.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// joinSwarm says in c how blobs are exchanged with other nodes, and returns the
// scheduler that runs in this process, if one does.
func (o *upOptions) joinSwarm(cfg config.Peer, c *peer.Config, log *slog.Logger) (*scheduler.Service, error) {
	if !o.everything && !cfg.InSwarm() {
		return nil, nil
	}
	var tlsFiles *transfer.TLSConfig
	if t := cfg.TLS; t.Enabled() {
		tlsFiles = &transfer.TLSConfig{Cert: t.Cert, Key: t.Key, CA: t.CA, ServerName: t.ServerName}
	}
	c.Swarm = &peer.SwarmConfig{
		Listen:     cfg.Upload.Server.Address(netip.Addr{}),
		Advertise:  cfg.Upload.Advertise,
		Schedulers: cfg.Scheduler.Addresses,
		Seeds:      cfg.SeedPeer.Addresses,
		Seed:       cfg.SeedPeer.Enable || o.everything,
		Slots:      int(cfg.Upload.Slots), PerRemote: int(cfg.Upload.PerRemote),
		UploadRate: int64(cfg.Upload.RateLimit), DownloadRate: int64(cfg.Download.RateLimit),
		TLS:      tlsFiles,
		Hostname: cfg.Host.Hostname,
		Location: schedule.Location{Rack: cfg.Host.Rack, Zone: cfg.Host.Zone()},
	}
	if !o.everything || len(cfg.Scheduler.Addresses) > 0 {
		return nil, nil
	}
	c.Swarm.Listen = cfg.Upload.Server.Address(loopback)
	serverTLS, err := schedulerTLS(cfg.TLS, log)
	if err != nil {
		return nil, err
	}
	c.Swarm.Scheduler = scheduler.New(schedulerConfig(config.DefaultScheduler().Limits, serverTLS, log))
	return c.Swarm.Scheduler, nil
}

// handOver is how long a peer started for one mount waits for another such
// peer, whose last mount has just gone, to let go of the data directory.
const handOver = 20 * time.Second

// newPeer opens the node, waiting for a peer that is about to end by itself.
func newPeer(ctx context.Context, cfg peer.Config) (*peer.Peer, error) {
	deadline := time.Now().Add(handOver)
	for {
		p, err := peer.New(cfg)
		if blob.KindOf(err) != blob.Busy || !cfg.ExitWhenIdle || time.Now().After(deadline) {
			return p, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// mirrorConfig translates the part of the configuration file about the mirror;
// nil if it is turned off.
func mirrorConfig(cfg config.Proxy) *peer.MirrorConfig {
	if cfg.Server.Port == 0 {
		return nil
	}
	c := &peer.MirrorConfig{
		Address:            cfg.Server.Address(),
		Upstream:           cfg.RegistryMirror.Addr,
		AuthorizationTTL:   orNever(cfg.AuthorizationTTL),
		AuthorizationGrace: orNever(cfg.AuthorizationGrace),
		Prefetch:           cfg.Prefetch, PrefetchRate: int64(cfg.PrefetchRateLimit),
		Allow:  cfg.AllowHosts,
		CACert: cfg.Server.CACert, CAKey: cfg.Server.CAKey,
		Username: cfg.Server.BasicAuth.Username, Password: cfg.Server.BasicAuth.Password,
	}
	for _, r := range cfg.Rules {
		c.Rules = append(c.Rules, forward.Rule(r))
	}
	return c
}

// orNever returns a duration where 0 means the default as one where it means
// none.
func orNever(d config.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return time.Duration(d)
}

func debugAddress(cfg config.Peer) string {
	if cfg.PprofPort == 0 {
		return ""
	}
	return telemetry.DebugAddress(cfg.PprofPort)
}

// peerConfig translates the configuration file into the node's own.
func peerConfig(cfg config.Peer, o upOptions, log *slog.Logger) peer.Config {
	c := peer.Config{
		DataDir: cfg.DataDir,
		Socket:  o.socket,
		Origin: origin.Config{
			Insecure:       cfg.Origin.Insecure,
			CAFiles:        cfg.Origin.CAFiles,
			ConnectTimeout: time.Duration(cfg.Origin.ConnectTimeout),
			HeaderTimeout:  time.Duration(cfg.Origin.HeaderTimeout),
			IdleTimeout:    time.Duration(cfg.Origin.IdleTimeout),
			Retries:        int(cfg.Origin.Retries),
			MaxRetryAfter:  time.Duration(cfg.Origin.MaxRetryAfter),
		},
		Store: store.Config{
			MinFree: int64(cfg.Storage.MinFree),
		},
		IOTimeout:       time.Duration(cfg.Lazy.IOTimeout),
		MaxReadahead:    int64(cfg.Lazy.ReadAheadMax),
		Background:      cfg.Lazy.Background,
		BackgroundDelay: time.Duration(cfg.Lazy.BackgroundDelay),
		BackgroundRate:  int64(cfg.Lazy.BackgroundRateLimit),
		HighWater:       int64(cfg.Storage.HighWater),
		LowWater:        int64(cfg.Storage.LowWater),
		Holder:          []string{"/proc/self/exe", "hold", "--socket"},
		ExitWhenIdle:    o.exitWhenIdle,
		Version:         version,
		Logger:          log,
	}
	c.Starts = peer.StartsConfig{
		Profiles: cfg.Lazy.Profiles.Enable, Limit: int64(cfg.Lazy.Profiles.Max), Referrers: cfg.Lazy.Profiles.Registry,
	}
	if cfg.Snapshotter.Enable {
		c.Snapshotter = peer.SnapshotterConfig{Socket: cfg.Snapshotter.Socket, Containerd: cfg.Snapshotter.Containerd}
	}
	c.Mirror = mirrorConfig(cfg.Proxy)
	if k := cfg.Credentials.Kubernetes; k.Enable {
		c.Kubernetes = &keychain.KubernetesConfig{Kubeconfig: k.Kubeconfig}
	}
	if c.Origin.Retries == 0 {
		c.Origin.Retries = -1 // there, 0 means the default
	}
	return c
}
