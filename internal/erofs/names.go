package erofs

import (
	"hash/maphash"
	"math/bits"
)

// names finds a child by its parent and name. It is an open hash table with
// linear probing that holds no names itself but the number of the node that has
// one, which takes a fifth of the memory of a map and is never scanned for
// pointers. The hash is seeded, so that no layer can be made to fill it badly.
type names struct {
	seed maphash.Seed
	// slots hold the hash of a child in the upper and its node in the lower 32
	// bits; 0 is free. A child is in the first slot that was free from the one on
	// which the upper bits of its hash name.
	slots []uint64
	shift int // what of a hash is not the number of a slot
	used  int
}

// newNames returns a table with room for n children.
func newNames(n int) names {
	t := names{seed: maphash.MakeSeed()}
	t.resize(max(4, bits.Len(uint(n+n/3))))
	return t
}

func (t *names) resize(slotBits int) {
	t.slots = make([]uint64, 1<<slotBits)
	t.shift = 32 - slotBits
}

func (t *names) hash(parent nodeID, name string) uint32 {
	// The factor tells apart what many directories have, such as __init__.py.
	return uint32((maphash.String(t.seed, name) ^ uint64(parent)*0x9e3779b97f4a7c15) >> 32)
}

// add notes that the child with the hash is n.
func (t *names) add(hash uint32, n nodeID) {
	if t.used >= len(t.slots)/4*3 {
		old := t.slots
		t.resize(bits.Len(uint(len(old))))
		for _, s := range old {
			if s != 0 {
				t.place(s)
			}
		}
	}
	t.used++
	t.place(uint64(hash)<<32 | uint64(n))
}

func (t *names) place(s uint64) {
	i := int(uint32(s>>32) >> t.shift)
	for t.slots[i] != 0 {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = s
}

// remove forgets n, whose hash that is. What stands behind it moves up, where
// that brings it closer to its own slot.
func (t *names) remove(hash uint32, n nodeID) {
	mask := len(t.slots) - 1
	i := int(hash >> t.shift)
	for t.slots[i] != uint64(hash)<<32|uint64(n) {
		if t.slots[i] == 0 {
			return
		}
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; t.slots[j] != 0; j = (j + 1) & mask {
		home := int(uint32(t.slots[j]>>32) >> t.shift)
		if (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = 0
	t.used--
}

// lookup returns the child of parent with the given name, or 0.
func (t *tree) lookup(parent nodeID, name string) nodeID {
	return t.lookupHash(t.names.hash(parent, name), parent, name)
}

// lookupHash is lookup for who knows the hash.
func (t *tree) lookupHash(hash uint32, parent nodeID, name string) nodeID {
	slots := t.names.slots
	for i := int(hash >> t.names.shift); ; i = (i + 1) & (len(slots) - 1) {
		switch s := slots[i]; {
		case s == 0:
			return 0
		case uint32(s>>32) == hash:
			if n := &t.nodes[nodeID(s)]; n.parent == parent && n.name == name {
				return nodeID(s)
			}
		}
	}
}
