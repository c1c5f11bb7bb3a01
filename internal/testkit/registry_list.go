package testkit

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serveTags lists tags, in pages where the client wants some.
func (r *Registry) serveTags(w http.ResponseWriter, req *http.Request, repo string) {
	r.mu.Lock()
	tags := slices.Sorted(maps.Keys(r.repo(repo).tags))
	r.mu.Unlock()
	q := req.URL.Query()
	if last := q.Get("last"); last != "" {
		tags = slices.DeleteFunc(tags, func(t string) bool { return t <= last })
	}
	if n, err := strconv.Atoi(q.Get("n")); err == nil && n > 0 && n < len(tags) {
		tags = tags[:n]
		next := url.Values{"n": {q.Get("n")}, "last": {tags[n-1]}}
		w.Header().Set("Link", "</v2/"+repo+"/tags/list?"+next.Encode()+`>; rel="next"`)
	}
	writeJSON(w, http.StatusOK, map[string]any{"name": repo, "tags": tags})
}

// serveReferrers lists the manifests of a repository whose subject has a
// digest: OCI distribution specification 1.1, "Listing Referrers". With a type,
// only those of it.
func (r *Registry) serveReferrers(w http.ResponseWriter, repo string, subject digest.Digest, artifactType string) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, c := range r.repo(repo).manifests {
		var m ocispec.Manifest
		if json.Unmarshal(c.data, &m) != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		found := ocispec.Descriptor{
			MediaType: c.mediaType, Digest: d, Size: int64(len(c.data)),
			ArtifactType: cmp.Or(m.ArtifactType, m.Config.MediaType), Annotations: m.Annotations,
		}
		if artifactType == "" || artifactType == found.ArtifactType {
			index.Manifests = append(index.Manifests, found)
		}
	}
	body, err := json.Marshal(index)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	_, _ = w.Write(append(body, '\n'))
}
