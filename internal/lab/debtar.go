package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
	"time"
)

// mergedDirs are the directories that are symlinks into /usr on a merged-usr
// system, which Debian is since version 12. Packages may still ship files
// under the old names.
var mergedDirs = []string{"bin", "lib", "lib64", "sbin"}

// templates are files that maintainer scripts copy when a system is set up.
var templates = map[string]string{
	"usr/share/base-passwd/passwd.master": "etc/passwd",
	"usr/share/base-passwd/group.master":  "etc/group",
	"usr/share/libc-bin/nsswitch.conf":    "etc/nsswitch.conf",
	"usr/share/base-files/profile":        "etc/profile",
	"usr/share/base-files/dot.bashrc":     "root/.bashrc",
	"usr/share/base-files/dot.profile":    "root/.profile",
}

// netRaw is the value of security.capability (linux/capability.h, struct
// vfs_cap_data, revision 2) that permits CAP_NET_RAW and makes it effective.
var netRaw = []byte{
	0x01, 0, 0, 0x02, // VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE
	0, 0x20, 0, 0, 0, 0, 0, 0, // low words: permitted 1<<13, inheritable
	0, 0, 0, 0, 0, 0, 0, 0, // high words
}

// capabilities are the file capabilities that maintainer scripts set.
var capabilities = map[string][]byte{"usr/bin/ping": netRaw}

// layerTar writes one layer's tar. Names have no leading "./", a directory
// comes before what is in it and appears once.
type layerTar struct {
	tw   *tar.Writer
	top  bool // write the top directory too
	seen map[string]seenEntry
	// newest is the latest modification time so far; what no package ships
	// gets it, so that the same packages always make the same layer.
	newest  time.Time
	entries int
	copies  []templateCopy
	modules *modules // nil compiles nothing
}

type seenEntry struct {
	dir  bool
	from string
}

type templateCopy struct {
	name string
	data []byte
}

func newLayerTar(w io.Writer) *layerTar {
	return &layerTar{tw: tar.NewWriter(w), seen: map[string]seenEntry{}}
}

// skeleton writes what no package ships but every system has: the merged-usr
// symlinks, and the device nodes and the pipe that boot-strapped systems come
// with.
func (l *layerTar) skeleton() error {
	var errs []error
	for _, d := range mergedDirs {
		errs = append(errs, l.dir("usr/"+d, 0o755), l.symlink(d, "usr/"+d))
	}
	for _, d := range []struct {
		name         string
		mode         int64
		major, minor int64
	}{
		{"dev/console", 0o600, 5, 1}, {"dev/full", 0o666, 1, 7}, {"dev/null", 0o666, 1, 3},
		{"dev/ptmx", 0o666, 5, 2}, {"dev/random", 0o666, 1, 8}, {"dev/tty", 0o666, 5, 0},
		{"dev/urandom", 0o666, 1, 9}, {"dev/zero", 0o666, 1, 5},
	} {
		h := &tar.Header{Name: d.name, Typeflag: tar.TypeChar, Mode: d.mode, Devmajor: d.major, Devminor: d.minor}
		errs = append(errs, l.write(h, nil, "skeleton"))
	}
	return errors.Join(append(errs,
		l.dir("dev/pts", 0o755), l.dir("dev/shm", 0o1777),
		l.symlink("dev/fd", "/proc/self/fd"),
		l.symlink("dev/stdin", "fd/0"), l.symlink("dev/stdout", "fd/1"), l.symlink("dev/stderr", "fd/2"),
		l.write(&tar.Header{Name: "run/initctl", Typeflag: tar.TypeFifo, Mode: 0o600}, nil, "skeleton"))...)
}

