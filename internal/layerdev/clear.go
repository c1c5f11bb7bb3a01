package layerdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Clear makes the layer in dir, which must not be open or mounted, one of
// which nothing is present. It frees the disk space of the data; the index is
// kept.
func Clear(dir string) error {
	err := func() error {
		ix, sum, err := readIndex(dir)
		if err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, completeName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return reset(dir, header{size: ix.DataSize, chunks: uint32(len(ix.Chunks)), indexSum: sum})
	}()
	if err != nil {
		return fmt.Errorf("clear layer folder %s: %w", dir, err)
	}
	return nil
}
