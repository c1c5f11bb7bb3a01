package erofs

import (
	"encoding/binary"
	"hash/crc32"

	"skimmer/internal/estargz"
)

// The on-disk format, as far as it is written here; names and values are
// those of Linux' fs/erofs/erofs_fs.h. All numbers are little-endian.
const (
	blockSize = estargz.BlockSize
	blockBits = 12

	superMagic  = 0xe0f5e1e2
	superOffset = 1024
	superSize   = 128

	featureCompatChecksum    = 0x1
	featureCompatMtime       = 0x2
	featureIncompatChunked   = 0x4
	featureIncompatDeviceTab = 0x8

	deviceSlotSize = 128
	// deviceTagSize is the length of what a slot says about its device: the
	// TOC digest of the layer, for which a SHA-256 in hexadecimal just fits.
	deviceTagSize = 64
	// deviceTable is where the device table starts: right behind the super
	// block, on a slot boundary.
	deviceTable = superOffset + superSize

	// slotSize is the unit inodes are numbered in.
	slotSize       = 32
	inodeSize      = 64 // the extended form, the only one with its own mtime
	inodeExtended  = 1  // bit 0 of i_format; the layout is in bits 1 to 3
	layoutPlain    = 0
	layoutInline   = 2
	layoutChunks   = 4
	chunkIndexes   = 0x20 // in the chunk format: 8-byte indexes
	chunkIndexSize = 8
	maxChunkBits   = 31

	direntSize = 12

	xattrHeaderSize = 12
	xattrEntrySize  = 4
	maxSharedXattrs = 255
)

// fileType is what a directory entry says about its inode.
var fileType = [...]byte{
	estargz.Regular: 1, estargz.Dir: 2, estargz.Char: 3, estargz.Block: 4,
	estargz.Fifo: 5, estargz.Symlink: 7,
}

// modeType is the file type in an inode's mode.
var modeType = [...]uint16{
	estargz.Regular: 0o100000, estargz.Dir: 0o040000, estargz.Char: 0o020000,
	estargz.Block: 0o060000, estargz.Fifo: 0o010000, estargz.Symlink: 0o120000,
}

var le = binary.LittleEndian

func alignUp[T int | int64](n, to T) T { return (n + to - 1) &^ (to - 1) }

// rdev encodes a device number as Linux' new_encode_dev does.
func rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// checksum is the super block's checksum over the rest of its block: CRC32C
// without the final inversion, its own field taken as zero.
func checksum(firstBlock []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	c := crc32.Update(0, table, firstBlock[superOffset:superOffset+4])
	c = crc32.Update(c, table, make([]byte, 4))
	return ^crc32.Update(c, table, firstBlock[superOffset+8:])
}
