// Package image turns a container image in a registry into a mounted root
// file system before its data has arrived. It reads the manifest, indexes all
// layers at once, merges their tables of contents into one EROFS metadata
// image, and mounts that over the layers' flat data, which the layer device
// fetches when it is read.
//
// It works on any [skimmer/internal/blob.Source] and keeps everything it
// derives on disk by content digest, so that a second mount, also by a later
// process, needs neither network nor work.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Name says which image is wanted.
type Name struct {
	// Repository is the registry host and path, as in blob.Ref.
	Repository string
	// Tag is resolved with the registry; ignored when Digest is set.
	Tag string
	// Digest names the manifest or index itself.
	Digest digest.Digest
}

// String returns the name as people write it.
func (n Name) String() string {
	if n.Digest != "" {
		return n.Repository + "@" + n.Digest.String()
	}
	return n.Repository + ":" + n.Tag
}

// Resolver reads manifests from registries. Implementations are safe for
// concurrent use.
type Resolver interface {
	// Manifest returns a manifest or index with its media type and digest. The
	// reference is a tag or a digest; asked for a digest, the bytes returned
	// have it.
	//
	// Errors: NotFound, Unauthorized, Forbidden, Unavailable, Timeout, Busy,
	// Corrupt.
	Manifest(ctx context.Context, repository, reference string) (data []byte, mediaType string, d digest.Digest, err error)
}

// Image is an image that is ready to be mounted. It does not change.
type Image struct {
	// Manifest is the digest of the image manifest.
	Manifest digest.Digest `json:"manifest"`
	// Repository is where missing data is fetched from.
	Repository string `json:"repository"`
	// Layers are listed bottom first.
	Layers []Layer `json:"layers"`
	// Metadata names the EROFS metadata below the library's metadata folder.
	Metadata string `json:"metadata"`
	// Devices lists, for each device slot of the metadata, the index into
	// Layers whose flat data the slot is.
	Devices []int `json:"devices"`
}

// Layer is one layer of an Image.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType,omitempty"`
	// Size is the length of the layer blob in bytes.
	Size int64 `json:"size"`
	// TOCDigest is the digest of the table of contents, which promises every
	// byte of the layer's files.
	TOCDigest digest.Digest `json:"tocDigest"`
	// DataSize is the length of the layer's flat data in bytes.
	DataSize int64 `json:"dataSize"`
}

// Size returns the sum of the layer blobs in bytes.
func (im *Image) Size() int64 {
	var n int64
	for _, l := range im.Layers {
		n += l.Size
	}
	return n
}

func (im *Image) ref(l Layer) blob.Ref {
	return blob.Ref{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType, Repository: im.Repository}
}

// recordVersion is raised whenever what is derived from an image changes
// shape; records of other versions are dropped and made again.
const recordVersion = 2

// record is an Image as it is kept on disk.
type record struct {
	Version int `json:"version"`
	Image
}

// refRecord remembers what a tag stood for, for when the registry is away.
type refRecord struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest"`
	Seen   time.Time     `json:"seen"`
}

// readJSON decodes the file at path into v. It returns fs.ErrNotExist where
// there is none, and any other error where the file is damaged.
func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// writeJSON replaces the file at path by v, whole or not at all. It does not
// wait for the disk: what is kept as JSON can be derived again, and a record a
// power cut left damaged is dropped when it is read. That wait would be most of
// the time it takes to mount.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFile(path, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// writeFile replaces the file at path by what fill writes, whole or not at
// all, whenever this process ends. To survive a power cut fill calls Sync.
func writeFile(path string, fill func(*os.File) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // closed already where it was the rename that failed
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
