package layerdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// The files of a layer's folder.
const (
	indexName    = "index"
	dataName     = "data"
	presentName  = "present"
	completeName = "complete"
)

// Create makes dir the folder of a layer with that index, with nothing
// present. The index is durable when Create returns; a folder without one is
// not a layer's, so a Create that was cut short is simply done again. A
// folder that has an index already keeps what it holds.
func Create(dir string, ix *estargz.Index) error {
	if err := create(dir, ix); err != nil {
		return fmt.Errorf("create layer folder %s: %w", dir, err)
	}
	return nil
}

func create(dir string, ix *estargz.Index) error {
	if _, err := os.Stat(filepath.Join(dir, indexName)); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	stored, err := ix.MarshalBinary()
	if err != nil {
		return err
	}
	h := header{size: ix.DataSize, chunks: uint32(len(ix.Chunks)), indexSum: indexSum(stored)}
	if err := os.Remove(filepath.Join(dir, completeName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := reset(dir, h); err != nil {
		return err
	}
	// The index comes last and by renaming: where it is, the rest is.
	tmp, err := os.CreateTemp(dir, indexName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	_, err = tmp.Write(stored)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), filepath.Join(dir, indexName))
}

// reset makes data and present those of a layer of which nothing is there. An
// old record is void for good before the data is touched.
func reset(dir string, h header) error {
	if err := void(filepath.Join(dir, presentName)); err != nil {
		return err
	}
	data, err := os.OpenFile(filepath.Join(dir, dataName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(data.Truncate(0), data.Truncate(h.size), data.Close()); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, presentName), h.bytes(), 0o600)
}

// void empties a record durably; there need not be one.
func void(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// indexSum returns the checksum a stored index ends with.
func indexSum(stored []byte) uint32 {
	return binary.LittleEndian.Uint32(stored[len(stored)-4:])
}

// CompleteData returns the path of the flat data of the layer in dir if all
// of it is there for good, so that it can be used without a Layer.
func CompleteData(dir string) (path string, ok bool) {
	if _, ok := completeSize(dir); !ok {
		return "", false
	}
	return filepath.Join(dir, dataName), true
}

// completeSize returns the size of the data of a layer that is complete.
func completeSize(dir string) (int64, bool) {
	f, err := os.Open(filepath.Join(dir, completeName))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	h, ok := readHeader(f)
	if !ok {
		return 0, false
	}
	st, err := os.Stat(filepath.Join(dir, dataName))
	return h.size, err == nil && st.Size() == h.size
}

func readHeader(f *os.File) (header, bool) {
	p := make([]byte, presentHeader)
	n, _ := f.ReadAt(p, 0)
	return parseHeader(p[:n])
}

// lock takes the record for this Layer alone, until f is closed.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return blob.Errorf(blob.Busy, "it is open in this or another process, which must close it first")
	}
	return err
}

// readIndex returns the stored index of a layer and its checksum.
func readIndex(dir string) (*estargz.Index, uint32, error) {
	p, err := os.ReadFile(filepath.Join(dir, indexName))
	if err != nil {
		return nil, 0, err
	}
	ix, err := estargz.UnmarshalIndex(p)
	if err != nil {
		return nil, 0, err
	}
	return ix, indexSum(p), nil
}
