package doctor

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"skimmer/internal/blob"
	"skimmer/internal/install"
	"skimmer/internal/origin"
)

// notWanted is found where nothing is to be checked.
const notWanted = "the snapshotter is turned off"

// snapshotter checks that the peer serves containerd.
func (o *Options) snapshotter(ctx context.Context) []Check {
	if o.Socket == "" {
		return []Check{{"snapshotter", Skip, notWanted, ""}}
	}
	if err := answers(ctx, o.Socket); err != nil {
		return []Check{{"snapshotter", Fail, fmt.Sprintf("%s: %v", o.Socket, err),
			"start the peer: skimmer install systemd --now, or skimmer up; see its log: journalctl -u skimmer"}}
	}
	return []Check{{"snapshotter", OK, o.Socket + " answers", ""}}
}

// answers asks a snapshotter for a snapshot that nobody has.
func answers(ctx context.Context, socket string) error {
	if _, err := os.Stat(socket); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "default")
	_, err = snapshotsapi.NewSnapshotsClient(conn).Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: "stargz", Key: "skimmer-doctor"})
	if err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	return nil
}

// containerd checks that it runs and knows the snapshotter.
func (o *Options) containerd(ctx context.Context) []Check {
	down := func(err error) []Check {
		return []Check{
			{"containerd", Fail, fmt.Sprintf("%s: %v", o.Containerd, err), "start it, or say where it is with --containerd"},
			{"plugin", Skip, "containerd does not answer", ""},
		}
	}
	if o.Containerd == "" {
		return []Check{{"containerd", Skip, notWanted, ""}, {"plugin", Skip, notWanted, ""}}
	}
	if _, err := os.Stat(o.Containerd); err != nil {
		return down(err)
	}
	c, err := client.New(o.Containerd, client.WithTimeout(o.Timeout), client.WithDefaultNamespace("default"))
	if err != nil {
		return down(err)
	}
	defer c.Close()
	v, err := c.Version(ctx)
	if err != nil {
		return down(err)
	}
	return []Check{{"containerd", OK, fmt.Sprintf("version %s on %s", v.Version, o.Containerd), ""}, o.plugin(ctx, c)}
}

// plugin checks that containerd has the snapshotter, by any of its names.
func (o *Options) plugin(ctx context.Context, c *client.Client) Check {
	const install = "run: skimmer install containerd --restart"
	all, err := c.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return Check{"plugin", Fail, err.Error(), ""}
	}
	for _, p := range all.Plugins {
		if !slices.Contains(o.Names, p.ID) {
			continue
		}
		if p.InitErr != nil {
			return Check{"plugin", Fail, fmt.Sprintf("snapshotter %s: %s", p.ID, p.InitErr.Message), "see the log of containerd"}
		}
		address := p.Exports["address"]
		if address == "" {
			return Check{"plugin", OK, "containerd has snapshotter " + p.ID, ""}
		}
		if err := answers(ctx, address); err != nil {
			return Check{"plugin", Fail, fmt.Sprintf("snapshotter %s on %s: %v", p.ID, address, err), "start what serves that socket, or " + install}
		}
		if address != o.Socket {
			return Check{"plugin", Warn, fmt.Sprintf("snapshotter %s is on %s, the peer's is %s", p.ID, address, o.Socket), install}
		}
		return Check{"plugin", OK, fmt.Sprintf("snapshotter %s on %s answers", p.ID, address), ""}
	}
	return Check{"plugin", Fail, "containerd has no snapshotter " + strings.Join(o.Names, " or "), install}
}

// configured checks what containerd's configuration says.
func (o *Options) configured(context.Context) []Check {
	if o.ContainerdConfig == "" {
		return []Check{{"cri", Skip, notWanted, ""}, {"unpack", Skip, notWanted, ""}}
	}
	cfg, err := install.ReadContainerd(o.ContainerdConfig)
	if err != nil {
		return []Check{
			{"cri", Warn, err.Error(), "run: skimmer install containerd"},
			{"unpack", Skip, "containerd's configuration cannot be read", ""},
		}
	}
	return []Check{o.cri(cfg), unpack(cfg)}
}

