package swarm

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// What is viewed and what is read of one range is all of it, once, in order.
func TestView(t *testing.T) {
	content := blobtest.Bytes(1, 1<<20+777)
	w := newWorld(t)
	ref := w.origin.add(content)
	_, nodes := w.cluster(2, options{slots: 64})
	if err := nodes[0].swarm.Fetch(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	b, err := beyond{nodes[1].swarm}.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := blob.Range{Off: 1000, Len: ref.Size - 2000}
	rc, err := b.ReadRange(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	view := rc.(*reader)
	var got []byte
	for few := make([]byte, 5000); ; {
		n, err := view.Read(few)
		got = append(got, few[:n]...)
		if err == nil {
			var p []byte
			p, err = view.View()
			if len(p) == 0 && err == nil {
				t.Fatal("a view of nothing")
			}
			got = append(got, p...)
		}
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, content[r.Off:r.End()]) {
		t.Errorf("%d bytes, want the %d of %v", len(got), r.Len, r)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := view.View(); len(p) > 0 || !errors.Is(err, blob.Canceled) {
		t.Errorf("view after close: %d bytes, %v", len(p), err)
	}
}
