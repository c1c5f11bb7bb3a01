package swarm

import (
	"fmt"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// TestSeveralSchedulers shares blobs among three schedulers. One that dies
// moves its blobs and no others, and takes them back when it returns; at all
// times a node is served by its neighbour.
func TestSeveralSchedulers(t *testing.T) {
	w := newWorld(t)
	var all []*service
	for i := range 3 {
		s := w.service(fmt.Sprint("scheduler", i))
		s.start()
		all = append(all, s)
	}
	a, b := w.node("a", options{}), w.node("b", options{})
	for _, s := range all {
		s.join(a)
		s.join(b)
	}
	const blobs = 24
	var refs []blob.Ref
	var contents [][]byte
	for i := range blobs {
		contents = append(contents, blobtest.Bytes(uint64(100+i), 200_000))
		refs = append(refs, w.origin.add(contents[i]))
		a.mustRead(refs[i], contents[i], blob.Range{Len: 200_000})
	}
	owners := func() (of [blobs]string) {
		for i, ref := range refs {
			l := b.swarm.ownerOf(ref.Digest)
			if l == nil {
				t.Fatal("a blob has no scheduler")
			}
			of[i] = l.name
		}
		return of
	}
	before := owners()
	share := map[string]int{}
	for _, name := range before {
		share[name]++
	}
	if len(share) != 3 {
		t.Fatalf("the schedulers have %v blobs", share)
	}
	all[1].kill()
	for i, name := range owners() {
		if moved := name != before[i]; moved != (before[i] == all[1].name) {
			t.Errorf("blob %d went from %s to %s when %s died", i, before[i], name, all[1].name)
		}
	}
	for i, ref := range refs[:blobs/2] {
		eventually(t, "a has told the scheduler that it has the blob", func() bool {
			for _, s := range all {
				if s.name == a.swarm.ownerOf(ref.Digest).name {
					return s.holders(ref) > 0
				}
			}
			return false
		})
		b.mustRead(ref, contents[i], blob.Range{Len: 200_000})
	}
	all[1].start()
	eventually(t, "all is as it was", func() bool { return owners() == before })
	for i, ref := range refs[blobs/2:] {
		eventually(t, "a has told the scheduler that it has the blob", func() bool {
			for _, s := range all {
				if s.name == before[blobs/2+i] {
					return s.holders(ref) > 0
				}
			}
			return false
		})
		b.mustRead(ref, contents[blobs/2+i], blob.Range{Len: 200_000})
	}
	if n := b.swarm.Stats().OriginBytes; n != 0 {
		t.Errorf("b read %d bytes from the origin", n)
	}
}
