package install

import (
	"fmt"

	"skimmer/internal/blob"
)

// Configured is what a containerd configuration says about snapshotters,
// imports included.
type Configured struct {
	// Version is the version of the file's format.
	Version int64
	// Snapshotter is the one CRI uses; empty means containerd's default.
	Snapshotter string
	// Annotations is whether CRI tells snapshotters which image a layer
	// belongs to, without which nothing can be mounted lazily.
	Annotations bool
	// Proxies maps the names of proxy snapshotters to their sockets.
	Proxies map[string]string
	// Unpacker is the skimmer that decompresses layers; empty where containerd does it.
	Unpacker string
}

// ReadContainerd reads a containerd configuration. Errors: NotFound for no
// file, Invalid for one that is not understood.
func ReadContainerd(path string) (Configured, error) {
	var c Configured
	text, err := readFile(path)
	if err == nil && text == nil {
		err = blob.Errorf(blob.NotFound, "there is no such file")
	}
	if err != nil {
		return c, fmt.Errorf("read %s: %w", path, err)
	}
	_, content, err := parse(text)
	if err == nil {
		c.Version, err = fileVersion(content)
	}
	var imports []imported
	if err == nil {
		imports, err = importsOf(path, content)
	}
	if err != nil {
		return c, fmt.Errorf("read %s: %w", path, err)
	}
	c.Proxies = make(map[string]string)
	// What is imported has the last word.
	for _, f := range append([]imported{{path, content}}, imports...) {
		c.merge(f.content)
	}
	return c, nil
}

// merge takes what a file says over what others did.
func (c *Configured) merge(content map[string]any) {
	for _, dir := range [][]string{{"plugins", cri2, "containerd"}, {"plugins", cri3}} {
		table, _ := lookup(content, dir)
		cri, _ := table.(map[string]any)
		if name, ok := cri["snapshotter"].(string); ok {
			c.Snapshotter = name
		}
		if disabled, ok := cri["disable_snapshot_annotations"].(bool); ok {
			c.Annotations = !disabled
		}
	}
	if program := unpackerOf(content); program != "" {
		c.Unpacker = program
	}
	proxies, _ := content["proxy_plugins"].(map[string]any)
	for name, p := range proxies {
		if p, ok := p.(map[string]any); ok && p["type"] == "snapshot" {
			c.Proxies[name], _ = p["address"].(string)
		}
	}
}
