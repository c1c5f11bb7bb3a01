package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/config"
	"skimmer/internal/daemon"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/telemetry"
	"skimmer/internal/transfer"
)

// newSchedulerCommand makes the command that runs a scheduler.
func newSchedulerCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "scheduler",
		Short: "Tell peers what to fetch from whom",
		Long: `Run a scheduler in the foreground until it is stopped with Ctrl-C. Peers join it
on port 8002, say what they have and what they want, and are told from whom to
take it, so that each byte leaves the registry once. No blob passes through
it, and it keeps nothing on disk: stopped or killed and started again, it
learns everything from the peers, which go on without it meanwhile.

Several schedulers share the blobs among them if peers know all of them, as
addresses or as one DNS name that has all addresses.

/etc/skimmer/scheduler.yaml is read where it exists; every setting has a
default.`,
		Example: `  skimmer scheduler
  skimmer scheduler --config ./scheduler.yaml
  skimmer scheduler --verbose`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := config.DefaultScheduler()
			if err := config.Load(config.Find(file, "scheduler"), &cfg); err != nil {
				return err
			}
			return a.scheduler(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default /etc/skimmer/scheduler.yaml where it exists)")
	_ = cmd.MarkFlagFilename("config", "yaml")
	return cmd
}

// scheduler runs a scheduler until ctx ends.
func (a *app) scheduler(ctx context.Context, cfg config.Scheduler) error {
	level := new(slog.LevelVar)
	level.Set(slog.Level(cfg.Log.Level))
	if cfg.Verbose || a.verbose {
		level.Set(slog.LevelDebug)
	}
	log := telemetry.Logger(a.stderr, cfg.Log.Format == config.FormatJSON, level)
	serverTLS, err := schedulerTLS(cfg.TLS, log)
	if err != nil {
		return err
	}
	s := scheduler.New(schedulerConfig(cfg.Limits, serverTLS, log))
	metrics := telemetry.NewMetrics(version, revision())
	if err := metrics.Register(schedulerMetrics(s.Stats)...); err != nil {
		closeScheduler(ctx, s)
		return err
	}

	group := daemon.New(log)
	if addr := cfg.Health.Server.Address(); addr != "" {
		group.Add(daemon.HTTP("health", addr, group.Handler(), log))
	}
	if addr := cfg.Metrics.Server.Address(); addr != "" {
		group.Add(daemon.HTTP("metrics", addr, metrics.Handler(), log))
	}
	if cfg.PprofPort != 0 {
		group.Add(daemon.HTTP("debug", telemetry.DebugAddress(cfg.PprofPort), telemetry.Debug(level), log))
	}
	group.Add(schedulerService(s, cfg.Server.Address(), log))
	err = group.Run(ctx)
	closeScheduler(ctx, s) // where a service before it failed, it never ran
	return err
}

// schedulerStop is how long peers have to take note that the scheduler stops.
const schedulerStop = 3 * time.Second

// closeScheduler stops s after ctx has ended, or before. A second time it does
// nothing.
func closeScheduler(ctx context.Context, s *scheduler.Service) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), schedulerStop)
	defer cancel()
	s.Close(ctx)
}

// schedulerService serves peers on the TCP address addr with s, which it closes.
func schedulerService(s *scheduler.Service, addr string, log *slog.Logger) daemon.Service {
	return daemon.Service{Name: "scheduler", Run: func(ctx context.Context, ready func()) error {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		log.Info("serving peers", "addr", ln.Addr().String())
		served := make(chan error, 1)
		var serving sync.WaitGroup
		defer serving.Wait()
		serving.Go(func() { served <- s.Serve(ln) })
		ready()
		select {
		case err = <-served: // it broke
			closeScheduler(ctx, s)
			return errors.Join(err, errors.New("serve peers: stopped by itself"))
		case <-ctx.Done():
		}
		closeScheduler(ctx, s)
		return <-served
	}}
}

