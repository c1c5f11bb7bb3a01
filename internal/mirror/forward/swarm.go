package forward

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"

	"skimmer/internal/blob"
	"skimmer/internal/mirror/ranges"
)

// FileRequest is what a client wants of a file.
type FileRequest struct {
	// URL is an http or https URL, without user and fragment. Its query may be a
	// signature, so it is not for logs.
	URL string
	// Tag keeps files apart that have the same URL and version.
	Tag string
	// FilteredQueryParams lists parameters of the URL that do not tell files
	// apart. They are sent to the server all the same.
	FilteredQueryParams []string
	// Header goes along to the server: the client's, without what is about its
	// request or for a proxy.
	Header http.Header
}

// File is what is at a URL now.
type File struct {
	// Blob is its bytes; the Proxy closes it.
	Blob blob.Blob
	// ETag, ContentType and LastModified are headers of the server's, or empty.
	ETag, ContentType, LastModified string
}

// Files opens the file that a URL names now, having asked its server with the
// client's own header, so that nobody gets what the server would not give. The
// context it returns is the one to read with; it ends with ctx. It is called
// concurrently.
//
// After an error, the request is passed on to the server itself. That is also
// the way to leave a file to it.
//
// Connections for it have to be made by the Proxy's Guard, and not to be shared
// with what is read for others: servers redirect.
type Files func(ctx context.Context, req FileRequest) (context.Context, File, error)

// registryPath matches the path of a blob or manifest in a registry.
var registryPath = regexp.MustCompile(`^/v2/[a-z0-9._/-]+/(blobs/[a-z0-9+._-]+(:|%3[aA])[0-9a-fA-F]+|manifests/[a-zA-Z0-9+._-]+((:|%3[aA])[0-9a-fA-F]+)?)$`)

// fromSwarm answers a request through the swarm; false if that is not done, and
// nothing was written.
func (p *Proxy) fromSwarm(w http.ResponseWriter, req *http.Request, d decision) bool {
	get, head := req.Method == http.MethodGet, req.Method == http.MethodHead
	if !get && !head || req.ContentLength != 0 || req.Header.Get("Upgrade") != "" {
		return false
	}
	registry := p.cfg.Mirror != nil && registryPath.MatchString(d.target.EscapedPath())
	if !registry && (p.cfg.Files == nil || !get) {
		return false
	}
	// Others dial here, so what must not be reached is refused before. What
	// cannot be resolved may still be on this node's disk.
	if err := p.cfg.Guard.Check(req.Context(), withPort(d.target.Host, d.target.Scheme)); errors.Is(err, blob.Forbidden) {
		p.fail(w, req, err)
		return true
	}
	if registry {
		p.stats.Mirrored.Add(1)
		out := originForm(req, d.target)
		dropOurs(out.Header)
		p.cfg.Mirror(w, out, &url.URL{Scheme: d.target.Scheme, Host: d.target.Host})
		return true
	}
	return p.file(w, req, d)
}

// file answers a GET from Files; false if that failed and nothing was written.
func (p *Proxy) file(w http.ResponseWriter, req *http.Request, d decision) bool {
	ctx, f, err := p.cfg.Files(req.Context(), FileRequest{
		URL: d.target.String(), Tag: req.Header.Get(headerTag), FilteredQueryParams: d.filtered, Header: fileHeader(req.Header),
	})
	if err != nil {
		return p.fallBack(req, d, err)
	}
	defer func() { _ = f.Blob.Close() }() // nothing was written through it
	c := ranges.Content{Blob: f.Blob, ETag: f.ETag, MediaType: f.ContentType, Header: http.Header{"Via": {p.via()}}}
	if t, err := http.ParseTime(f.LastModified); err == nil {
		c.ModTime = t
	}
	sent, err := ranges.Serve(w, req.WithContext(ctx), c)
	if err != nil && sent.Status == 0 {
		return p.fallBack(req, d, err)
	}
	p.stats.Files.Add(1)
	if err != nil {
		if blob.KindOf(err) != blob.Canceled {
			p.log.Warn("proxy answer broke off", "url", place(d.target), "sent", sent.Bytes, "error", err)
		}
		panic(http.ErrAbortHandler) // net/http ends the connection, as Serve demands
	}
	return true
}

// fallBack notes why a request is passed on that was for the swarm.
func (p *Proxy) fallBack(req *http.Request, d decision, err error) bool {
	if req.Context().Err() == nil {
		p.stats.FellBack.Add(1)
		p.log.Info("file passed on to its server", "url", place(d.target), "error", err)
	}
	return false
}
