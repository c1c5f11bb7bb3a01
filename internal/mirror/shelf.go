package mirror

import (
	"bytes"
	"cmp"
	"container/list"
	_ "crypto/sha512" // digests are computed by name
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/origin"
)

// manifest is a manifest or index.
type manifest struct {
	digest    digest.Digest
	mediaType string // empty if nobody says
	data      []byte
}

// maxKept is how many bytes of manifests are kept.
const maxKept = 128 << 20

// shelf keeps manifests in a folder: a file for each, named by its digest,
// with its type in the first line. What is read is held against the digest, so
// a file can be anything after a crash. Of those that are too many, the one
// that was put there longest ago goes. Its methods are safe for concurrent use.
type shelf struct {
	dir string // constant

	mu    sync.Mutex // guards the rest
	files map[digest.Digest]*list.Element
	order *list.List // of stored, the newest first
	bytes int64
}

type stored struct {
	digest digest.Digest
	bytes  int64
}

// openShelf opens the manifests in a folder, which is made if need be.
func openShelf(dir string) (*shelf, error) {
	if dir == "" {
		return nil, fmt.Errorf("open the mirror's manifests: no folder is named")
	}
	s := &shelf{dir: dir, files: make(map[digest.Digest]*list.Element), order: list.New()}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the mirror's manifests: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open the mirror's manifests: %w", err)
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return cmp.Compare(a.ModTime().UnixNano(), b.ModTime().UnixNano()) })
	for _, info := range infos {
		d := digest.Digest(strings.Replace(info.Name(), "-", ":", 1))
		if d.Validate() != nil {
			_ = os.Remove(filepath.Join(dir, info.Name())) // a file that was not finished
			continue
		}
		s.note(d, info.Size())
	}
	return s, nil
}

// path returns the file of a manifest, whose digest is valid.
func (s *shelf) path(d digest.Digest) string {
	return filepath.Join(s.dir, strings.Replace(d.String(), ":", "-", 1))
}

// note adds a file to what is known, and removes what is then too much.
func (s *shelf) note(d digest.Digest, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(d)
	s.files[d] = s.order.PushFront(stored{d, bytes})
	s.bytes += bytes
	for s.bytes > maxKept && s.order.Len() > 1 {
		oldest := s.order.Back().Value.(stored).digest
		s.forget(oldest)
		_ = os.Remove(s.path(oldest)) // found again, and removed, when the folder is opened
	}
}

// forget takes a file out of what is known. Caller holds mu.
func (s *shelf) forget(d digest.Digest) {
	if e, ok := s.files[d]; ok {
		s.bytes -= s.order.Remove(e).(stored).bytes
		delete(s.files, d)
	}
}

// get returns a manifest that is kept. One that is damaged is not.
func (s *shelf) get(d digest.Digest) (manifest, bool) {
	s.mu.Lock()
	_, ok := s.files[d]
	s.mu.Unlock()
	if !ok {
		return manifest{}, false
	}
	raw, err := os.ReadFile(s.path(d))
	mediaType, data, _ := bytes.Cut(raw, []byte("\n"))
	m := manifest{d, string(mediaType), data}
	if err != nil || d.Algorithm().FromBytes(data) != d || !m.typed() {
		s.mu.Lock()
		s.forget(d)
		s.mu.Unlock()
		return manifest{}, false
	}
	return m, true
}

// put keeps a manifest.
func (s *shelf) put(m manifest) error {
	s.mu.Lock()
	_, ok := s.files[m.digest]
	s.mu.Unlock()
	if ok || len(m.data) > origin.MaxManifest {
		return nil
	}
	f, err := os.CreateTemp(s.dir, ".new-*")
	if err != nil {
		return fmt.Errorf("keep manifest %v: %w", m.digest, err)
	}
	raw := slices.Concat([]byte(m.mediaType), []byte("\n"), m.data)
	_, err = f.Write(raw)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(f.Name(), s.path(m.digest))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first failure says more
		return fmt.Errorf("keep manifest %v: %w", m.digest, err)
	}
	s.note(m.digest, int64(len(raw)))
	return nil
}
