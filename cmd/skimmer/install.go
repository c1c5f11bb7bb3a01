package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/config"
	"skimmer/internal/install"
)

func newInstallCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Configure containerd and systemd for this node",
		Long: `Write the configuration a node needs. Running it again changes nothing, and
"skimmer uninstall" takes it back. --dry-run shows the changes as a diff.`,
		Example: `  skimmer install systemd --now
  skimmer install containerd --dry-run
  skimmer install containerd --restart`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newInstallContainerdCommand(a), newInstallSystemdCommand(a))
	return cmd
}

func newUninstallCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take back what install configured",
		Long: `Take back what "skimmer install" wrote. Files that were changed by others since
keep those changes.`,
		Example: `  skimmer uninstall containerd --restart
  skimmer uninstall systemd`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newUninstallContainerdCommand(a), newUninstallSystemdCommand(a))
	return cmd
}

// defaultPeerConfig is the daemon's configuration file.
const defaultPeerConfig = config.Dir + "/peer.yaml"

// containerdInstall is what the flags about containerd say.
type containerdInstall struct {
	install.Containerd
	dryRun, restart bool
	registries      []string // those to be fetched from through the mirror
	hostsDir        string
	mirror          string
	unpack          bool // have containerd decompress layers with this program
}

func (o *containerdInstall) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Config, "config", install.DefaultContainerdConfig, "containerd's configuration `FILE`")
	f.StringVar(&o.hostsDir, "hosts-dir", "", "`DIRECTORY` of files hosts.toml (default: config_path in containerd's configuration, or "+install.DefaultHostsDir+")")
	_ = cmd.MarkFlagDirname("hosts-dir")
	f.BoolVar(&o.dryRun, "dry-run", false, "show the change as a diff, and change nothing")
	f.BoolVar(&o.restart, "restart", false, "restart containerd with systemctl if something changed")
	_ = cmd.MarkFlagFilename("config", "toml")
}

func completeSnapshotter(cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.FixedCompletions([]string{"stargz", "skimmer"}, cobra.ShellCompDirectiveNoFileComp))
}

