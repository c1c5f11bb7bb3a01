package coldstart

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is the largest manifest that is read, in bytes.
const maxManifest = 4 << 20

// lookUp fills in what the registry knows about an image.
func lookUp(ctx context.Context, host string, img Image) (Image, error) {
	repository, tag, _ := strings.Cut(img.Repository, ":")
	accept := ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex
	body, err := get(ctx, "http://"+host+"/v2/"+repository+"/manifests/"+tag, accept)
	if err != nil {
		return Image{}, fmt.Errorf("look up image %s: %w", img.Name, err)
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxManifest))
	if err != nil {
		return Image{}, fmt.Errorf("look up image %s: %w", img.Name, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return Image{}, fmt.Errorf("look up image %s: %w", img.Name, err)
	}
	if len(m.Layers) == 0 {
		return Image{}, fmt.Errorf("look up image %s: its manifest has no layers", img.Name)
	}
	img.Digest, img.Layers, img.Size = digest.FromBytes(data), nil, 0
	for _, l := range m.Layers {
		img.Layers = append(img.Layers, l.Digest)
		img.Size += l.Size
	}
	return img, nil
}

// discard reads what is at url to its end.
func discard(ctx context.Context, url string) error {
	body, err := get(ctx, url, "")
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	return err
}

func get(ctx context.Context, url, accept string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the registry answered %s", resp.Status)
	}
	return resp.Body, nil
}