// unpack checks that the program is there that containerd has decompress layers: without
// it gzip does it.
func unpack(cfg install.Configured) Check {
	const again = "run: skimmer install containerd --restart"
	if cfg.Unpacker == "" {
		return Check{"unpack", Skip, "containerd decompresses layers itself", "this program is faster; " + again}
	}
	if _, err := exec.LookPath(cfg.Unpacker); err != nil {
		return Check{"unpack", Warn, fmt.Sprintf("containerd has layers decompressed by a program that cannot be run, and gzip does it: %v", err), again}
	}
	return Check{"unpack", OK, cfg.Unpacker + " decompresses layers for containerd", ""}
}

// cri checks that Kubernetes would use the snapshotter.
func (o *Options) cri(cfg install.Configured) Check {
	c := Check{Name: "cri", Status: Warn, Advice: "for Kubernetes, run: skimmer install containerd --restart"}
	switch {
	case !slices.Contains(o.Names, cfg.Snapshotter):
		c.Found = fmt.Sprintf("%s has CRI use snapshotter %q", o.ContainerdConfig, cfg.Snapshotter)
	case cfg.Proxies[cfg.Snapshotter] == "":
		c.Status = Fail
		c.Found = fmt.Sprintf("%s has CRI use snapshotter %s, which is not among its proxy plugins: %s",
			o.ContainerdConfig, cfg.Snapshotter, strings.Join(slices.Sorted(maps.Keys(cfg.Proxies)), ", "))
	case !cfg.Annotations:
		c.Status = Fail
		c.Found = "CRI does not tell the snapshotter which image a layer is of: disable_snapshot_annotations is on"
	default:
		return Check{"cri", OK, fmt.Sprintf("CRI uses snapshotter %s, with annotations", cfg.Snapshotter), ""}
	}
	return c
}

// registry checks that a registry can be reached. Whether it lets us in is
// another question: an answer of any kind will do.
func (o *Options) registry(ctx context.Context) []Check {
	if o.Registry == "" {
		return []Check{{"registry", Skip, "none given", "to try one: skimmer doctor --registry HOST"}}
	}
	name := o.Registry
	if !strings.Contains(name, "/") {
		name += "/x"
	}
	ref, err := origin.ParseReference(name)
	if err != nil {
		return []Check{{"registry", Fail, err.Error(), "give a host, host:port or an image's name"}}
	}
	host, scheme := ref.Host(), "https"
	if local(host) || slices.Contains(o.Insecure, host) {
		scheme = "http"
	}
	url := scheme + "://" + host + "/v2/"
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return []Check{{"registry", Fail, err.Error(), ""}}
	}
	tr := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return []Check{{"registry", Fail, err.Error(), "check name, DNS, proxy and firewall; registries without TLS go under origin.insecure"}}
	}
	resp.Body.Close()
	c := Check{"registry", OK, fmt.Sprintf("%s answers %s", url, resp.Status), ""}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		c.Found += ", it wants credentials for some images"
	case resp.StatusCode >= http.StatusInternalServerError, resp.StatusCode == http.StatusTooManyRequests:
		c.Status, c.Advice = Fail, "it is failing, or refuses us: try again later"
	case resp.StatusCode >= http.StatusMultipleChoices:
		c.Status, c.Advice = Warn, "this does not look like a registry"
	}
	return []Check{c}
}

// local reports whether host[:port] is this machine.
func local(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// scheduler checks that a scheduler accepts connections.
func (o *Options) scheduler(ctx context.Context) []Check {
	if o.Scheduler == "" {
		return []Check{{"scheduler", Skip, "none given", ""}}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", o.Scheduler)
	if err != nil {
		advice := "start it, or mend the way to it; without it, peers fetch from the registry"
		if blob.KindOf(err) == blob.Internal && strings.Contains(err.Error(), "missing port") {
			advice = "give it as host:port, such as scheduler.example:8002"
		}
		return []Check{{"scheduler", Fail, err.Error(), advice}}
	}
	conn.Close()
	return []Check{{"scheduler", OK, o.Scheduler + " accepts connections", ""}}
}
