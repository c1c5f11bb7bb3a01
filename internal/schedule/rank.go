package schedule

import (
	"cmp"
	"hash/fnv"
	"io"
	"slices"
)

// Rank orders names by how near they are to key, nearest first: rendezvous
// hashing. Everybody who knows the same names gets the same order, whatever
// order they know them in. A name that joins or leaves moves only those keys
// for which it was or becomes the first. Peers choose among schedulers with
// it, and the scheduler among seeds. The result is new; names is not changed.
func Rank(key string, names []string) []string {
	type ranked struct {
		name   string
		weight uint64
	}
	all := make([]ranked, len(names))
	for i, name := range names {
		all[i] = ranked{name, weight(key, name)}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.name, b.name))
	})
	out := make([]string, len(all))
	for i, r := range all {
		out[i] = r.name
	}
	return out
}

// weight is a number that key and name determine and that looks like chance.
// FNV alone leaves names that differ in the last letter close to each other,
// so its bits are mixed once more (the finisher of SplitMix64).
func weight(key, name string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, key) // hash.Hash never fails
	_, _ = h.Write([]byte{0})
	_, _ = io.WriteString(h, name)
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
