package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"skimmer/internal/erofs"
)

// machine checks what the kernel can do for us.
func (o *Options) machine(context.Context) []Check {
	return []Check{root(os.Getuid()), kernel(), o.erofs(), fuse("/dev/fuse"), overlay("/proc/filesystems")}
}

func root(uid int) Check {
	if uid == 0 {
		return Check{"root", OK, "running as root", ""}
	}
	return Check{"root", Fail, fmt.Sprintf("running as user %d", uid), "mounting needs root: run it with sudo"}
}

// kernelAdvice is what to do about kernels that cannot mount files.
const kernelAdvice = "use Linux 6.12 or newer with EROFS (CONFIG_EROFS_FS, CONFIG_EROFS_FS_BACKED_BY_FILE); until then images are downloaded and unpacked as usual"

func kernel() Check {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Check{"kernel", Fail, err.Error(), ""}
	}
	return kernelRelease(unix.ByteSliceToString(name.Release[:]))
}

func kernelRelease(release string) Check {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return Check{"kernel", Warn, "Linux " + release, "cannot tell its version: see the check of erofs"}
	}
	if major < 6 || major == 6 && minor < 12 {
		return Check{"kernel", Warn, "Linux " + release, kernelAdvice}
	}
	return Check{"kernel", OK, "Linux " + release, ""}
}

// erofs tries what a lazy mount needs of the kernel.
func (o *Options) erofs() Check {
	dir, err := existing(o.DataDir)
	if err != nil {
		return Check{"erofs", Fail, err.Error(), ""}
	}
	f, err := erofs.Probe(dir, "")
	if err != nil {
		return Check{"erofs", Fail, err.Error(), "say where data is to be kept with --config"}
	}
	for _, feature := range []struct {
		name string
		f    erofs.Feature
	}{{"EROFS", f.EROFS}, {"mounting a file", f.FileBacked}, {"reading from a second file", f.FileDevice}} {
		if !feature.f.OK {
			return Check{"erofs", Fail, feature.name + ": " + feature.f.Reason, kernelAdvice}
		}
	}
	return Check{"erofs", OK, "mounts files, with devices", ""}
}

func fuse(device string) Check {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return Check{"fuse", Fail, err.Error(), "load the module (modprobe fuse); in a container, pass the device " + device}
	}
	f.Close()
	return Check{"fuse", OK, device + " opens", ""}
}

func overlay(filesystems string) Check {
	text, err := os.ReadFile(filesystems)
	if err != nil {
		return Check{"overlayfs", Fail, err.Error(), ""}
	}
	for line := range bytes.Lines(text) {
		if words := strings.Fields(string(line)); len(words) > 0 && words[len(words)-1] == "overlay" {
			return Check{"overlayfs", OK, "the kernel has it", ""}
		}
	}
	return Check{"overlayfs", Warn, "the kernel does not have it loaded", "load the module: modprobe overlay"}
}

// existing returns path, or the closest directory above it that exists.
func existing(path string) (string, error) {
	for {
		info, err := os.Stat(path)
		switch {
		case err == nil && info.IsDir():
			return path, nil
		case err == nil:
			return "", fmt.Errorf("find directory: %s is not one", path)
		case !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path):
			return "", fmt.Errorf("find directory: %w", err)
		}
		path = filepath.Dir(path)
	}
}

// How much free space is little, and too little, in bytes.
const (
	littleSpace = 2 << 30
	noSpace     = 128 << 20
)

// data checks where blobs are to be kept.
func (o *Options) data(context.Context) []Check {
	dir, err := existing(o.DataDir)
	if err != nil {
		return []Check{{"disk", Fail, err.Error(), "set dataDir in the configuration to a directory"}}
	}
	return []Check{o.space(dir), sparse(dir)}
}

func (o *Options) space(dir string) Check {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Check{"disk", Fail, fmt.Sprintf("%s: %v", dir, err), ""}
	}
	free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	c := Check{"disk", OK, fmt.Sprintf("%.1f of %.1f GiB free for %s", float64(free)/(1<<30), float64(all)/(1<<30), o.DataDir), ""}
	switch {
	case free < noSpace:
		c.Status = Fail
	case free < littleSpace || free < all/50:
		c.Status = Warn
	default:
		return c
	}
	c.Advice = "make room, or set dataDir in the configuration to a larger disk"
	return c
}

// sparse checks that files take no space for what is not in them yet.
func sparse(dir string) Check {
	const size = 8 << 20
	fail := func(err error) Check {
		return Check{"sparse", Fail, err.Error(), "the data directory has to be writable"}
	}
	f, err := os.CreateTemp(dir, ".skimmer-doctor-*")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return fail(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), size-4096); err != nil {
		return fail(err)
	}
	if err := f.Sync(); err != nil {
		return fail(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fail(err)
	}
	if st.Blocks*512 >= size {
		return Check{"sparse", Fail, fmt.Sprintf("the file system of %s has no sparse files", dir), "put dataDir on ext4, xfs or btrfs"}
	}
	return Check{"sparse", OK, "files take only what is in them", ""}
}
