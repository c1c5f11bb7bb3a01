package erofs

import (
	"math/bits"
	"slices"
	"strings"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// place is where the plan puts an inode. Offsets are in bytes.
type place struct {
	// pos is the inode's offset in the image, a multiple of slotSize; 0 until
	// it is planned. Divided by slotSize it is the inode's number.
	pos int64
	// size is the length of the inode's content, body that of its attributes.
	size, body int64
	// block is the first of the content's own blocks, counted from the start
	// of the block area.
	block uint32
	// inline says that the content's last, partial block is behind the inode.
	inline bool
	// kids and xattrs are parts of plan.kids and plan.xattrs.refs.
	kids, xattrs span
}

type span struct{ off, n int32 }

func part[T any](s []T, p span) []T { return s[p.off : p.off+p.n] }

// plan says where everything goes. The image is, in order:
//
//	super block, device table
//	inodes, each followed by its attributes and, depending on its layout, its
//	chunk indexes or the tail of its content; the root first
//	attributes that several inodes share, from a block boundary on
//	blocks of directories, and of symlinks too long for their inode
type plan struct {
	*tree
	xattrs xattrs
	// order holds the inodes as they lie in the image: a directory, its
	// children that are none, then its subdirectories the same way. So what
	// is looked up together is read together.
	order []inodeID
	kids  []nodeID // directory by directory, sorted by name
	// devices maps a layer to its device number, from 1; 0 for none.
	devices    []uint16
	numDevices int
	layers     []*estargz.TOC
	inodesEnd  int64
	sharedLen  int64
	blocks     uint32 // in the block area

	dirents []dirent // scratch
}

func newPlan(t *tree, layers []*estargz.TOC) (*plan, error) {
	p := &plan{tree: t, layers: layers, devices: make([]uint16, len(layers))}
	p.order = make([]inodeID, 0, len(t.inodes))
	p.kids = make([]nodeID, 0, len(t.nodes))
	if err := p.collect(); err != nil {
		return nil, err
	}
	err := p.numberDevices()
	if err != nil {
		return nil, err
	}
	p.sharedLen = p.xattrs.share()
	pos := int64(deviceTable + p.numDevices*deviceSlotSize)
	for _, id := range p.order {
		if pos, err = p.put(&t.inodes[id], pos); err != nil {
			return nil, p.errorf(id, err)
		}
	}
	p.inodesEnd = pos
	return p, nil
}

func (p *plan) errorf(id inodeID, err error) error {
	ino := &p.inodes[id]
	return blob.Errorf(blob.Invalid, "lay out layer %d (TOC %s): entry %q: %w", ino.layer, p.layers[ino.layer].Digest, ino.entry.Name, err)
}

// collect walks the tree and notes order, children, attributes, and which
// layers' data is used.
func (p *plan) collect() error {
	add := func(id inodeID) error {
		ino := &p.inodes[id]
		if ino.place.pos != 0 {
			return nil // a further name of the same inode
		}
		ino.place.pos = 1 // seen; put says where
		p.order = append(p.order, id)
		switch ino.entry.Type {
		case estargz.Regular:
			ino.place.size = ino.entry.Size
			if ino.entry.Size > 0 {
				p.devices[ino.layer] = 1
			}
		case estargz.Symlink:
			ino.place.size = int64(len(ino.entry.Link))
		}
		if len(ino.entry.Xattrs) > 0 || ino.opaque {
			first, n, err := p.xattrs.add(ino)
			if err != nil {
				return p.errorf(id, err)
			}
			ino.place.xattrs = span{first, n}
		}
		return nil
	}
	if err := add(p.nodes[rootNode].inode); err != nil {
		return err
	}
	dirs := []nodeID{rootNode}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if dir != rootNode {
			if err := add(p.nodes[dir].inode); err != nil {
				return err
			}
		}
		kids := p.sortKids(dir)
		p.at(dir).nlink = 2
		for _, k := range kids {
			if p.isDir(k) {
				p.at(dir).nlink++
			} else if err := add(p.nodes[k].inode); err != nil {
				return err
			}
		}
		for _, k := range slices.Backward(kids) {
			if p.isDir(k) {
				dirs = append(dirs, k)
			}
		}
	}
	return nil
}

