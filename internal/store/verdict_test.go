package store

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob/blobtest"
)

// TestVerdictDoesNotWaitForTheDisk reads one blob to its last byte after the
// other while the disk does not finish a single sync: nobody waits for the
// durability of a blob, neither its own reader nor those of others.
func TestVerdictDoesNotWaitForTheDisk(t *testing.T) {
	var mu sync.Mutex
	held := make(map[string]bool) // mu guards: folders of blobs that are being synced
	syncing := make(chan string, 16)
	released := make(chan struct{})
	s := openStore(t, Config{MinFree: -1, FS: FS{Before: func(op Op) error {
		if op.Name == OpSync && filepath.Base(op.Path) == dataName {
			dir := filepath.Dir(op.Path)
			mu.Lock()
			first := !held[dir]
			held[dir] = true
			mu.Unlock()
			if first {
				syncing <- dir
			}
			<-released
		}
		return nil
	}}})
	t.Cleanup(func() { close(released) }) // before the store is closed
	// One more than may be hashed at a time.
	for i := range cap(s.hashes) + 1 {
		content := blobtest.Bytes(uint64(i), int(mib))
		m, refs := memory([][]byte{content})
		mustRead(t, openBlob(t, s.Through(m), refs[0]), whole(content), content)
		awaitSync(t.Context(), t, syncing, s, refs[0].Digest)
	}
}

// awaitSync waits until the disk was asked to make the data of blob d durable.
func awaitSync(ctx context.Context, t *testing.T, syncing <-chan string, s *Store, d digest.Digest) {
	t.Helper()
	for want := blobDir(s.root, d); ; {
		select {
		case dir := <-syncing:
			if dir == want {
				return
			}
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}
