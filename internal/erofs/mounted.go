package erofs

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Mounted reports whether an EROFS file system is mounted on target itself,
// not on a folder above it. A target that does not exist has none.
func Mounted(target string) (bool, error) {
	var sx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &sx)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statx", Path: target, Err: err}
	}
	if sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: target, Err: err}
	}
	return uint64(st.Type) == unix.EROFS_SUPER_MAGIC_V1, nil
}
