package install

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"

	"skimmer/internal/blob"
)

// Uninstall returns what takes the snapshotter away again. A file that was
// not touched since becomes what it was, byte for byte; of others only our
// own settings go, and what they replaced comes back. With an empty Name it is
// the one that install added. Errors: Invalid for a file that cannot be edited.
func (c Containerd) Uninstall() (*Change, error) {
	named := c.Name != ""
	if err := c.complete(); err != nil {
		return nil, err
	}
	before, err := readFile(c.Config)
	if err != nil {
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	backup, err := readFile(c.Config + BackupSuffix)
	if err != nil {
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	change := &Change{Path: c.Config, Before: before, After: before}
	if before == nil || backup == nil && !bytes.Contains(before, []byte(marker)) {
		return change, nil // not our work
	}
	d, content, err := parse(before)
	if err == nil && !named {
		c.Name = d.added(c.Name)
	}
	if err == nil && !c.present(content) {
		change.Notes = []string{fmt.Sprintf("there is no snapshotter %s in it", c.Name)}
		return change, nil
	}
	if err == nil {
		change.After, change.Notes, err = c.restore(before, backup)
	}
	if err != nil {
		return nil, fmt.Errorf("edit %s: %w", c.Config, err)
	}
	// A second snapshotter of ours needs the backup still.
	change.removeBackup = backup != nil && !bytes.Contains(change.After, []byte(marker))
	return change, nil
}

// added returns the name of the snapshotter that install added, or else.
func (d *document) added(or string) string {
	for i := range d.statements {
		s := &d.statements[i]
		if d.marked(s) && len(s.path) == 2 && s.path[0] == "proxy_plugins" {
			return s.path[1]
		}
	}
	return or
}

// ownTable reports whether install wrote the header of a table.
func (d *document) ownTable(path []string) bool {
	for i := range d.statements {
		if s := &d.statements[i]; d.marked(s) && slices.Equal(s.path, path) {
			return true
		}
	}
	return false
}

// present reports whether anything in a configuration is about the
// snapshotter.
func (c *Containerd) present(content map[string]any) bool {
	if _, there := lookup(content, []string{"proxy_plugins", c.Name}); there {
		return true
	}
	for _, path := range [][]string{{"plugins", cri2, "containerd", "snapshotter"}, {"plugins", cri3, "snapshotter"}} {
		if name, _ := lookup(content, path); name == c.Name {
			return true
		}
	}
	return false
}

// restore returns text without our settings, and with those of backup in
// their place; nil if install made the file and nothing was added to it.
func (c *Containerd) restore(text, backup []byte) ([]byte, []string, error) {
	d, content, err := parse(text)
	if err != nil {
		return nil, nil, err
	}
	version, err := fileVersion(content)
	if err != nil {
		return nil, nil, err
	}
	if dir, ok := lookup(content, configPath(version)); ok && (dir == DefaultHostsDir || d.ownTable(configPath(version)[:3])) {
		c.HostsDir, _ = dir.(string)
	}
	if address, ok := lookup(content, []string{"proxy_plugins", c.Name, "address"}); ok && backup != nil {
		again := *c
		again.Address, _ = address.(string)
		if root, ok := lookup(content, []string{"proxy_plugins", c.Name, "exports", "root"}); ok {
			again.Root, _ = root.(string)
		}
		again.Unpacker = unpackerOf(content)
		for _, v := range []string{c.Version, "1.7.0", "2.0.0", "2.1.0"} {
			again.Version = v
			if made, _, err := again.edit(backup); err == nil && bytes.Equal(made, text) {
				return backup, nil, nil
			}
		}
	}
	c.Unpacker = unpackerOf(content)
	old, base, err := parse(backup)
	if err != nil {
		return nil, nil, fmt.Errorf("read its backup: %w", err)
	}
	var notes []string
	want := clone(content)
	foreign := false // CRI uses another snapshotter by now
	for _, s := range c.settings(version, true) {
		now, there := lookup(content, s.path)
		former, was := lookup(base, s.path)
		switch {
		case !there || was && reflect.DeepEqual(now, former):
			continue
		case s.path[0] == "plugins" && (foreign || now != s.value):
			foreign = true
			notes = append(notes, fmt.Sprintf("%s is %v, which is not ours, and stays", d.dotted(s.path), now))
			continue
		}
		k := d.find(s.path)
		if k == nil {
			return nil, nil, blob.Errorf(blob.Invalid, "remove %s: cannot find it in the text", d.dotted(s.path))
		}
		var edited []byte
		if was {
			store(want, s.path, former)
			edited = d.splice(k.value, k.end, old.formerLiteral(s.path, former))
		} else {
			drop(want, s.path)
			edited = d.remove(k)
		}
		if d, _, err = reread(edited, want); err != nil {
			return nil, nil, fmt.Errorf("remove %s: %w", d.dotted(s.path), err)
		}
	}
	if d, err = c.restoreUnpack(d, want, old, base); err != nil {
		return nil, nil, fmt.Errorf("remove %s: %w", d.dotted(unpackPath), err)
	}
	if d, err = removeHeaders(d, want); err != nil {
		return nil, nil, err
	}
	if backup == nil && bytes.HasPrefix(text, []byte(written)) && onlyVersion(d) {
		return nil, notes, nil
	}
	return d.text, notes, nil
}

// unpackerOf returns the skimmer that decompresses layers for containerd.
func unpackerOf(content map[string]any) string {
	v, _ := lookup(content, slices.Concat(processorPath, []string{"args"}))
	args, _ := v.([]any)
	if len(args) != 3 {
		return ""
	}
	program, _ := args[2].(string)
	return program
}

// formerLiteral is how the backup wrote a value.
func (d *document) formerLiteral(path []string, value any) string {
	if s := d.find(path); s != nil {
		return d.literal(s)
	}
	return d.value(value)
}

// onlyVersion reports whether nothing is left in a file but its version and
// our own comment.
func onlyVersion(d *document) bool {
	return len(d.statements) == 1 && slices.Equal(d.statements[0].path, []string{"version"}) &&
		bytes.Count(d.text, []byte("#")) == 1
}

// restoreUnpack removes our elements of the transfer service's list.
func (c *Containerd) restoreUnpack(d *document, want map[string]any, old *document, base map[string]any) (*document, error) {
	if s := d.find(unpackPath); s != nil && s.of == unstable.Array {
		was := old.find(unpackPath)
		if was == nil {
			return d, nil
		}
		now, _ := lookup(want, unpackPath)
		former, _ := lookup(base, unpackPath)
		list, _ := now.([]any)
		rest := slices.DeleteFunc(slices.Clone(list), func(e any) bool { return reflect.DeepEqual(e, unpackEntry(c.Name)) })
		if !reflect.DeepEqual(any(rest), former) {
			return d, nil
		}
		store(want, unpackPath, former)
		edited, _, err := reread(d.splice(s.value, s.end, old.literal(was)), want)
		if err != nil {
			return d, err
		}
		return edited, nil
	}
	for {
		text := d.removeMarked(unpackPath)
		if text == nil {
			return d, nil
		}
		_, content, err := parse(text)
		if err != nil {
			return d, err
		}
		// Which elements went is known only now; nothing else may have.
		if list, there := lookup(content, unpackPath); there {
			store(want, unpackPath, list)
		} else {
			drop(want, unpackPath)
		}
		edited, _, err := reread(text, want)
		if err != nil {
			return d, err
		}
		d = edited
	}
}

// removeHeaders removes headers of ours that nothing stands under.
func removeHeaders(d *document, want map[string]any) (*document, error) {
	for {
		text := d.removeMarked(nil)
		if text == nil {
			return d, nil
		}
		edited, _, err := reread(text, want)
		if err != nil {
			return d, err
		}
		d = edited
	}
}

// drop removes the value at a path.
func drop(content map[string]any, path []string) {
	for _, key := range path[:len(path)-1] {
		content, _ = content[key].(map[string]any)
	}
	delete(content, path[len(path)-1])
}
