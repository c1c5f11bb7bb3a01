package profile

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// MaxFiles is how many profiles a Dir keeps; those written longest ago go
// first.
const MaxFiles = 4096

const (
	tempPrefix = ".new-"
	// tempAge is how old a temporary file is that nobody will finish.
	tempAge = time.Hour
)

// Dir is a directory with the profiles a node has, one file for each image's
// manifest: ALGORITHM/HEX. What is in it is soft state: it is not synced to
// disk, and what is not as it should be is dropped. Its methods may be called
// concurrently. Two processes may use one directory; each keeps to MaxFiles as
// far as it knows.
type Dir struct {
	path  string
	limit int

	// mu guards count, and the directory against another Put or Remove.
	mu    sync.Mutex
	count int
}

// Info is what a list says about a profile.
type Info struct {
	Manifest digest.Digest `json:"manifest"`
	Platform string        `json:"platform"`
	// Starts, Layers, Reads and Chunks are how many there are.
	Starts int `json:"starts"`
	Layers int `json:"layers"`
	Reads  int `json:"reads"`
	Chunks int `json:"chunks"`
	// Bytes is the size of its file.
	Bytes    int64     `json:"bytes"`
	Recorded time.Time `json:"recorded"`
}

// OpenDir opens the profiles in the directory at path, which is made, with
// its parents, if there is none.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "open profiles: %w", err)
	}
	d := &Dir{path: path, limit: MaxFiles}
	files, err := d.scan()
	if err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "open profiles: %w", err)
	}
	d.count = len(files)
	return d, nil
}

// file is a file of the directory, which need not have a good profile.
type file struct {
	path     string
	manifest digest.Digest
	written  time.Time
}

// scan returns the files named like profiles and removes forgotten temporary
// ones.
func (d *Dir) scan() ([]file, error) {
	var files []file
	for _, a := range algorithms[1:] {
		entries, err := os.ReadDir(filepath.Join(d.path, a.String()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				continue // somebody removed it meanwhile, or it is not ours
			}
			f := file{filepath.Join(d.path, a.String(), e.Name()), digest.NewDigestFromEncoded(a, e.Name()), info.ModTime()}
			switch {
			case f.manifest.Validate() == nil:
				files = append(files, f)
			case strings.HasPrefix(e.Name(), tempPrefix) && time.Since(f.written) > tempAge:
				_ = os.Remove(f.path) // tried again next time
			}
		}
	}
	return files, nil
}

func (d *Dir) file(manifest digest.Digest) (string, error) {
	if !plainDigest(manifest) {
		return "", blob.Errorf(blob.Invalid, "find profile: bad manifest digest %.80q", manifest)
	}
	return filepath.Join(d.path, manifest.Algorithm().String(), manifest.Encoded()), nil
}

// Get returns the profile of an image by its manifest's digest. NotFound: there
// is none, or none that can be used; a damaged one is removed, one of
// a newer version left alone.
func (d *Dir) Get(manifest digest.Digest) (Profile, error) {
	path, err := d.file(manifest)
	if err != nil {
		return Profile{}, err
	}
	p, _, err := readFile(path, manifest)
	if err == nil {
		return p, nil
	}
	kind := blob.KindOf(err)
	switch kind {
	case blob.Corrupt:
		d.drop(path)
		kind = blob.NotFound
	case blob.Invalid: // a newer version's
		kind = blob.NotFound
	}
	return Profile{}, blob.Errorf(kind, "read profile of %v: %w", manifest, err)
}

// readFile returns the profile in a file and the file's size.
func readFile(path string, manifest digest.Digest) (Profile, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return Profile{}, 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return Profile{}, 0, err
	}
	p, err := Decode(data)
	if err == nil && p.Manifest != manifest {
		err = blob.Errorf(blob.Corrupt, "it is that of %v", p.Manifest)
	}
	return p, int64(len(data)), err
}

// drop removes a file, if it is there.
func (d *Dir) drop(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if os.Remove(path) == nil {
		d.count--
	}
}

// Put stores a profile in place of the one its image had, at once for whoever
// reads it. The oldest files are removed if there are more than MaxFiles.
// Errors are those of Encode, and Full.
func (d *Dir) Put(p Profile) error {
	data, err := Encode(p)
	if err != nil {
		return err
	}
	path, err := d.file(p.Manifest)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, statErr := os.Lstat(path)
	if err := replace(path, data); err != nil {
		return blob.Errorf(blob.KindOf(err), "store profile of %v: %w", p.Manifest, err)
	}
	if statErr != nil {
		d.count++
	}
	if d.count > d.limit {
		if err := d.shrink(path); err != nil {
			return blob.Errorf(blob.KindOf(err), "remove old profiles: %w", err)
		}
	}
	return nil
}

// replace gives the file at path new content, or leaves it as it is.
func replace(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// shrink removes the files written longest ago until there are no more than
// the limit, but not the one at keep. d.mu is held.
func (d *Dir) shrink(keep string) error {
	files, err := d.scan()
	if err != nil {
		return err
	}
	d.count = len(files)
	slices.SortFunc(files, func(a, b file) int {
		return cmp.Or(a.written.Compare(b.written), cmp.Compare(a.path, b.path))
	})
	for _, f := range files {
		if d.count <= d.limit {
			break
		}
		if f.path == keep {
			continue
		}
		if err := os.Remove(f.path); err != nil {
			return err
		}
		d.count--
	}
	return nil
}

// Remove removes an image's profile. NotFound: there is none.
func (d *Dir) Remove(manifest digest.Digest) error {
	path, err := d.file(manifest)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Remove(path); err != nil {
		return blob.Errorf(blob.KindOf(err), "remove profile of %v: %w", manifest, err)
	}
	d.count--
	return nil
}

// List describes the profiles that are there and good, the one recorded last
// first.
func (d *Dir) List() ([]Info, error) {
	files, err := d.scan()
	if err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "list profiles: %w", err)
	}
	list := []Info{}
	for _, f := range files {
		p, size, err := readFile(f.path, f.manifest)
		if err != nil {
			continue // it stays for Get to remove
		}
		list = append(list, Info{
			Manifest: p.Manifest, Platform: p.Platform, Starts: p.Starts, Recorded: p.Recorded,
			Layers: len(p.Layers), Reads: len(p.Reads), Chunks: p.Chunks(), Bytes: size,
		})
	}
	slices.SortFunc(list, func(a, b Info) int {
		return cmp.Or(b.Recorded.Compare(a.Recorded), cmp.Compare(a.Manifest, b.Manifest))
	})
	return list, nil
}
