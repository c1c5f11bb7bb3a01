package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image"
)

// Labels by which a client says what a snapshot is to hold. The first of each
// pair is set by containerd and its CRI plugin, the second by clients of the
// stargz snapshotter (ctr-remote, older nerdctl).
const (
	// targetLabel is the name under which the client expects the snapshot
	// committed, if it can be made without the layer being unpacked.
	targetLabel = "containerd.io/snapshot.ref"

	stargzRefLabel        = "containerd.io/snapshot/remote/stargz.reference"
	stargzDigestLabel     = "containerd.io/snapshot/remote/stargz.digest"
	stargzSkipVerifyLabel = "containerd.io/snapshot/remote/stargz.skipverify"
)

// request makes of labels what is asked of the image library. It reports
// false where they do not say which layer is wanted.
func (s *Snapshotter) request(ctx context.Context, key string, labels map[string]string) (image.LayerRequest, bool, error) {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	ref := first(snapshotters.TargetRefLabel, stargzRefLabel)
	layer := digest.Digest(first(snapshotters.TargetLayerDigestLabel, stargzDigestLabel))
	if ref == "" || layer == "" {
		return image.LayerRequest{}, false, nil
	}
	if err := layer.Validate(); err != nil {
		return image.LayerRequest{}, false, blob.Errorf(blob.Invalid, "layer digest %q: %w", layer, err)
	}
	name, err := s.cfg.ParseName(ref)
	if err != nil {
		return image.LayerRequest{}, false, err
	}
	req := image.LayerRequest{Name: name, Called: ref, Layer: layer}
	if s.cfg.Content != nil {
		ns := namespaceOf(ctx, key)
		req.Content = func(ctx context.Context, d digest.Digest) ([]byte, error) {
			return s.cfg.Content(namespaces.WithNamespace(ctx, ns), d)
		}
	}
	if manifest := digest.Digest(labels[snapshotters.TargetManifestDigestLabel]); manifest != "" {
		if err := manifest.Validate(); err != nil {
			return image.LayerRequest{}, false, blob.Errorf(blob.Invalid, "manifest digest %q: %w", manifest, err)
		}
		req.Name.Digest = manifest
	}
	if labels[stargzSkipVerifyLabel] != "" {
		s.log.DebugContext(ctx, "verification was asked to be skipped; it never is", "image", ref)
	}
	return req, true, nil
}

// namespaceOf returns the containerd namespace a request is about. containerd
// does not pass it on to proxy plugins, but begins every key with it.
func namespaceOf(ctx context.Context, key string) string {
	if ns, ok := namespaces.Namespace(ctx); ok {
		return ns
	}
	ns, _, _ := strings.Cut(key, "/")
	return ns
}

// committedLabels returns the labels of a lazy snapshot.
func committedLabels(labels map[string]string, p image.Pulled) (map[string]string, error) {
	record, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the layer's record: %w", err)
	}
	all := maps.Clone(labels)
	all[RemoteLabel] = remoteValue
	all[LayerLabel] = string(record)
	return all, nil
}

// labelsOf returns what opts set.
func labelsOf(opts []snapshots.Opt) (map[string]string, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	return info.Labels, nil
}
