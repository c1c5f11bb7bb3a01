package origin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// Referrers returns the manifests of a repository that are about another one
// and of a type: OCI distribution specification 1.1, "Listing Referrers". Where
// a registry does not have that, the tag is read that clients keep the list
// under there. Only the first page of a list is read, which registries that
// filter by type seldom exceed. None is no error.
//
// Errors: those of Manifest, and Corrupt for an answer that is not a list.
func (o *Origin) Referrers(ctx context.Context, repository string, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	c, err := o.client(ctx, repository)
	if err != nil {
		return nil, err
	}
	if err := blob.CheckDigest(subject); err != nil {
		return nil, err
	}
	data, err := c.listReferrers(ctx, subject, artifactType)
	if errors.Is(err, blob.NotFound) {
		return nil, nil
	}
	var list ocispec.Index
	if err == nil {
		if err = json.Unmarshal(data, &list); err != nil {
			err = blob.Errorf(blob.Corrupt, "decode the list: %w", err)
		}
	}
	if err != nil {
		return nil, c.explain(err, "list what refers to %v in %v", subject, c.repo)
	}
	return slices.DeleteFunc(list.Manifests, func(d ocispec.Descriptor) bool { return d.ArtifactType != artifactType }), nil
}

// listReferrers returns the list of what refers to a manifest, NotFound where
// there is none. A registry that can list them never says so (same section):
// one that did is asked for the tag at once the next time.
func (c *client) listReferrers(ctx context.Context, subject digest.Digest, artifactType string) (data []byte, err error) {
	o, host := c.o, c.repo.host
	o.mu.Lock()
	noList := o.noList[host]
	o.mu.Unlock()
	if !noList {
		err = o.x.Retry(ctx, func() (err error) {
			data, err = c.getReferrers(ctx, subject, artifactType)
			return err
		})
		if !errors.Is(err, blob.NotFound) {
			return data, err
		}
		o.mu.Lock()
		o.noList[host] = true
		o.mu.Unlock()
	}
	err = o.x.Retry(ctx, func() (err error) {
		data, _, err = c.getManifest(ctx, fallbackTag(subject))
		return err
	})
	return data, err
}

// fallbackTag is the tag under which the manifests that refer to a digest are
// listed: OCI distribution specification 1.1, "Referrers Tag Schema".
func fallbackTag(d digest.Digest) string {
	algorithm, encoded := d.Algorithm().String(), d.Encoded()
	return algorithm[:min(len(algorithm), 32)] + "-" + encoded[:min(len(encoded), 64)]
}

func (c *client) getReferrers(ctx context.Context, subject digest.Digest, artifactType string) ([]byte, error) {
	query := url.Values{"artifactType": {artifactType}}.Encode()
	header := http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	resp, err := c.send(ctx, http.MethodGet, "/referrers/"+subject.String()+"?"+query, header)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, exchange.StatusFailure(resp, time.Now())
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err == nil && len(data) > MaxManifest {
		err = tooLarge()
	}
	return data, err
}
