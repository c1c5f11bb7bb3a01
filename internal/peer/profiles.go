package peer

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
)

// ProfileDir returns where a node with that data directory keeps profiles. While
// the node runs, ask it instead.
func ProfileDir(dataDir string) string { return filepath.Join(dataDir, "profiles") }

// maxProfileBody limits a profile that is imported, as JSON, in bytes.
const maxProfileBody = 4 << 20

// profiles returns the profiles the node keeps.
func (p *Peer) profiles() (*profile.Dir, error) {
	if dir := p.images.Profiles(); dir != nil {
		return dir, nil
	}
	return nil, blob.Errorf(blob.Invalid, "find profiles: this peer keeps none, because its configuration says so")
}

// handleProfiles adds the routes about profiles.
func (p *Peer) handleProfiles(mux *http.ServeMux) {
	handle := func(route string, do func(*profile.Dir, *http.Request) (any, error)) {
		mux.HandleFunc(route, func(w http.ResponseWriter, req *http.Request) {
			dir, err := p.profiles()
			var v any
			if err == nil {
				req.Body = http.MaxBytesReader(w, req.Body, maxProfileBody)
				v, err = do(dir, req)
			}
			p.answer(w, v, err)
		})
	}
	handle("GET /v1/profiles", func(dir *profile.Dir, _ *http.Request) (any, error) { return dir.List() })
	handle("GET /v1/profiles/{digest}", func(dir *profile.Dir, req *http.Request) (any, error) {
		return dir.Get(digest.Digest(req.PathValue("digest")))
	})
	handle("DELETE /v1/profiles/{digest}", func(dir *profile.Dir, req *http.Request) (any, error) {
		manifest := digest.Digest(req.PathValue("digest"))
		if req.URL.Query().Get("cluster") == "true" {
			return struct{}{}, p.removeProfile(req.Context(), dir, manifest)
		}
		return struct{}{}, dir.Remove(manifest)
	})
	handle("POST /v1/profiles", func(dir *profile.Dir, req *http.Request) (any, error) {
		data, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "read profile: %w", err)
		}
		var got profile.Profile
		if err := json.Unmarshal(data, &got); err != nil {
			return nil, blob.Errorf(blob.Invalid, "read profile: %w", err)
		}
		return struct{}{}, p.putProfile(dir, got)
	})
}

// putProfile keeps a profile and offers it to the cluster.
func (p *Peer) putProfile(dir *profile.Dir, got profile.Profile) error {
	if err := dir.Put(got); err != nil || p.member == nil {
		return err
	}
	encoded, err := profile.Encode(got)
	if err == nil {
		p.member.swarm.Profiles().Offer(got.Manifest, encoded)
	}
	return err
}

// removeProfile removes an image's profile from the cluster and from this node;
// that there is none is no error.
func (p *Peer) removeProfile(ctx context.Context, dir *profile.Dir, manifest digest.Digest) error {
	if p.member == nil {
		return blob.Errorf(blob.Invalid, "remove profile from the cluster: this peer has no scheduler")
	}
	if err := p.member.swarm.Profiles().Remove(ctx, manifest); err != nil {
		return err
	}
	if err := dir.Remove(manifest); err != nil && blob.KindOf(err) != blob.NotFound {
		return err
	}
	return nil
}

// ProfileClient asks a running peer about profiles. All its methods fail with
// Invalid if the peer keeps none. It is safe for concurrent use.
type ProfileClient struct{ client *Client }

// Profiles returns a client for the running peer's profiles.
func (c *Client) Profiles() ProfileClient { return ProfileClient{c} }

// List returns what the running peer has of profiles, the one recorded last
// first.
func (c ProfileClient) List(ctx context.Context) ([]profile.Info, error) {
	var all []profile.Info
	err := c.client.call(ctx, http.MethodGet, "/v1/profiles", nil, &all)
	return all, err
}

// Get returns an image's profile; NotFound if there is none.
func (c ProfileClient) Get(ctx context.Context, manifest digest.Digest) (profile.Profile, error) {
	var p profile.Profile
	err := c.client.call(ctx, http.MethodGet, "/v1/profiles/"+url.PathEscape(manifest.String()), nil, &p)
	return p, err
}

// Put keeps a profile in place of the one its image had, and offers it to the
// cluster in the background, where it is merged with what others learned.
func (c ProfileClient) Put(ctx context.Context, p profile.Profile) error {
	return c.client.call(ctx, http.MethodPost, "/v1/profiles", p, nil)
}

// Remove removes an image's profile; NotFound if there is none.
func (c ProfileClient) Remove(ctx context.Context, manifest digest.Digest) error {
	return c.client.call(ctx, http.MethodDelete, "/v1/profiles/"+url.PathEscape(manifest.String()), nil, nil)
}

// RemoveFromCluster removes an image's profile from the peer's schedulers and from
// the peer; that there is none is no error. The schedulers take none that was
// recorded before, until they begin anew; other nodes keep and use what they have.
//
// Invalid: the peer has no scheduler. Unavailable: none is up; then nothing was
// removed here either.
func (c ProfileClient) RemoveFromCluster(ctx context.Context, manifest digest.Digest) error {
	return c.client.call(ctx, http.MethodDelete, "/v1/profiles/"+url.PathEscape(manifest.String())+"?cluster=true", nil, nil)
}
