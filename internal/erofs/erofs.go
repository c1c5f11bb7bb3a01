// Package erofs makes image layers mountable before their data is there. From
// the tables of contents of an image's layers it builds a file system image
// that holds every inode, directory and extended attribute of the merged
// layers but no file data: that stays in one extra device per layer, the
// layer's flat data. And it mounts such images.
//
// The on-disk format is that of Linux' fs/erofs/erofs_fs.h; the kernel's
// Documentation/filesystems/erofs.rst describes it. What is written here needs
// no feature newer than Linux 5.16 (chunk-based files on several devices); a
// mount straight from files, which is what Mount makes, needs Linux 6.12.
package erofs

import (
	"crypto/sha256"
	"io"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// Limits of what can be expressed. A layer beyond one of them makes Build
// fail with an Invalid error; it can still be unpacked the ordinary way.
const (
	// MaxName is the longest file name, in bytes. Paths have no limit.
	MaxName = 255
	// MaxSymlink is the longest symlink target, in bytes (Linux' PATH_MAX
	// without the final zero).
	MaxSymlink = 4095
	// MaxXattrValue is the largest value of an extended attribute, in bytes:
	// one less than Linux' own limit, because the format counts in 16 bits.
	MaxXattrValue = 1<<16 - 1
	// MaxXattrBody is the most extended attributes one inode can carry, in
	// bytes: names without their namespace and values, each pair with 4 bytes
	// of header and rounded up to 4. Attributes other inodes share (up to 255)
	// count 4 bytes each.
	MaxXattrBody = 4 * (1<<16 - 2)
	// MaxDevices is the most layers with data one image can refer to.
	MaxDevices = 8192
	// MaxDeviceSize is the end, in bytes, of what can be addressed in one
	// layer's flat data: 2^32 - 1 blocks, just under 16 TiB.
	MaxDeviceSize = (1<<32 - 1) * int64(estargz.BlockSize)
	// MaxEntries is the most directory entries merging may make, those that
	// an upper layer takes away again included, so that layers from a stranger
	// cannot exhaust the machine.
	MaxEntries = 8 << 20
)

// Options change what Build makes. The zero value merges all layers into one
// plain file system.
type Options struct {
	// KeepWhiteouts makes the image of a single layer for use as one of
	// several lower directories of an overlay mount: what it deletes from the
	// layers below becomes 0/0 character devices, and directories that hide
	// what is below get the attribute trusted.overlay.opaque=y. A parent
	// directory the layer does not list is made up as 0755 root:root and
	// covers the attributes of the one below. overlayfs ignores the attribute
	// on the root of a layer.
	KeepWhiteouts bool
}

// Info describes a file system image.
type Info struct {
	// Size is the image's length in bytes, a multiple of estargz.BlockSize.
	Size int64
	// Inodes is the number of inodes in the image.
	Inodes int
	// Devices maps the devices a mount of the image needs, in order, to the
	// layers whose flat data they must hold: Devices[0] is the index, in the
	// layers given to Build, of the first device. A layer none of whose data
	// can be reached in the merged tree has no device.
	Devices []int
	// TOCs holds the digest of the TOC of each device's layer, in the order of
	// Devices; it is written into the image.
	TOCs []digest.Digest
	// SkippedXattrs counts the attributes that were left out because Linux
	// could not show them here: names outside of user., trusted., security.,
	// lustre. and the POSIX ACLs, user. attributes on anything but files and
	// directories, and those by which overlayfs itself is steered.
	SkippedXattrs int
}

// Build merges layers, the lowest first, and writes a file system image of
// the result to w, in one Write. The layers' entries must not change
// meanwhile.
//
// Merging does what unpacking the layers' tars one after another would do,
// whiteouts (OCI image spec, layer.md) included: a later entry replaces an
// earlier one of the same name, except that a directory over a directory
// keeps the children; parents nobody listed are 0755 root:root with time 0;
// symlinks in the parents of an entry's name are followed inside the image.
//
// The same layers and options always make the same bytes. Errors: Invalid,
// naming the layer and the entry, where a layer is contradictory (a hard link
// to nothing) or exceeds the limits above; otherwise those of w.
func Build(w io.Writer, layers []*estargz.TOC, opts Options) (Info, error) {
	if opts.KeepWhiteouts && len(layers) != 1 {
		return Info{}, blob.Errorf(blob.Invalid, "build file system: keeping whiteouts takes one layer, not %d", len(layers))
	}
	t, err := merge(layers, opts.KeepWhiteouts)
	if err != nil {
		return Info{}, err
	}
	p, err := newPlan(t, layers)
	if err != nil {
		return Info{}, err
	}
	if _, err := w.Write(p.encode(uuid(layers, opts))); err != nil {
		return Info{}, blob.Errorf(blob.KindOf(err), "write file system image: %w", err)
	}
	return p.info(), nil
}

// writerVersion goes into the volume's UUID; it changes when the same layers
// would make other bytes than before.
const writerVersion = "skimmer erofs 1\n"

// uuid derives the volume's UUID (RFC 9562, version 8) from what it is built
// of.
func uuid(layers []*estargz.TOC, opts Options) [16]byte {
	h := sha256.New()
	io.WriteString(h, writerVersion)
	if opts.KeepWhiteouts {
		io.WriteString(h, "whiteouts\n")
	}
	for _, l := range layers {
		io.WriteString(h, l.Digest.String()+"\n")
	}
	id := [16]byte(h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