// schedulerTLS returns what a scheduler's connections are encrypted by, or nil.
func schedulerTLS(cfg config.TLS, log *slog.Logger) (*tls.Config, error) {
	if !cfg.Enabled() {
		return nil, nil
	}
	t, err := transfer.NewTLS(transfer.TLSConfig{Cert: cfg.Cert, Key: cfg.Key, CA: cfg.CA, ServerName: cfg.ServerName}, log)
	if err != nil {
		return nil, err
	}
	return t.ServerConfig(), nil
}

// schedulerConfig translates the configuration file into the service's own.
func schedulerConfig(l config.Limits, serverTLS *tls.Config, log *slog.Logger) scheduler.Config {
	return scheduler.Config{
		Schedule: schedule.Options{
			LeaseLife: time.Duration(l.LeaseLife),
			MaxRun:    int64(l.TransferSize),
			Width:     int(l.Transfers),
			MaxWants:  int(l.Wants),
		},
		MaxPeers: int(l.Peers),
		Queue:    int(l.Queue),
		TLS:      serverTLS,
		Version:  version,
		Logger:   log,
	}
}

// schedulerMetrics are a scheduler's counters as Prometheus reads them.
func schedulerMetrics(stats func() scheduler.Stats) []telemetry.Value {
	value := func(name, help string, of func(scheduler.Stats) int64) telemetry.Value {
		return telemetry.Value{Name: "scheduler_" + name, Help: help, Load: func() int64 { return of(stats()) }}
	}
	return []telemetry.Value{
		value("peers", "Peers that have joined.", func(s scheduler.Stats) int64 { return s.Peers }),
		value("blobs", "Blobs some peer has or wants something of.", func(s scheduler.Stats) int64 { return s.Blobs }),
		value("joins_total", "Streams peers opened.", func(s scheduler.Stats) int64 { return s.Joins }),
		value("decisions_total", "Events that were decided on.", func(s scheduler.Stats) int64 { return s.Decisions }),
		value("decision_nanoseconds_total", "Time that took.", func(s scheduler.Stats) int64 { return s.StepTime.Nanoseconds() }),
		value("grants_total", "Wants answered with peers to fetch from, or with a lease.", func(s scheduler.Stats) int64 { return s.Grants }),
		value("leases_total", "Leases to read from an origin.", func(s scheduler.Stats) int64 { return s.Leases }),
		value("revokes_total", "Grants and leases taken back.", func(s scheduler.Stats) int64 { return s.Revokes }),
		value("drops_total", "Peers told to take nothing more of a blob from a peer that sent wrong bytes.", func(s scheduler.Stats) int64 { return s.Drops }),
		value("forgets_total", "Peers told that pieces they hold are wrong.", func(s scheduler.Stats) int64 { return s.Forgets }),
		value("parked_total", "Wants that had to wait.", func(s scheduler.Stats) int64 { return s.Parked }),
		value("refused_total", "Wants that were refused.", func(s scheduler.Stats) int64 { return s.Refused }),
		value("slow_peers_total", "Streams ended because the peer did not take what it was sent.", func(s scheduler.Stats) int64 { return s.SlowPeers }),
		value("invalid_messages_total", "Streams ended because of what the peer sent.", func(s scheduler.Stats) int64 { return s.Invalid }),
		value("foreign_ids_total", "Streams refused because the peer's ID belongs to another certificate.", func(s scheduler.Stats) int64 { return s.ForeignIDs }),
		value("profiles", "Profiles of images that are kept.", func(s scheduler.Stats) int64 { return s.Profiles }),
		value("profile_bytes", "Bytes of memory they take.", func(s scheduler.Stats) int64 { return s.ProfileBytes }),
		value("profile_lookups_total", "Questions for the profile of an image.", func(s scheduler.Stats) int64 { return s.ProfileLookups }),
		value("profile_hits_total", "Questions that were answered with one.", func(s scheduler.Stats) int64 { return s.ProfileHits }),
	}
}
