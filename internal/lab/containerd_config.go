package lab

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// configText returns the configuration file of a containerd of the given major
// version. Version 2 of the file is read by 1.x, version 3 by 2.x.
func (c ContainerdConfig) configText(major int) string {
	t := &toml{}
	t.value("version", c.fileVersion(major))
	t.value("root", filepath.Join(c.Dir, "root"))
	t.value("state", filepath.Join(c.Dir, "state"))
	t.value("disabled_plugins", c.disabledPlugins())
	t.table("grpc")
	t.value("address", c.socket())
	t.table("debug")
	t.value("level", "info")
	// Nothing is kept outside Dir.
	t.table("plugins", "io.containerd.internal.v1.opt")
	t.value("path", filepath.Join(c.Dir, "opt"))
	if major >= 2 {
		t.table("plugins", "io.containerd.nri.v1.nri")
		t.value("disable", true)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Plugins)) {
		t.table("proxy_plugins", name)
		t.value("type", "snapshot")
		t.value("address", c.Plugins[name])
		if major >= 2 {
			t.table("proxy_plugins", name, "exports")
			t.value("enable_remote_snapshot_annotations", "true")
		}
	}
	if c.Unpacker != "" {
		t.table("stream_processors", "skimmer")
		t.value("accepts", []string{"application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"})
		t.value("returns", "application/vnd.oci.image.layer.v1.tar")
		t.value("path", c.Unpacker)
		t.value("args", []string{"unpack-stream"})
	}
	switch {
	case !c.CRI:
	case major >= 2:
		c.criTwo(t)
	default:
		c.criOne(t)
	}
	return t.String()
}

func (c ContainerdConfig) fileVersion(major int) int {
	if major >= 2 {
		return 3
	}
	return 2
}

// disabledPlugins lists what an experiment has no use for. Plugins that are not
// compiled in do not mind.
func (c ContainerdConfig) disabledPlugins() []string {
	list := []string{
		"io.containerd.internal.v1.tracing",
		"io.containerd.monitor.v1.restart", "io.containerd.monitor.container.v1.restart",
	}
	for _, name := range []string{"aufs", "blockfile", "btrfs", "devmapper", "erofs", "zfs"} {
		list = append(list, "io.containerd.snapshotter.v1."+name)
	}
	if !c.CRI {
		list = append(list, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")
	}
	return list
}

// criOne writes the CRI plugin's part for 1.x.
func (c ContainerdConfig) criOne(t *toml) {
	cri := []string{"plugins", "io.containerd.grpc.v1.cri"}
	in := func(names ...string) { t.table(slices.Concat(cri, names)...) }
	in()
	// A machine may refuse negative scores even to root.
	t.value("restrict_oom_score_adj", true)
	if c.PauseImage != "" {
		t.value("sandbox_image", c.PauseImage)
	}
	in("containerd")
	t.value("snapshotter", c.snapshotter())
	t.value("disable_snapshot_annotations", false)
	c.runc(t, in)
	in("registry")
	t.value("config_path", c.certsDir())
	in("cni")
	t.value("bin_dir", filepath.Join(c.Dir, "cni/bin"))
	t.value("conf_dir", filepath.Join(c.Dir, "cni/conf"))
}

// criTwo writes the CRI plugins' part for 2.x.
func (c ContainerdConfig) criTwo(t *toml) {
	images := []string{"plugins", "io.containerd.cri.v1.images"}
	t.table(images...)
	t.value("snapshotter", c.snapshotter())
	t.value("disable_snapshot_annotations", false)
	if c.PauseImage != "" {
		t.table(append(images, "pinned_images")...)
		t.value("sandbox", c.PauseImage)
	}
	t.table(append(images, "registry")...)
	t.value("config_path", c.certsDir())

	in := func(names ...string) {
		t.table(slices.Concat([]string{"plugins", "io.containerd.cri.v1.runtime"}, names)...)
	}
	in()
	t.value("restrict_oom_score_adj", true)
	c.runc(t, in)
	in("cni")
	t.value("bin_dirs", []string{filepath.Join(c.Dir, "cni/bin")})
	t.value("conf_dir", filepath.Join(c.Dir, "cni/conf"))
	t.table("plugins", "io.containerd.grpc.v1.cri")
	t.value("stream_server_address", "127.0.0.1")
	t.value("stream_server_port", "0")
}

func (c ContainerdConfig) runc(t *toml, in func(...string)) {
	in("containerd", "runtimes", "runc")
	t.value("runtime_type", "io.containerd.runc.v2")
	in("containerd", "runtimes", "runc", "options")
	t.value("SystemdCgroup", false)
}

func (c ContainerdConfig) snapshotter() string {
	if c.Snapshotter == "" {
		return "overlayfs"
	}
	return c.Snapshotter
}

func (c ContainerdConfig) socket() string   { return filepath.Join(c.Dir, "containerd.sock") }
func (c ContainerdConfig) certsDir() string { return filepath.Join(c.Dir, "certs.d") }

// writeHosts makes the registries that are spoken to over plain HTTP known to
// CRI.
func (c ContainerdConfig) writeHosts() error {
	for _, host := range c.InsecureRegistries {
		dir := filepath.Join(c.certsDir(), host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		t := &toml{}
		t.value("server", "http://"+host)
		t.table("host", "http://"+host)
		t.value("capabilities", []string{"pull", "resolve"})
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(t.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// toml writes the little of TOML that a configuration needs. Strings are plain
// paths and names, for which Go's quoting is TOML's.
type toml struct{ strings.Builder }

func (t *toml) table(names ...string) {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = fmt.Sprintf("%q", n)
	}
	fmt.Fprintf(t, "\n[%s]\n", strings.Join(quoted, "."))
}

func (t *toml) value(key string, v any) {
	switch v := v.(type) {
	case string:
		fmt.Fprintf(t, "%s = %q\n", key, v)
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = fmt.Sprintf("%q", s)
		}
		fmt.Fprintf(t, "%s = [%s]\n", key, strings.Join(quoted, ", "))
	default:
		fmt.Fprintf(t, "%s = %v\n", key, v)
	}
}
