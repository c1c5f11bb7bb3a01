package erofs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// Features say what of the lazy mount the running kernel can do.
type Features struct {
	// EROFS is the file system itself.
	EROFS Feature
	// FileBacked is mounting an image that is an ordinary file.
	FileBacked Feature
	// FileDevice is reading file data from an extra device that is an ordinary
	// file, as for layers that have arrived.
	FileDevice Feature
	// FUSEDevice is the same from a file served by FUSE, as for layers that
	// have not. It is off when Probe was given no such file.
	FUSEDevice Feature
}

// Feature is one thing the kernel can or cannot do.
type Feature struct {
	OK bool
	// Reason says why not, and the way out where there is one; empty when OK.
	Reason string
}

// Probe finds out what the running kernel can do by doing it: it builds an
// image of one small file in a directory of its own under dir, which is where
// images will be kept, mounts it without attaching it anywhere, and reads the
// file. fuseFile, where not empty, is the path of a file on a FUSE mount, of one
// block at least, to use as a device.
//
// What the kernel cannot do is in Features; the error is for what prevented
// finding out (dir cannot be written, fuseFile not be read).
func Probe(dir, fuseFile string) (Features, error) {
	no := func(err error) Feature { return Feature{Reason: err.Error()} }
	var f Features
	c, err := openContext()
	if err != nil {
		none := no(err)
		return Features{EROFS: none, FileBacked: none, FileDevice: none, FUSEDevice: none}, nil
	}
	c.close()
	f.EROFS.OK = true

	tmp, err := os.MkdirTemp(dir, "erofs-probe-")
	if err != nil {
		return f, fmt.Errorf("probe EROFS: %w", err)
	}
	defer os.RemoveAll(tmp)
	device := filepath.Join(tmp, "device")
	content := bytes.Repeat([]byte("skimmer!"), blockSize/8)
	if err := os.WriteFile(device, content, 0o600); err != nil {
		return f, fmt.Errorf("probe EROFS: %w", err)
	}

	if err := readThrough(tmp, "", nil); err != nil {
		f.FileBacked = no(err)
		f.FileDevice, f.FUSEDevice = f.FileBacked, f.FileBacked
		return f, nil
	}
	f.FileBacked.OK = true
	if err := readThrough(tmp, device, content); err != nil {
		f.FileDevice = no(err)
	} else {
		f.FileDevice.OK = true
	}
	if fuseFile == "" {
		f.FUSEDevice.Reason = "not tried: there is no FUSE file yet"
		return f, nil
	}
	if content, err = firstBlock(fuseFile); err != nil {
		return f, fmt.Errorf("probe EROFS: %w", err)
	}
	if err := readThrough(tmp, fuseFile, content); err != nil {
		f.FUSEDevice = no(err)
	} else {
		f.FUSEDevice.OK = true
	}
	return f, nil
}

// readThrough mounts an image in dir with one file, the first bytes of
// device, and checks that want is what is read through it. With no device the
// file is empty.
func readThrough(dir, device string, want []byte) error {
	toc := &estargz.TOC{Entries: []estargz.Entry{{Name: "file", Type: estargz.Regular, Mode: 0o600, Size: int64(len(want))}}}
	toc.Digest, toc.Index.DataSize = digest.FromString("probe"), blockSize
	opts := MountOptions{Metadata: filepath.Join(dir, "metadata")}
	if device != "" {
		opts.Devices = []string{device}
	}
	var img bytes.Buffer
	if _, err := Build(&img, []*estargz.TOC{toc}, Options{}); err != nil {
		return err
	}
	if err := os.WriteFile(opts.Metadata, img.Bytes(), 0o600); err != nil {
		return err
	}
	mnt, err := openMount(opts)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	fd, err := unix.Openat(mnt, "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a file of the mount: %w", err)
	}
	defer unix.Close(fd)
	got := make([]byte, blockSize)
	n, err := unix.Read(fd, got)
	if err != nil {
		return fmt.Errorf("read a file of the mount: %w", err)
	}
	if !bytes.Equal(got[:n], want) {
		return blob.Errorf(blob.Corrupt, "read a file of the mount: other content than on the device")
	}
	return nil
}

// firstBlock reads the first block of a file.
func firstBlock(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, blockSize)
	if _, err := io.ReadFull(f, p); err != nil {
		return nil, fmt.Errorf("read the first %d bytes of %s: %w", len(p), path, err)
	}
	return p, nil
}