func newInstallContainerdCommand(a *app) *cobra.Command {
	var o containerdInstall
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Make the snapshotter known to containerd",
		Long: `Add the snapshotter to containerd's configuration, and have Kubernetes use it.
Comments, order and everything else in the file stay as they are. A copy of the
file as it was is kept beside it, as *` + install.BackupSuffix + `.

With --registry, images of that registry that are not mounted lazily are fetched
through the peer's mirror too, and from the registry itself where no peer runs:
a hosts.toml says so.

containerd is told to have this program decompress the layers that it unpacks,
where it lies now: that is faster than containerd's own way. Where the program is
gone, gzip does it, and "skimmer doctor" says so; run this again once it is moved.
--unpack=false leaves decompressing to containerd.

containerd 1.6, 1.7 and 2 are supported, with configuration versions 2 to 4.`,
		Example: `  skimmer install containerd --dry-run
  skimmer install containerd --registry docker.io --registry registry.example:5000
  skimmer install containerd --restart
  skimmer install containerd --name skimmer --config /etc/containerd/config.toml`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.fromPeer(cmd.Flags().Changed("address")); err != nil {
				return err
			}
			if o.Version == "" {
				o.Version = install.ContainerdVersion(cmd.Context())
			}
			if o.unpack && o.Unpacker == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find this program: %w", err)
				}
				if strings.HasPrefix(self, os.TempDir()+"/") {
					fmt.Fprintf(a.stderr, "skimmer: note: %s is not there for long: containerd goes on decompressing layers itself\n", self)
				} else {
					o.Unpacker = self
				}
			}
			plans, err := o.plans()
			if err != nil {
				return err
			}
			return a.installContainerd(cmd.Context(), &o, plans...)
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "stargz", "what containerd is to call the snapshotter; stargz is what nerdctl knows")
	completeSnapshotter(cmd)
	f.StringVar(&o.Address, "address", "/run/skimmer/snapshotter.sock", "the snapshotter's `SOCKET`, unless the peer's configuration has another")
	f.StringVar(&o.Version, "containerd-version", "", "containerd's `VERSION` (default: what containerd --version says)")
	f.StringSliceVar(&o.registries, "registry", nil, "have images of this `REGISTRY`, or of URL, fetched through the mirror; _default is all (may be repeated)")
	f.BoolVar(&o.unpack, "unpack", true, "have containerd decompress layers with this program")
	f.StringVar(&o.mirror, "mirror", "", "the mirror's `URL` (default: proxy.server of the peer's configuration)")
	_ = cmd.RegisterFlagCompletionFunc("registry", cobra.FixedCompletions([]string{"docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "_default"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// fromPeer takes what containerd has to know from the peer's configuration
// where there is one.
func (o *containerdInstall) fromPeer(addressGiven bool) error {
	path := config.Find("", "peer")
	if path == "" {
		return nil
	}
	cfg := config.DefaultPeer()
	err := config.Load(path, &cfg)
	if err != nil {
		return err
	}
	o.Root = cfg.DataDir
	if o.mirror == "" && cfg.Proxy.Server.Port != 0 {
		if o.mirror, err = install.MirrorURL(cfg.Proxy.Server.Address()); err != nil {
			return err
		}
	}
	if !addressGiven {
		o.Address = snapshotterSocket(cfg)
	}
	return nil
}

// plan says what is to become of a file.
type plan func() (*install.Change, error)

// plans returns what install does, file by file.
func (o *containerdInstall) plans() ([]plan, error) {
	if len(o.registries) == 0 {
		return []plan{o.Install}, nil
	}
	if o.mirror == "" {
		o.mirror, _ = install.MirrorURL(config.DefaultPeer().Proxy.Server.Address())
	}
	if err := o.findHostsDir(); err != nil {
		return nil, err
	}
	o.HostsDir = o.hostsDir
	plans := []plan{o.Install}
	for _, name := range o.registries {
		h := install.Hosts{Dir: o.hostsDir, Mirror: o.mirror, Registry: name}
		if u, err := url.Parse(name); err == nil && u.Host != "" { // with a scheme
			h.Registry, h.Server = u.Host, name
		}
		plans = append(plans, h.Install)
	}
	return plans, nil
}

// undo returns what uninstall does, file by file.
func (o *containerdInstall) undo() ([]plan, error) {
	if err := o.findHostsDir(); err != nil {
		return nil, err
	}
	registries, err := install.InstalledHosts(o.hostsDir)
	if err != nil {
		return nil, err
	}
	plans := []plan{o.Uninstall}
	for _, name := range registries {
		plans = append(plans, install.Hosts{Dir: o.hostsDir, Registry: name}.Uninstall)
	}
	return plans, nil
}

func (o *containerdInstall) findHostsDir() (err error) {
	if o.hostsDir == "" {
		o.hostsDir, err = o.FindHostsDir()
	}
	return err
}

// snapshotterSocket is where a peer serves containerd.
func snapshotterSocket(cfg config.Peer) string {
	if cfg.Snapshotter.Socket != "" {
		return cfg.Snapshotter.Socket
	}
	return filepath.Join(cfg.RunDir, "snapshotter.sock")
}

func newUninstallContainerdCommand(a *app) *cobra.Command {
	var o containerdInstall
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Take the snapshotter out of containerd's configuration",
		Long: `Take the snapshotter out of containerd's configuration, and put back what was
there before. Remove containers and images that use it first: containerd cannot
without it.`,
		Example: `  skimmer uninstall containerd --dry-run
  skimmer uninstall containerd --restart`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plans, err := o.undo()
			if err != nil {
				return err
			}
			return a.installContainerd(cmd.Context(), &o, plans...)
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&o.Name, "name", "", "what containerd calls the snapshotter (default: the one install added)")
	completeSnapshotter(cmd)
	return cmd
}

func (a *app) installContainerd(ctx context.Context, o *containerdInstall, plans ...plan) error {
	restart := false
	for i, p := range plans {
		changed, err := a.change(p, o.dryRun)
		if err != nil {
			return err
		}
		// containerd reads files hosts.toml at every pull.
		restart = restart || changed && i == 0
	}
	if o.dryRun || !restart {
		return nil
	}
	if o.restart {
		return install.Systemctl(ctx, "restart", "containerd")
	}
	if a.output == "json" {
		return nil
	}
	_, err := fmt.Fprintln(a.stdout, "restart containerd for it to take effect: systemctl restart containerd")
	return err
}

// changed is what is printed about a file.
type changed struct {
	Path    string   `json:"path"`
	Changed bool     `json:"changed"` // with --dry-run: would be
	Diff    string   `json:"diff,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// change does what was planned, or shows it, and reports whether there was
// anything to do.
func (a *app) change(p plan, dryRun bool) (bool, error) {
	c, err := p()
	if err != nil {
		return false, err
	}
	if !dryRun {
		if err := c.Apply(); err != nil {
			if os.Getuid() != 0 {
				return false, fmt.Errorf("%w: run it with sudo", err)
			}
			return false, err
		}
	}
	out := changed{Path: c.Path, Changed: !c.Empty(), Notes: c.Notes}
	if dryRun {
		out.Diff = c.Diff()
	}
	return out.Changed, a.print(out, func(w io.Writer) error {
		for _, note := range c.Notes {
			fmt.Fprintf(a.stderr, "skimmer: note: %s\n", note)
		}
		switch {
		case !out.Changed:
			_, err = fmt.Fprintf(w, "%s: nothing to do\n", c.Path)
		case dryRun:
			_, err = io.WriteString(w, out.Diff)
		case c.After == nil:
			_, err = fmt.Fprintf(w, "removed %s\n", c.Path)
		default:
			_, err = fmt.Fprintf(w, "wrote %s\n", c.Path)
		}
		return err
	})
}

// systemdInstall is what the flags about systemd say.
type systemdInstall struct {
	install.Systemd
	dryRun, now bool
}

func (o *systemdInstall) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Unit, "unit", install.DefaultUnit, "the unit's `FILE`")
	f.BoolVar(&o.dryRun, "dry-run", false, "show the change as a diff, and change nothing")
	_ = cmd.MarkFlagFilename("unit", "service")
}

func newInstallSystemdCommand(a *app) *cobra.Command {
	var o systemdInstall
	cmd := &cobra.Command{
		Use:   "systemd",
		Short: "Run the peer as a service of systemd",
		Long: `Write a systemd unit that runs "skimmer peer" from boot on, before containerd. Its
configuration file is written, with every key and its default, where there is
none.`,
		Example: `  skimmer install systemd --dry-run
  skimmer install systemd --now`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.installSystemd(cmd.Context(), &o) },
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.PeerConfig, "config", defaultPeerConfig, "the peer's configuration `FILE`")
	f.StringVar(&o.Binary, "binary", "", "the `FILE` to run (default: this program)")
	f.BoolVar(&o.now, "now", false, "start it now, too, or restart it if its unit changed")
	_ = cmd.MarkFlagFilename("config", "yaml")
	_ = cmd.MarkFlagFilename("binary")
	return cmd
}

func (a *app) installSystemd(ctx context.Context, o *systemdInstall) error {
	if o.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.Binary = self
	}
	if err := a.writePeerConfig(o.PeerConfig, o.dryRun); err != nil {
		return err
	}
	unitChanged, err := a.change(o.Install, o.dryRun)
	if err != nil || o.dryRun || !unitChanged && !o.now {
		return err
	}
	err = install.Systemctl(ctx, "daemon-reload")
	if blob.KindOf(err) == blob.Unavailable && !o.now {
		fmt.Fprintln(a.stderr, "skimmer: note: this machine does not run systemd now; the service starts with it")
		return nil
	}
	steps := [][]string{{"enable", o.Name()}}
	if o.now {
		verb := "start"
		if unitChanged {
			verb = "restart"
		}
		steps = append(steps, []string{verb, o.Name()})
	}
	for _, step := range steps {
		if err != nil {
			return err
		}
		err = install.Systemctl(ctx, step...)
	}
	return err
}

// writePeerConfig writes a configuration with all defaults where there is
// none.
func (a *app) writePeerConfig(path string, dryRun bool) error {
	if _, err := os.Stat(path); err == nil || !os.IsNotExist(err) {
		return nil
	}
	if dryRun {
		fmt.Fprintf(a.stderr, "skimmer: note: %s would be written, with every default\n", path)
		return nil
	}
	files, err := config.Files()
	if err != nil {
		return err
	}
	c := &install.Change{Path: path, After: []byte(files["config/peer.yaml"])}
	if err := c.Apply(); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "skimmer: note: wrote %s with every default\n", path)
	return nil
}

func newUninstallSystemdCommand(a *app) *cobra.Command {
	var o systemdInstall
	cmd := &cobra.Command{
		Use:   "systemd",
		Short: "Stop the service of systemd and remove its unit",
		Long: `Stop the service that "skimmer install systemd" made, and remove its unit. The
configuration and the data stay. Images that are not complete lose their files
when the service stops: stop their containers first.`,
		Example: `  skimmer uninstall systemd --dry-run
  skimmer uninstall systemd`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.uninstallSystemd(cmd.Context(), &o) },
	}
	o.register(cmd)
	return cmd
}

func (a *app) uninstallSystemd(ctx context.Context, o *systemdInstall) error {
	if o.dryRun {
		_, err := a.change(o.Uninstall, true)
		return err
	}
	c, err := o.Uninstall()
	if err != nil {
		return err
	}
	running := true
	if !c.Empty() {
		err := install.Systemctl(ctx, "disable", "--now", o.Name())
		if running = blob.KindOf(err) != blob.Unavailable; err != nil && running {
			return err
		}
	}
	removed, err := a.change(o.Uninstall, false)
	if err != nil || !removed || !running {
		return err
	}
	return install.Systemctl(ctx, "daemon-reload")
}
