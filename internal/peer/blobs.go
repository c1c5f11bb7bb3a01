package peer

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/store"
)

// BlobStatus says what the node has of a blob.
type BlobStatus struct {
	Digest digest.Digest `json:"digest"`
	// Size is the blob's length in bytes, Present how many of them are here.
	Size    int64 `json:"size"`
	Present int64 `json:"present"`
	// Complete is whether all of it is here and was verified.
	Complete bool `json:"complete"`
	// Pinned is whether an image needs it.
	Pinned bool `json:"pinned"`
	// LastUsed is when it was last opened or closed.
	LastUsed  time.Time `json:"lastUsed"`
	MediaType string    `json:"mediaType,omitempty"`
	// Repository is where it came from first; URL, without its query, where a
	// plain URL had it.
	Repository string `json:"repository,omitempty"`
	URL        string `json:"url,omitempty"`
}

func blobStatus(i store.Info) BlobStatus {
	return BlobStatus{
		Digest: i.Digest, Size: i.Size, Present: i.Present, Complete: i.Complete, Pinned: i.Pinned,
		LastUsed: i.LastUsed, MediaType: i.MediaType, Repository: i.Repository, URL: i.URL,
	}
}

// handleBlobs adds the routes about blobs and files.
func (p *Peer) handleBlobs(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/file", p.serveFile)
	mux.HandleFunc("GET /v1/blobs", func(w http.ResponseWriter, _ *http.Request) {
		list, err := p.store.List()
		all := make([]BlobStatus, 0, len(list))
		for _, i := range list {
			all = append(all, blobStatus(i))
		}
		p.answer(w, all, err)
	})
	mux.HandleFunc("GET /v1/blobs/{digest}", func(w http.ResponseWriter, req *http.Request) {
		i, err := p.store.Stat(digest.Digest(req.PathValue("digest")))
		p.answer(w, blobStatus(i), err)
	})
	mux.HandleFunc("DELETE /v1/blobs/{digest}", func(w http.ResponseWriter, req *http.Request) {
		p.answer(w, struct{}{}, p.removeBlob(digest.Digest(req.PathValue("digest"))))
	})
}

// removeBlob removes a blob, or says which of the reasons there are against it
// is the case.
func (p *Peer) removeBlob(d digest.Digest) error {
	i, err := p.store.Stat(d)
	if err != nil {
		return err
	}
	err = p.store.Remove(d)
	if blob.KindOf(err) != blob.Busy || err == nil {
		return err
	}
	if i.Pinned {
		return blob.Errorf(blob.Busy, "remove blob %s: an image that is mounted or pulled needs it", d)
	}
	return blob.Errorf(blob.Busy, "remove blob %s: it is being read", d)
}

// Blobs returns what the running peer has of all blobs, sorted by digest.
func (c *Client) Blobs(ctx context.Context) ([]BlobStatus, error) {
	var all []BlobStatus
	err := c.call(ctx, http.MethodGet, "/v1/blobs", nil, &all)
	return all, err
}

// Blob returns what the running peer has of a blob; NotFound if nothing.
func (c *Client) Blob(ctx context.Context, d digest.Digest) (BlobStatus, error) {
	var s BlobStatus
	err := c.call(ctx, http.MethodGet, "/v1/blobs/"+url.PathEscape(d.String()), nil, &s)
	return s, err
}

// RemoveBlob removes a blob from the running peer's disk. Errors: NotFound,
// and Busy while it is needed.
func (c *Client) RemoveBlob(ctx context.Context, d digest.Digest) error {
	return c.call(ctx, http.MethodDelete, "/v1/blobs/"+url.PathEscape(d.String()), nil, nil)
}
