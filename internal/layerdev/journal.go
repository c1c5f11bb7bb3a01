package layerdev

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The record of a layer's present chunks is a file that begins with a header
//
//	magic "SKIMCHNK" | data size (8) | chunks (4) | checksum of the index (4) |
//	CRC32C of the above (4) | zeros (4)
//
// and goes on with entries of 16 bytes, little endian,
//
//	kind (4) | a, b: operands, 8 bytes together | CRC32C (4)
//
// where each CRC goes on from the one before, beginning with the header's, so
// that an entry counts only if everything before it is whole. The first that
// does not ends the record; what is behind it is cut off. The kinds are
//
//	boot  what follows was written under the boot of the machine named by a, b
//	run   chunks a to a+b-1 were verified and written
//	sync  the data of the first (a, b) entries of the record is durable
const (
	presentMagic  = "SKIMCHNK"
	presentHeader = 32
	entrySize     = 16

	entryBoot = 1
	entryRun  = 2
	entrySync = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the first part of the record.
type header struct {
	size     int64  // of the data, in bytes
	chunks   uint32 // of the index
	indexSum uint32 // CRC32C that ends the stored index
}

func (h header) bytes() []byte {
	p := make([]byte, 0, presentHeader)
	p = append(p, presentMagic...)
	p = binary.LittleEndian.AppendUint64(p, uint64(h.size))
	p = binary.LittleEndian.AppendUint32(p, h.chunks)
	p = binary.LittleEndian.AppendUint32(p, h.indexSum)
	p = binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
	return append(p, 0, 0, 0, 0)
}

// parseHeader returns the header p begins with, or false where it is damaged.
func parseHeader(p []byte) (header, bool) {
	if len(p) < presentHeader || string(p[:8]) != presentMagic ||
		crc32.Checksum(p[:24], castagnoli) != binary.LittleEndian.Uint32(p[24:]) {
		return header{}, false
	}
	h := header{
		size:     int64(binary.LittleEndian.Uint64(p[8:])),
		chunks:   binary.LittleEndian.Uint32(p[16:]),
		indexSum: binary.LittleEndian.Uint32(p[20:]),
	}
	return h, h.size >= 0
}

// extent is a run of chunks.
type extent struct{ first, count uint32 }

// replay says which chunks the record p, header included, makes present on a
// machine whose boot is called boot; and where and with which checksum the
// whole part of it ends, and under which boot that was written.
func replay(p []byte, h header, boot uint64) (present []extent, tail tail) {
	type numbered struct {
		extent
		n uint64 // the entry's number
	}
	var loose []numbered // not known to be durable
	tail.end = presentHeader
	tail.sum = binary.LittleEndian.Uint32(p[24:])
	for len(p) >= int(tail.end)+entrySize {
		e := p[tail.end:][:entrySize]
		sum := crc32.Update(tail.sum, castagnoli, e[:12])
		if sum != binary.LittleEndian.Uint32(e[12:]) {
			break
		}
		number := uint64(tail.end-presentHeader) / entrySize
		tail.end, tail.sum = tail.end+entrySize, sum
		operand := binary.LittleEndian.Uint64(e[4:])
		switch binary.LittleEndian.Uint32(e) {
		case entryBoot:
			if tail.boot != operand {
				loose = nil // The machine ended; nobody knows what got lost.
			}
			tail.boot = operand
		case entryRun:
			x := extent{uint32(operand), uint32(operand >> 32)}
			if uint64(x.first)+uint64(x.count) <= uint64(h.chunks) {
				loose = append(loose, numbered{x, number})
			}
		case entrySync:
			i := 0
			for ; i < len(loose) && loose[i].n < operand; i++ {
				present = append(present, loose[i].extent)
			}
			loose = loose[i:]
		}
	}
	if boot != 0 && tail.boot == boot {
		for _, x := range loose {
			present = append(present, x.extent)
		}
	}
	return present, tail
}

// tail is where a record goes on.
type tail struct {
	end  int64
	sum  uint32
	boot uint64 // of the last boot entry; 0 where there is none
}

// journal appends to a record of present chunks.
type journal struct {
	f    *os.File // constant
	boot uint64   // constant

	// mu guards the rest.
	mu      sync.Mutex
	tail    tail
	pending []byte // entries that are not in the file because writing failed
}

// add records that the chunks of runs were written. Where the record cannot
// be written it is kept for the next attempt: the chunks are present to this
// process, and will be fetched again by the next.
func (j *journal) add(runs []extent) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.tail.boot != j.boot {
		j.entry(entryBoot, j.boot)
		j.tail.boot = j.boot
	}
	for _, r := range runs {
		j.entry(entryRun, uint64(r.first)|uint64(r.count)<<32)
	}
	return j.write()
}

// entry appends an entry to pending. j.mu is held.
func (j *journal) entry(kind uint32, operand uint64) {
	start := len(j.pending)
	j.pending = binary.LittleEndian.AppendUint32(j.pending, kind)
	j.pending = binary.LittleEndian.AppendUint64(j.pending, operand)
	j.tail.sum = crc32.Update(j.tail.sum, castagnoli, j.pending[start:])
	j.pending = binary.LittleEndian.AppendUint32(j.pending, j.tail.sum)
}

// write moves pending to the file. j.mu is held.
func (j *journal) write() error {
	if len(j.pending) == 0 {
		return nil
	}
	if _, err := j.f.WriteAt(j.pending, j.tail.end); err != nil {
		return fmt.Errorf("record present chunks: %w", err)
	}
	j.tail.end += int64(len(j.pending))
	j.pending = j.pending[:0]
	return nil
}

// checkpoint makes everything added before it began survive the machine.
func (j *journal) checkpoint(data *os.File) error {
	j.mu.Lock()
	err := j.write()
	entries := uint64(j.tail.end-presentHeader) / entrySize
	j.mu.Unlock()
	if err != nil {
		return err
	}
	// Chunks that are added while the data is being synced are not covered.
	if err := unix.Fdatasync(int(data.Fd())); err != nil {
		return fmt.Errorf("sync layer data: %w", err)
	}
	j.mu.Lock()
	j.entry(entrySync, entries)
	err = j.write()
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("sync record of present chunks: %w", err)
	}
	return nil
}

// bootID names the current boot of the machine. Where the kernel does not
// tell, it is 0, which no record is believed to have been written under.
var bootID = sync.OnceValue(func() uint64 {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) == 0 {
		return 0
	}
	h := fnv.New64a()
	h.Write(id)
	return h.Sum64()
})
