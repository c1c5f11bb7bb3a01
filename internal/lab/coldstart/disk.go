package coldstart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// diskSize is how large the file system of a node is, in bytes. Its file is
// sparse: it takes what the node wrote.
const diskSize = 16 << 30

// newDisk makes an empty file system of a node's own and mounts it at dir,
// which must not exist. Without it a node would pay for the ones before: ext4
// without a journal looks, for each new file, at all inodes that were freed in
// its group within the last minutes, and a node that has unpacked an image
// leaves tens of thousands of them behind.
func newDisk(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	f, err := os.Create(diskFile(dir))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return err
	}
	// What mkfs leaves for later stays so: it would be written during a measurement.
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", diskFile(dir))
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("make file system for a node: %w: %s", err, out)
	}
	mount := exec.CommandContext(ctx, "mount", "-o", "loop,noinit_itable", diskFile(dir), dir)
	if out, err := mount.CombinedOutput(); err != nil {
		return fmt.Errorf("mount file system of a node: %w: %s", err, out)
	}
	return nil
}

// diskFile returns the name of the file that has the file system at dir.
func diskFile(dir string) string { return dir + ".ext4" }

// removeDisk takes away what newDisk made, as far as it got.
func removeDisk(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // it was not mounted
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(diskFile(dir)))
}
