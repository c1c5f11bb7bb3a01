package testkit

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ServeHTTP answers as a registry does: OCI distribution specification 1.1,
// the parts about pulling, pushing and listing tags and referrers.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	op, repo, rest := route(req)
	if !r.begin(w, req, op) {
		return
	}
	if op == Token {
		r.serveToken(w, req)
		return
	}
	if !r.authorize(w, req, op, repo) {
		return
	}
	switch {
	case op == Ping:
		writeJSON(w, http.StatusOK, struct{}{})
	case op == BlobGet || op == BlobHead:
		r.serveBlob(w, req, op, repo, digest.Digest(rest))
	case op == ManifestGet || op == ManifestHead:
		r.serveManifest(w, req, repo, rest)
	case op == Upload && req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/manifests/"):
		r.putManifest(w, req, repo, rest)
	case op == Upload:
		r.serveUpload(w, req, repo, rest)
	case rest == "tags":
		r.serveTags(w, req, repo)
	case op == Other && digest.Digest(rest).Validate() == nil:
		r.serveReferrers(w, repo, digest.Digest(rest), req.URL.Query().Get("artifactType"))
	default:
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is unsupported")
	}
}

// route names what a request wants: the operation, the repository, and the
// digest, tag or upload id.
func route(req *http.Request) (op Op, repo, rest string) {
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	pick := func(get, head Op) Op {
		switch {
		case req.Method == http.MethodHead:
			return head
		case read:
			return get
		case req.Method == http.MethodDelete:
			return Other
		}
		return Upload
	}
	switch {
	case req.URL.Path == "/token":
		return Token, "", ""
	case !ok:
		return Other, "", ""
	case path == "":
		return Ping, "", ""
	}
	if name, id, ok := strings.Cut(path, "/blobs/uploads/"); ok {
		return Upload, name, id
	}
	if name, d, ok := strings.Cut(path, "/blobs/"); ok {
		return pick(BlobGet, BlobHead), name, d
	}
	if name, ref, ok := strings.Cut(path, "/manifests/"); ok {
		return pick(ManifestGet, ManifestHead), name, ref
	}
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok && read {
		return Other, name, "tags"
	}
	if name, d, ok := strings.Cut(path, "/referrers/"); ok && read {
		return Other, name, d
	}
	return Other, "", ""
}

// begin counts a request, waits the latency, and plays a fault that answers
// instead of the server. It reports whether the server is to answer.
func (r *Registry) begin(w http.ResponseWriter, req *http.Request, op Op) bool {
	r.mu.Lock()
	r.stats.Requests[op]++
	r.mu.Unlock()
	if r.opts.Latency > 0 {
		timer := time.NewTimer(r.opts.Latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-req.Context().Done():
			return false
		}
	}
	f, ok := r.takeFault(op, true)
	if !ok {
		return true
	}
	switch f.Do {
	case HangHeaders:
		r.hang(req)
	case Reset:
		panic(http.ErrAbortHandler)
	case Status:
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		code := "UNKNOWN"
		if f.Status == http.StatusTooManyRequests {
			code = "TOOMANYREQUESTS"
		}
		refuse(w, f.Status, code, "fault injected by the test")
	}
	return false
}

// hang waits until the client or the test gives up.
func (r *Registry) hang(req *http.Request) {
	select {
	case <-req.Context().Done():
	case <-r.closing:
	}
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, op Op, repo string, d digest.Digest) {
	r.mu.Lock()
	c, ok := r.repo(repo).blobs[d]
	r.mu.Unlock()
	switch {
	case !ok:
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	case r.storageHost != "":
		w.Header().Set("Location", r.signedURL(req.Method, d))
		w.WriteHeader(http.StatusTemporaryRedirect)
	default:
		w.Header().Set("Docker-Content-Digest", d.String())
		r.serveContent(w, req, op, d, c)
	}
}

// serveStorage is the server blobs are redirected to.
func (r *Registry) serveStorage(w http.ResponseWriter, req *http.Request) {
	if !r.begin(w, req, StorageGet) {
		return
	}
	d := digest.Digest(strings.TrimPrefix(req.URL.Path, "/"))
	r.mu.Lock()
	c, ok := r.blobs[d]
	if req.Header.Get("Authorization") != "" {
		r.stats.Leaks++
	}
	r.mu.Unlock()
	q := req.URL.Query()
	date, _ := time.Parse(amzDate, q.Get("X-Amz-Date"))
	ttl, _ := strconv.Atoi(q.Get("X-Amz-Expires"))
	switch {
	case req.Header.Get("Authorization") != "":
		// What S3 answers: "Only one auth mechanism allowed".
		http.Error(w, "<Error><Code>InvalidArgument</Code></Error>", http.StatusBadRequest)
	case !hmac.Equal([]byte(q.Get("X-Amz-Signature")), []byte(r.sign(req.Method, d, q))):
		http.Error(w, "<Error><Code>SignatureDoesNotMatch</Code></Error>", http.StatusForbidden)
	case time.Now().After(date.Add(time.Duration(ttl) * time.Second)):
		http.Error(w, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", http.StatusForbidden)
	case !ok:
		http.Error(w, "<Error><Code>NoSuchKey</Code></Error>", http.StatusNotFound)
	default:
		r.serveContent(w, req, StorageGet, d, c)
	}
}

// amzDate is the time format of AWS Signature Version 4 query parameters.
const amzDate = "20060102T150405Z"

func (r *Registry) signedURL(method string, d digest.Digest) string {
	ttl := r.opts.URLTTL
	if ttl == 0 {
		ttl = time.Hour
	}
	q := url.Values{
		"X-Amz-Date":    {time.Now().UTC().Format(amzDate)},
		"X-Amz-Expires": {strconv.Itoa(int(ttl.Seconds()))},
	}
	q.Set("X-Amz-Signature", r.sign(method, d, q))
	return r.scheme() + "://" + r.storageHost + "/" + d.String() + "?" + q.Encode()
}

func (r *Registry) sign(method string, d digest.Digest, q url.Values) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := hmac.New(sha256.New, r.urlKey)
	fmt.Fprintln(h, method, d, q.Get("X-Amz-Date"), q.Get("X-Amz-Expires"))
	return hex.EncodeToString(h.Sum(nil))
}

