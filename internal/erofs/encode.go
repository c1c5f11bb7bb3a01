package erofs

import (
	"skimmer/internal/estargz"
)

// Offsets of the areas behind the inodes.
func (p *plan) sharedStart() int64 { return alignUp(p.inodesEnd, blockSize) }
func (p *plan) blocksStart() int64 { return alignUp(p.sharedStart()+p.sharedLen, blockSize) }
func (p *plan) size() int64        { return p.blocksStart() + int64(p.blocks)*blockSize }

func (p *plan) info() Info {
	info := Info{Size: p.size(), Inodes: len(p.order), SkippedXattrs: p.xattrs.skipped}
	for layer, device := range p.devices {
		if device != 0 {
			info.Devices = append(info.Devices, layer)
			info.TOCs = append(info.TOCs, p.layers[layer].Digest)
		}
	}
	return info
}

// encode returns the image.
func (p *plan) encode(uuid [16]byte) []byte {
	img := make([]byte, p.size())
	for layer, device := range p.devices {
		if device != 0 {
			p.putDevice(img[deviceTable+int(device-1)*deviceSlotSize:], layer)
		}
	}
	for i, id := range p.order {
		p.putInode(img, id, i+1)
	}
	p.putDirs(img)
	p.xattrs.putShared(img[p.sharedStart():])
	p.putSuper(img, uuid)
	return img
}

func (p *plan) putSuper(img []byte, uuid [16]byte) {
	b := img[superOffset:]
	incompat := uint32(featureIncompatChunked)
	if p.numDevices > 0 {
		incompat |= featureIncompatDeviceTab
	}
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], featureCompatChecksum|featureCompatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(p.at(rootNode).place.pos/slotSize))
	le.PutUint64(b[16:], uint64(len(p.order)))
	// The build time at 24 stays 0: it is only of use to compact inodes.
	le.PutUint32(b[36:], uint32(len(img)/blockSize))
	// Inode numbers count from the start of the image: meta_blkaddr is 0.
	le.PutUint32(b[44:], uint32(p.sharedStart()/blockSize))
	copy(b[48:64], uuid[:])
	copy(b[64:80], "skimmer")
	le.PutUint32(b[80:], incompat)
	le.PutUint16(b[86:], uint16(p.numDevices))
	le.PutUint16(b[88:], deviceTable/deviceSlotSize)
	le.PutUint32(b[4:], checksum(img[:blockSize]))
}

func (p *plan) putDevice(b []byte, layer int) {
	copy(b[:deviceTagSize], p.layers[layer].Digest.Encoded())
	le.PutUint32(b[deviceTagSize:], uint32(min(alignUp(p.layers[layer].Index.DataSize, blockSize), MaxDeviceSize)/blockSize))
}

func (p *plan) putInode(img []byte, id inodeID, number int) {
	ino := &p.inodes[id]
	e, at := ino.entry, &ino.place
	b := img[at.pos:]
	mode, layout, union := modeType[e.Type]|uint16(e.Mode&0o7777), uint16(layoutPlain), uint32(0)
	if at.body > 0 {
		le.PutUint16(b[2:], uint16((at.body-xattrHeaderSize)/4+1))
		p.xattrs.put(b[inodeSize:], part(p.xattrs.refs, at.xattrs))
	}
	switch e.Type {
	case estargz.Regular:
		if at.size > 0 {
			layout = layoutChunks
			union = p.putChunks(b[alignUp(inodeSize+at.body, chunkIndexSize):], ino)
		}
	case estargz.Dir, estargz.Symlink:
		if at.inline {
			layout = layoutInline
		}
		if at.size > blockSize || !at.inline {
			union = uint32(p.blocksStart()/blockSize) + at.block
		}
	case estargz.Char, estargz.Block:
		union = rdev(e.DevMajor, e.DevMinor)
	}
	if e.Type == estargz.Symlink {
		mode = modeType[e.Type] | 0o777 // Linux gives symlinks no other
		content := img[at.pos+inodeSize+at.body:]
		if !at.inline {
			content = img[p.blocksStart()+int64(at.block)*blockSize:]
		}
		copy(content, e.Link)
	}
	le.PutUint16(b[0:], inodeExtended|layout<<1)
	le.PutUint16(b[4:], mode)
	le.PutUint64(b[8:], uint64(at.size))
	le.PutUint32(b[16:], union)
	le.PutUint32(b[20:], uint32(number))
	le.PutUint32(b[24:], e.UID)
	le.PutUint32(b[28:], e.GID)
	le.PutUint64(b[32:], uint64(e.MTime))
	le.PutUint32(b[40:], e.MTimeNsec)
	le.PutUint32(b[44:], ino.nlink)
}

// putChunks writes the chunk indexes of a file and returns its chunk format.
func (p *plan) putChunks(b []byte, ino *inode) uint32 {
	chunkBits, n := chunks(ino.place.size)
	for i := range n {
		idx := b[i*chunkIndexSize:]
		le.PutUint16(idx[2:], p.devices[ino.layer])
		le.PutUint32(idx[4:], uint32(ino.entry.DataOff/blockSize+i<<chunkBits))
	}
	return uint32(chunkBits) | chunkIndexes
}

// putDirs writes the content of all directories.
func (p *plan) putDirs(img []byte) {
	dirs := []nodeID{rootNode}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		p.putDir(img, dir)
		for _, k := range part(p.kids, p.at(dir).place.kids) {
			if p.isDir(k) {
				dirs = append(dirs, k)
			}
		}
	}
}

func (p *plan) putDir(img []byte, dir nodeID) {
	at := &p.at(dir).place
	pos := p.blocksStart() + int64(at.block)*blockSize
	left := at.size
	for rest := p.direntsOf(dir); len(rest) > 0; pos += blockSize {
		n, used := fill(rest)
		if left < blockSize && at.inline {
			pos = at.pos + inodeSize + at.body
		}
		p.putDirents(img[pos:pos+int64(used)], rest[:n])
		rest = rest[n:]
		left -= blockSize
	}
}

// putDirents writes one block of a directory: the entries, then their names.
func (p *plan) putDirents(b []byte, all []dirent) {
	nameOff := len(all) * direntSize
	for i, d := range all {
		ino := &p.inodes[d.inode]
		e := b[i*direntSize:]
		le.PutUint64(e, uint64(ino.place.pos/slotSize))
		le.PutUint16(e[8:], uint16(nameOff))
		e[10] = fileType[ino.entry.Type]
		nameOff += copy(b[nameOff:], d.name)
	}
}
