package mirror

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
	"skimmer/internal/origin/exchange"
)

// maxTags is how many tags are remembered.
const maxTags = 8 << 10

// tags remembers what tags stood for.
type tags struct {
	*table[tagged, meaning]
}

func newTags() *tags { return &tags{newTable[tagged, meaning](maxTags)} }

// tagged is a tag as somebody asks for it: a registry may have several things
// under it for clients that accept different types.
type tagged struct {
	repo   repo
	tag    string
	accept hash
}

type meaning struct {
	digest digest.Digest
	at     time.Time
}

func (r *request) tagged() tagged {
	return tagged{r.to.repo(), r.target.tag, r.m.access.hash(strings.Join(r.req.Header.Values("Accept"), ","))}
}

// typed reports whether a manifest says itself that it is of its type. What is
// kept is served to the clients of every registry that has it: none of these
// may choose what the others' clients take it for.
func (m manifest) typed() bool {
	var doc struct {
		MediaType string          `json:"mediaType"`
		Config    json.RawMessage `json:"config"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(m.data, &doc) != nil {
		return false
	}
	switch {
	case doc.MediaType != "":
	case doc.Manifests != nil && doc.Config == nil:
		doc.MediaType = ocispec.MediaTypeImageIndex
	case doc.Config != nil && doc.Manifests == nil:
		doc.MediaType = ocispec.MediaTypeImageManifest
	}
	return doc.MediaType == m.mediaType
}

// descriptor is something that a manifest lists.
type descriptor struct {
	what what
	ocispec.Descriptor
}

// listed returns what a manifest or index lists; nothing where it is neither.
func listed(data []byte) []descriptor {
	var doc struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if json.Unmarshal(data, &doc) != nil {
		return nil
	}
	var all []descriptor
	if doc.Config != nil {
		all = append(all, descriptor{aBlob, *doc.Config})
	}
	for _, d := range doc.Layers {
		all = append(all, descriptor{aBlob, d})
	}
	for _, d := range doc.Manifests {
		all = append(all, descriptor{aManifest, d})
	}
	return all
}

// serveManifest answers with a manifest, if the client may have it: one that
// is held, or else the upstream's.
func (r *request) serveManifest() error {
	if r.target.tag != "" {
		return r.serveTag()
	}
	held, ok := r.m.kept.get(r.target.digest)
	if !ok || !accepts(r.req.Header, held.mediaType) {
		return r.fetchManifest()
	}
	m, err := r.may(r.req.Context())
	if err != nil {
		return r.no(err)
	}
	r.vouch(held.data, m.at)
	return r.serveHeld(held)
}

// serveTag answers with what a tag stands for now. Where the upstream cannot
// tell, that is what it stood for.
func (r *request) serveTag() error {
	known, ok := r.tags().get(r.tagged())
	if !ok {
		// Who asks whether there is such a thing asks for it next.
		return r.fetchManifestBy(http.MethodGet)
	}
	held, have := r.m.kept.get(known.digest)
	if !have {
		return r.fetchManifest()
	}
	if r.m.access.isAway(r.to.host) && r.fresh(held, known) {
		return r.stale(held, errResting)
	}
	resp, err := r.send(r.req.Context(), http.MethodHead, r.askHeader(), "")
	if err != nil {
		r.m.access.noteAway(r.to.host, err)
		if r.fresh(held, known) && blob.KindOf(err).Temporary() {
			return r.stale(held, err)
		}
		return err
	}
	exchange.Discard(resp)
	if kind := exchange.StatusKind(resp.StatusCode); resp.StatusCode >= 400 && kind.Temporary() {
		err := blob.Errorf(kind, "%s: %s", r.to.host, exchange.StatusText(resp.StatusCode))
		r.m.access.noteAway(r.to.host, err)
		if r.fresh(held, known) {
			return r.stale(held, err)
		}
		return r.fetchManifest() // for its own words
	}
	told := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if resp.StatusCode != http.StatusOK || told.Validate() != nil {
		return r.fetchManifest()
	}
	if told != known.digest {
		if held, have = r.m.kept.get(told); !have {
			return r.fetchManifest()
		}
	}
	r.served(held)
	return r.serveHeld(held)
}

func (r *request) tags() *tags { return r.m.tags }

// fresh reports whether a tag may stand for what it stood for while the
// upstream is away: this client was let read that, and neither is too long ago.
func (r *request) fresh(held manifest, known meaning) bool {
	a := r.m.access
	_, ok := a.within(a.grace, reader{r.to.repo(), r.who}, item{r.to.repo(), aManifest, held.digest})
	return ok && held.digest == known.digest && time.Since(known.at) < a.grace
}

var errResting = blob.Errorf(blob.Unavailable, "it did not answer a moment ago")

// stale answers with what a tag stood for.
func (r *request) stale(held manifest, because error) error {
	r.m.stats.Graced.Add(1)
	r.m.log.Info("an upstream is away: a tag stands for what it stood for", "upstream", r.to.host, "path", r.target.String(), "error", because)
	return r.serveHeld(held)
}

// served notes that the upstream let the client read a manifest just now.
func (r *request) served(m manifest) {
	now := time.Now()
	r.m.access.accepted(reader{r.to.repo(), r.who}, item{r.to.repo(), aManifest, m.digest}, int64(len(m.data)))
	r.vouch(m.data, now)
	if r.target.tag != "" {
		r.tags().put(r.tagged(), meaning{m.digest, now})
	}
}

// fetchManifest answers with the upstream's manifest, and keeps it.
func (r *request) fetchManifest() error { return r.fetchManifestBy(r.req.Method) }

// fetchManifestBy asks the upstream with a method that need not be the client's.
func (r *request) fetchManifestBy(method string) error {
	r.m.stats.Passed.Add(1)
	resp, err := r.send(r.req.Context(), method, endToEnd(r.req.Header, notAsked), r.query())
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || method == http.MethodHead {
		r.learnManifest(resp)
		return r.relay(resp, "")
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, origin.MaxManifest+1))
	if err != nil {
		return blob.Errorf(blob.KindOf(err), "read manifest: %w", err)
	}
	if len(data) > origin.MaxManifest {
		return coded(http.StatusBadGateway, "SIZE_INVALID", "GET %s: the manifest is larger than %d bytes", r.to.host, origin.MaxManifest)
	}
	m, err := r.check(data, resp)
	if err != nil {
		return err
	}
	r.served(m)
	if !m.typed() {
		r.m.log.Debug("a manifest whose type only its registry states is not kept", "digest", m.digest)
	} else if err := r.m.kept.put(m); err != nil {
		r.m.log.Warn("a manifest is not kept", "digest", m.digest, "error", err)
	}
	r.tell(resp.Header)
	return r.write(m)
}

// learnManifest remembers what an answer without a body says of access.
func (r *request) learnManifest(resp *http.Response) {
	d := r.target.digest
	if d == "" && resp.StatusCode == http.StatusOK {
		d = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	who, i := reader{r.to.repo(), r.who}, item{r.to.repo(), aManifest, d}
	switch {
	case resp.StatusCode != http.StatusOK:
		r.m.access.refused(who, i, resp.StatusCode)
	case d.Validate() == nil:
		r.m.access.accepted(who, i, resp.ContentLength)
		if r.target.tag != "" {
			r.tags().put(r.tagged(), meaning{d, time.Now()})
		}
	}
}

// check holds a manifest against the digest it was asked for by, or else
// against the one the upstream states.
func (r *request) check(data []byte, resp *http.Response) (manifest, error) {
	want := r.target.digest
	if want == "" {
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want.Validate() != nil {
		want = digest.FromBytes(data)
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return manifest{}, blob.Errorf(blob.Corrupt, "GET %s: the manifest has digest %v, not %v", r.to.host, got, want)
	}
	return manifest{digest: want, mediaType: typeOf(resp.Header, data), data: data}, nil
}

// typeOf returns the type of a manifest: the header's, or what it says itself.
func typeOf(h http.Header, data []byte) string {
	if t := mediaType(h); t != "" {
		return t
	}
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &doc) != nil {
		return ""
	}
	return mediaType(http.Header{"Content-Type": {doc.MediaType}})
}

// serveHeld answers with a manifest that is held here.
func (r *request) serveHeld(m manifest) error {
	r.m.stats.Manifests.Add(1)
	return r.write(m)
}

// write answers with a manifest.
func (r *request) write(m manifest) error {
	h := r.w.Header()
	if m.mediaType != "" {
		h.Set("Content-Type", m.mediaType)
	}
	h.Del("Accept-Ranges") // of the upstream's answer: this one is whole
	h.Set("Docker-Content-Digest", m.digest.String())
	h.Set("ETag", tag(m.digest))
	for _, v := range r.req.Header.Values("If-None-Match") {
		if v == "*" || containsToken(v, tag(m.digest)) {
			h.Del("Content-Length")
			r.w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(m.data)))
	r.lookAhead(m.data)
	r.w.WriteHeader(http.StatusOK)
	if r.req.Method == http.MethodHead {
		return nil
	}
	if _, err := r.w.Write(m.data); err != nil {
		return blob.Errorf(blob.Canceled, "send a manifest to the client: %w", err)
	}
	return nil
}

// accepts reports whether a client that sent h takes a media type. Weights do
// not matter: there is only one thing to have.
func accepts(h http.Header, mediaType string) bool {
	lists := h.Values("Accept")
	if len(lists) == 0 {
		return true
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	mediaType = strings.TrimSpace(mediaType)
	kind, _, _ := strings.Cut(mediaType, "/")
	for _, list := range lists {
		for one := range strings.SplitSeq(list, ",") {
			one, _, _ = strings.Cut(one, ";")
			switch one = strings.TrimSpace(one); {
			case one == "*/*", strings.EqualFold(one, mediaType), strings.EqualFold(one, kind+"/*"):
				return true
			}
		}
	}
	return false
}