// deb writes the files of a package.
func (l *layerTar) deb(ctx context.Context, file string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", file, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", file, err)
	}
	err = l.modules.next()
	if err == nil {
		err = l.archive(tar.NewReader(out), path.Base(file))
	}
	if err == nil {
		// What follows the archive's end is padding, but must be read for
		// dpkg-deb to end well.
		_, err = io.Copy(io.Discard, out)
	} else {
		_ = cmd.Process.Kill()
	}
	werr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("unpack %s: %w", file, ctx.Err())
	case err != nil:
		return fmt.Errorf("unpack %s: %w", file, err)
	case werr != nil:
		return fmt.Errorf("unpack %s: dpkg-deb: %w: %s", file, werr, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// archive writes the entries of tr, the content of the package called from.
func (l *layerTar) archive(tr *tar.Reader, from string) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = mergeUsr(cleanName(h.Name))
		if h.Name == "." && !l.top {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = mergeUsr(cleanName(h.Linkname))
		}
		body, err := l.modules.file(h, tr)
		if err != nil {
			return err
		}
		if dst, ok := templates[h.Name]; ok {
			data, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			l.copies = append(l.copies, templateCopy{dst, data})
			body = bytes.NewReader(data)
		}
		if c, ok := capabilities[h.Name]; ok {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(c)}
		}
		if err := l.write(h, body, from); err != nil {
			return err
		}
	}
}

// write writes one entry with the directories it is in. A directory that is
// there already is left as it is; anything else twice is an error, because
// packages that are installed together do not have files in common.
func (l *layerTar) write(h *tar.Header, body io.Reader, from string) error {
	name := cleanName(h.Name)
	isDir := h.Typeflag == tar.TypeDir
	if was, ok := l.seen[name]; ok {
		if was.dir && isDir {
			return nil
		}
		return fmt.Errorf("both %s and %s have %q", was.from, from, name)
	}
	if err := l.parents(name); err != nil {
		return err
	}
	l.seen[name] = seenEntry{isDir, from}
	if h.ModTime.IsZero() {
		h.ModTime = l.newest
	} else if h.ModTime.After(l.newest) {
		l.newest = h.ModTime
	}
	h.Name = name
	if isDir {
		h.Name += "/"
	}
	// Let the writer choose the format: a package's is GNU, which has no room
	// for extended attributes.
	h.Format = tar.FormatUnknown
	if h.PAXRecords != nil || h.ModTime.Nanosecond() != 0 {
		h.Format = tar.FormatPAX
	}
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if err := l.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	if h.Size > 0 {
		if _, err := io.Copy(l.tw, body); err != nil {
			return fmt.Errorf("write %q: %w", name, err)
		}
	}
	l.entries++
	return nil
}

// parents writes the directories above name that have not been written.
func (l *layerTar) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if _, ok := l.seen[dir]; ok {
		return nil
	}
	return l.dir(dir, 0o755)
}

func (l *layerTar) dir(name string, mode int64) error {
	return l.write(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, nil, "skeleton")
}

func (l *layerTar) symlink(name, target string) error {
	return l.write(&tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}, nil, "skeleton")
}

func (l *layerTar) file(name string, data []byte) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}
	return l.write(h, bytes.NewReader(data), "skeleton")
}

// finish copies the templates, writes what Python makes of its modules, and
// ends the archive.
func (l *layerTar) finish() error {
	for _, c := range l.copies {
		if _, ok := l.seen[c.name]; ok {
			continue // a package ships the real file
		}
		if err := l.file(c.name, c.data); err != nil {
			return err
		}
	}
	if err := l.modules.compiled(l.file); err != nil {
		return err
	}
	return l.tw.Close()
}

// cleanName returns a tar entry's name without "./", leading and trailing
// slashes; the top directory is ".".
func cleanName(name string) string {
	return path.Clean(strings.TrimPrefix(path.Clean("/"+name), "/"))
}

// mergeUsr returns where a cleaned path is on a merged-usr system.
func mergeUsr(name string) string {
	top, _, _ := strings.Cut(name, "/")
	for _, d := range mergedDirs {
		if top == d {
			return "usr/" + name
		}
	}
	return name
}
