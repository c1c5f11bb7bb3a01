package install

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"skimmer/internal/blob"
)

// DefaultHostsDir is where containerd, nerdctl and others look for how
// registries are reached.
const DefaultHostsDir = "/etc/containerd/certs.d"

// Hosts has containerd fetch a registry's images through the mirror, and from
// the registry itself where the mirror does not answer. The format is that of
// containerd's hosts.toml.
type Hosts struct {
	// Dir is the directory; empty is DefaultHostsDir.
	Dir string
	// Registry is the registry as images name it, such as docker.io or
	// registry.example:5000; _default is all that have no file of their own.
	Registry string
	// Mirror is the mirror's URL.
	Mirror string
	// Server is the registry's own URL; empty is https:// and its name.
	// Uninstall does not need it, nor Mirror.
	Server string
}

// The lines around what is added to a file that was there before.
const (
	hostsBegin = "# Added by skimmer install containerd: begin"
	hostsEnd   = "# Added by skimmer install containerd: end"
)

// defaultRegistry names the file for registries without one.
const defaultRegistry = "_default"

var validRegistry = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9.-]{0,252}(:[0-9]{1,5})?$`)

func (h *Hosts) complete() error {
	if h.Dir == "" {
		h.Dir = DefaultHostsDir
	}
	if h.Registry != defaultRegistry && !validRegistry.MatchString(h.Registry) {
		return blob.Errorf(blob.Invalid, "configure the mirror: %q is not a registry: write it as images name it, such as docker.io or registry.example:5000", h.Registry)
	}
	if h.Server == "" && h.Registry != defaultRegistry {
		h.Server = "https://" + h.Registry
		if h.Registry == "docker.io" {
			h.Server = "https://registry-1.docker.io"
		}
	}
	for _, s := range []string{h.Server, h.Mirror} {
		u, err := url.Parse(s)
		if s != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || strings.ContainsAny(s, "\"\\\n")) {
			return blob.Errorf(blob.Invalid, "configure the mirror: %q is not the URL of a server", s)
		}
	}
	return nil
}

func (h *Hosts) path() string { return filepath.Join(h.Dir, h.Registry, "hosts.toml") }

// MirrorURL returns the URL of a mirror that listens on address, as a
// containerd on the same machine reaches it.
func MirrorURL(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", blob.Errorf(blob.Invalid, "configure the mirror: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// entry is what makes the mirror be asked.
func (h *Hosts) entry() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", h.Mirror)
	if h.Server != "" {
		fmt.Fprintf(&b, "  [host.%q.header]\n    X-Dragonfly-Registry = [%q]\n", h.Mirror, h.Server)
	}
	return b.String()
}

// Install returns what makes the mirror be asked first; an empty Change where
// it is. In a file that others wrote, all that was there stays, behind it.
//
// Errors: Invalid for a file that cannot be edited.
func (h Hosts) Install() (*Change, error) {
	if err := h.complete(); err != nil {
		return nil, err
	}
	before, err := readFile(h.path())
	if err != nil {
		return nil, fmt.Errorf("configure the mirror: %w", err)
	}
	change := &Change{Path: h.path(), Before: before}
	if before == nil || bytes.HasPrefix(before, []byte(written)) {
		text := written + "\n"
		if h.Server != "" {
			text += fmt.Sprintf("server = %q\n", h.Server)
		}
		change.After = []byte(text + "\n" + h.entry())
		return change, nil
	}
	rest, err := withoutHosts(before)
	if err != nil {
		return nil, fmt.Errorf("edit %s: %w", h.path(), err)
	}
	if change.After, err = h.insert(rest); err != nil {
		return nil, fmt.Errorf("edit %s: %w", h.path(), err)
	}
	return change, nil
}

// insert puts the mirror before the other hosts: containerd asks them in the
// order of the file.
func (h *Hosts) insert(text []byte) ([]byte, error) {
	_, content, err := parse(text)
	if err != nil {
		return nil, err
	}
	if _, there := lookup(content, []string{"host", h.Mirror}); there {
		return nil, blob.Errorf(blob.Invalid, "it has %s already, not written by this command: remove that, or leave the file as it is", h.Mirror)
	}
	block := hostsBegin + "\n" + h.entry() + hostsEnd + "\n"
	at := len(text)
	if i := regexp.MustCompile(`(?m)^[ \t]*\[`).FindIndex(text); i != nil {
		at = i[0]
	} else if at > 0 && text[at-1] != '\n' {
		block = "\n" + block
	}
	after := bytes.Join([][]byte{text[:at], []byte(block), text[at:]}, nil)
	_, ours, err := parse([]byte(h.entry()))
	if err != nil {
		return nil, err
	}
	want := clone(content)
	value, _ := lookup(ours, []string{"host", h.Mirror})
	if !store(want, []string{"host", h.Mirror}, value) {
		return nil, blob.Errorf(blob.Invalid, "set host: it is not a table")
	}
	if _, _, err := reread(after, want); err != nil {
		return nil, err
	}
	return after, nil
}

// Uninstall returns what takes the mirror away again: a file of ours goes, what
// was added to others' files is taken out of them.
func (h Hosts) Uninstall() (*Change, error) {
	if err := h.complete(); err != nil {
		return nil, err
	}
	before, err := readFile(h.path())
	if err != nil {
		return nil, fmt.Errorf("configure the mirror: %w", err)
	}
	change := &Change{Path: h.path(), Before: before, After: before}
	if bytes.HasPrefix(before, []byte(written)) {
		change.After = nil
		change.removeDir = true
		return change, nil
	}
	if change.After, err = withoutHosts(before); err != nil {
		return nil, fmt.Errorf("edit %s: %w", h.path(), err)
	}
	return change, nil
}

// withoutHosts returns text without what was added to it.
func withoutHosts(text []byte) ([]byte, error) {
	from := bytes.Index(text, []byte(hostsBegin+"\n"))
	if from < 0 {
		return text, nil
	}
	end := bytes.Index(text[from:], []byte(hostsEnd+"\n"))
	if end < 0 {
		return nil, blob.Errorf(blob.Invalid, "it has a line %q and no line %q after it: put that back, or remove what is between", hostsBegin, hostsEnd)
	}
	rest := append(bytes.Clone(text[:from]), text[from+end+len(hostsEnd)+1:]...)
	_, before, err := parse(text)
	if err != nil {
		return nil, err
	}
	_, after, err := parse(rest)
	if err != nil {
		return nil, err
	}
	delete(before, "host")
	delete(after, "host")
	if !reflect.DeepEqual(before, after) {
		return nil, blob.Errorf(blob.Invalid, "between the lines of skimmer install containerd is more than it wrote: move that out of there")
	}
	return rest, nil
}

// InstalledHosts returns the registries of a directory that Install has
// written something for, in order.
func InstalledHosts(dir string) ([]string, error) {
	if dir == "" {
		dir = DefaultHostsDir
	}
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for mirrors: %w", err)
	}
	var found []string
	for _, e := range entries {
		text, err := readFile(filepath.Join(dir, e.Name(), "hosts.toml"))
		if err == nil && (bytes.HasPrefix(text, []byte(written)) || bytes.Contains(text, []byte(hostsBegin))) {
			found = append(found, e.Name())
		}
	}
	return found, nil
}