// sortKids notes the children of dir by name, and how long its content is.
func (p *plan) sortKids(dir nodeID) []nodeID {
	all := append(p.dirents[:0], p.dots(dir)...)
	first := len(all)
	for k := p.nodes[dir].first; k != 0; k = p.nodes[k].next {
		all = append(all, dirent{p.nodes[k].name, p.nodes[k].inode, k})
	}
	p.dirents = all
	// Last added comes first, and most layers are written in order.
	slices.Reverse(all[first:])
	byName := func(a, b dirent) int { return strings.Compare(a.name, b.name) }
	if !slices.IsSortedFunc(all, byName) {
		slices.SortFunc(all, byName)
	}
	off := len(p.kids)
	for i := range all {
		if all[i].node != 0 {
			p.kids = append(p.kids, all[i].node)
		}
	}
	at := &p.at(dir).place
	at.kids = span{int32(off), int32(len(p.kids) - off)}
	for rest := all; len(rest) > 0; {
		n, used := fill(rest)
		rest = rest[n:]
		at.size = alignUp(at.size, blockSize) + int64(used)
	}
	return p.kids[off:]
}

// numberDevices gives every layer whose data is used the next device number.
func (p *plan) numberDevices() error {
	for i := range p.devices {
		if p.devices[i] != 0 {
			p.numDevices++
			p.devices[i] = uint16(p.numDevices)
		}
	}
	if p.numDevices > MaxDevices {
		return blob.Errorf(blob.Invalid, "lay out file system: %d layers with data, at most %d are possible", p.numDevices, MaxDevices)
	}
	return nil
}

// put places ino at or after pos and returns where it ends, both multiples of
// slotSize.
func (p *plan) put(ino *inode, pos int64) (end int64, err error) {
	at := &ino.place
	if at.body, err = p.xattrs.body(part(p.xattrs.refs, at.xattrs)); err != nil {
		return 0, err
	}
	head, tail := inodeSize+at.body, int64(0)
	switch ino.entry.Type {
	case estargz.Regular:
		if at.size > 0 {
			_, n := chunks(at.size)
			head = alignUp(head, chunkIndexSize) + n*chunkIndexSize
		}
	case estargz.Dir, estargz.Symlink:
		tail = at.size % blockSize
		blocks := at.size / blockSize
		// A tail must lie in one block, so placing it may leave a gap as long
		// as it. Past half a block, a block of its own costs less.
		if at.inline = tail > 0 && tail <= blockSize/2; !at.inline && tail > 0 {
			tail = 0
			blocks++
		}
		at.block = p.blocks
		p.blocks += uint32(blocks)
	}
	// An inode that lies in two blocks is legal but costs every reader a copy.
	for pos%blockSize+inodeSize > blockSize || (pos+head)%blockSize+tail > blockSize {
		pos += slotSize
	}
	at.pos = pos
	return alignUp(pos+head+tail, slotSize), nil
}

// chunks returns the chunk size, as a power of two of blocks, and the number
// of chunks for a file of the given size: files are contiguous in their
// device, so one chunk as large as the file would do for all but the hugest.
func chunks(size int64) (chunkBits int, n int64) {
	blocks := uint64(size-1) >> blockBits // minus one
	chunkBits = min(bits.Len64(blocks), maxChunkBits)
	return chunkBits, int64(blocks>>chunkBits) + 1
}

// dirent is a directory entry before it is written.
type dirent struct {
	name  string
	inode inodeID
	node  nodeID // 0 for "." and ".."
}

// dots returns the entries "." and ".." of dir.
func (p *plan) dots(dir nodeID) []dirent {
	return []dirent{
		{name: ".", inode: p.nodes[dir].inode},
		{name: "..", inode: p.nodes[p.nodes[dir].parent].inode},
	}
}

// direntsOf returns the entries of dir, "." and ".." among them, sorted. The
// slice is good until the next call.
func (p *plan) direntsOf(dir nodeID) []dirent {
	all := p.dirents[:0]
	dots := p.dots(dir)
	for _, k := range part(p.kids, p.at(dir).place.kids) {
		name := p.nodes[k].name
		for len(dots) > 0 && dots[0].name < name {
			all = append(all, dots[0])
			dots = dots[1:]
		}
		all = append(all, dirent{name, p.nodes[k].inode, k})
	}
	all = append(all, dots...)
	p.dirents = all
	return all
}

// fill returns how many of the entries go into one block and how much of it
// they use.
func fill(all []dirent) (n, used int) {
	for i := range all {
		size := direntSize + len(all[i].name)
		if used+size > blockSize {
			break
		}
		used += size
		n++
	}
	return n, used
}
