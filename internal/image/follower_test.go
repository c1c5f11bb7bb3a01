package image

import (
	"fmt"
	"testing"

	"skimmer/internal/estargz"
)

// What is fetched and not read is bounded; what is read makes room for more, and is
// looked into first.
func TestFollowerIsBounded(t *testing.T) {
	const size, files = maxStartBytes, 100
	toc := &estargz.TOC{}
	for i := range files {
		toc.Entries = append(toc.Entries, estargz.Entry{
			Name: fmt.Sprintf("lib/m%03d.so", i), Type: estargz.Regular, Size: size, DataOff: int64(i) * size,
		})
	}
	f := &follower{
		s:    &starter{names: newNames([]*estargz.TOC{toc}), asked: make(map[located]bool)},
		kick: make(chan struct{}, 1), found: make(map[located]*module),
	}
	for i := range files {
		f.insert(nil, []string{fmt.Sprintf("/lib/m%03d.so", i)})
	}
	begin := func() (names []string) {
		for {
			batch := f.next()
			if len(batch) == 0 {
				return names
			}
			for _, m := range batch {
				names = append(names, m.path)
			}
			f.done()
		}
	}
	const unread = (maxUnread + size - 1) / size
	first := begin()
	if len(first) != unread {
		t.Errorf("%d files of %d bytes are asked for before any is read, want %d", len(first), size, unread)
	}
	if more := begin(); len(more) > 0 {
		t.Errorf("%q are asked for, too", more)
	}
	// A read one gives back its place, and four of them make room for one more.
	last := fmt.Sprintf("/lib/m%03d.so", files-1)
	for _, name := range append(first[:4:4], last) {
		f.open(name)
	}
	f.look()
	if more := begin(); len(more) != 6 || more[0] != last {
		t.Errorf("%q are asked for after five were read, want six and %s first", more, last)
	}
	for range followAtOnce {
		f.coming++
	}
	f.open(first[5])
	f.look()
	if more := f.next(); more != nil {
		t.Errorf("%d are asked for while enough is under way", len(more))
	}
}

// A module that is named again, by one that the program reads earlier, is fetched earlier.
func TestFollowerOrder(t *testing.T) {
	toc := &estargz.TOC{}
	for _, name := range []string{"a.py", "b.py", "c.py", "d.py"} {
		toc.Entries = append(toc.Entries, estargz.Entry{Name: name, Type: estargz.Regular, Size: 1})
	}
	f := &follower{s: &starter{names: newNames([]*estargz.TOC{toc}), asked: make(map[located]bool)}, found: make(map[located]*module)}
	f.insert(nil, []string{"/a.py", "/b.py", "/c.py"})
	f.insert(f.known("/b.py").at, []string{"/d.py"})
	f.insert(f.known("/a.py").at, []string{"/c.py", "/none.py", "/d.py"})
	f.insert(f.known("/b.py").at, []string{"/a.py"})
	got := ""
	for _, m := range f.next() {
		got += m.path
	}
	if want := "/a.py/c.py/d.py/b.py"; got != want {
		t.Errorf("the order is %s, want %s", got, want)
	}
}