// serveContent answers with bytes, ranges included, and plays the faults of
// bodies.
func (r *Registry) serveContent(w http.ResponseWriter, req *http.Request, op Op, d digest.Digest, c content) {
	w.Header().Set("Content-Type", c.mediaType)
	bw := &bodyWriter{ResponseWriter: w, r: r, req: req, digest: d, size: int64(len(c.data))}
	bw.fault, _ = r.takeFault(op, false)
	switch bw.fault.Do {
	case NoRanges:
		req.Header.Del("Range")
	case Multipart:
		req.Header.Set("Range", "bytes=0-0,2-2")
	}
	if ranges := strings.Split(strings.TrimPrefix(req.Header.Get("Range"), "bytes="), ","); len(ranges) > 1 {
		if bw.fault.Do == RefuseRanges {
			refuse(w, http.StatusBadRequest, "UNSUPPORTED", "several ranges are not supported")
			return
		}
		rewriteRanges(req.Header, ranges, bw.fault.Do)
	}
	http.ServeContent(bw, req, "", time.Time{}, bytes.NewReader(c.data))
	bw.finish()
}

// rewriteRanges makes of a request for several ranges the one whose answer the
// fault wants.
func rewriteRanges(h http.Header, ranges []string, do Action) {
	switch do {
	case FirstRange:
		ranges = ranges[:1]
	case WholeForRanges:
		h.Del("Range")
		return
	case ReversedRanges:
		slices.Reverse(ranges)
	case MergedRanges:
		var merged []string
		for pair := range slices.Chunk(ranges, 2) {
			first, _, _ := strings.Cut(pair[0], "-")
			_, last, _ := strings.Cut(pair[len(pair)-1], "-")
			merged = append(merged, first+"-"+last)
		}
		ranges = merged
	}
	h.Set("Range", "bytes="+strings.Join(ranges, ","))
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, repo, reference string) {
	r.mu.Lock()
	c := r.repo(repo).manifest(reference)
	r.mu.Unlock()
	if c.data == nil {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	d := digest.FromBytes(c.data)
	w.Header().Set("Docker-Content-Digest", d.String())
	op := ManifestGet
	if req.Method == http.MethodHead {
		op = ManifestHead
	}
	r.serveContent(w, req, op, d, c)
}

func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, repo, reference string) {
	p, err := io.ReadAll(io.LimitReader(req.Body, 4<<20))
	var m struct {
		Config            *ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	if err != nil || json.Unmarshal(p, &m) != nil {
		refuse(w, http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid")
		return
	}
	d := digest.FromBytes(p)
	if strings.Contains(reference, ":") && reference != d.String() {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rep := r.repo(repo)
	for _, b := range blobs {
		if _, ok := rep.blobs[b.Digest]; !ok && len(b.URLs) == 0 {
			refuse(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry: "+b.Digest.String())
			return
		}
	}
	for _, b := range m.Manifests {
		if _, ok := rep.manifests[b.Digest]; !ok {
			refuse(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "manifest unknown to registry: "+b.Digest.String())
			return
		}
	}
	rep.manifests[d] = content{req.Header.Get("Content-Type"), p}
	if !strings.Contains(reference, ":") {
		rep.tags[reference] = d
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+d.String())
	w.WriteHeader(http.StatusCreated)
}

// serveUpload pushes a blob: POST opens an upload, or does all of it with
// ?digest= or ?mount=; PATCH appends; PUT appends, checks and completes.
func (r *Registry) serveUpload(w http.ResponseWriter, req *http.Request, repo, id string) {
	p, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	q := req.URL.Query()
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.Method == http.MethodPost {
		if d := digest.Digest(q.Get("mount")); d != "" {
			if c, ok := r.repo(q.Get("from")).blobs[d]; ok {
				r.addBlob(repo, d, c.data)
				created(w, repo, d)
				return
			}
		}
		id = rand.Text()
		r.uploads[id] = nil
	}
	have, ok := r.uploads[id]
	if !ok {
		refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
		return
	}
	have = append(have, p...)
	r.uploads[id] = have
	if d := digest.Digest(q.Get("digest")); d != "" && req.Method != http.MethodPatch {
		delete(r.uploads, id)
		if d != digest.FromBytes(have) {
			refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
			return
		}
		r.addBlob(repo, d, have)
		created(w, repo, d)
		return
	}
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(have)-1)))
	w.WriteHeader(http.StatusAccepted)
}

func created(w http.ResponseWriter, repo string, d digest.Digest) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// refuse answers with an error as the distribution specification writes it.
func refuse(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
