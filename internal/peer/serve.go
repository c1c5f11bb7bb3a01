package peer

import (
	"context"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/mirror/ranges"
	"skimmer/internal/origin/web"
)

// Headers of /v1/file, and trailers of an answer to a request that says it
// takes trailers (TE: trailers). Such an answer has no Content-Length.
const (
	headerForward = "X-Skimmer-Header" // "Name: value", to be sent to the web server; may be repeated
	headerDigest  = "X-Skimmer-Digest" // the blob's identity
	headerUnique  = "X-Skimmer-Unique" // "true" if it is of this download alone
	headerSize    = "X-Skimmer-Size"   // bytes of the whole

	trailerError  = "X-Skimmer-Error" // kind and text of why the body ended early
	trailerLocal  = "X-Skimmer-Local" // where the bytes came from
	trailerPeers  = "X-Skimmer-Peers"
	trailerOrigin = "X-Skimmer-Origin"
)

// serveFile answers GET and HEAD of /v1/file as a file server does, with what
// the url names: whole, or one range of it.
func (p *Peer) serveFile(w http.ResponseWriter, req *http.Request) {
	begun := time.Now()
	name, err := fileName(req)
	if err != nil {
		p.answer(w, nil, err)
		return
	}
	var traffic blob.Traffic
	ctx, ref, meta, src, err := p.find(blob.WithTraffic(req.Context(), &traffic), name)
	if err != nil {
		p.answer(w, nil, err)
		return
	}
	b, err := src.Open(ctx, ref)
	if err != nil {
		p.answer(w, nil, err)
		return
	}
	defer func() { _ = b.Close() }() // nothing was written through it
	ref.Size = b.Size()
	d := download{p: p, ref: ref, meta: meta, traffic: &traffic, begun: begun, keep: req.URL.Query().Get("keep") == "true"}
	d.serve(ctx, w, req, b)
}

// fileName reads what a request asks for.
func fileName(req *http.Request) (FileName, error) {
	q := req.URL.Query()
	name := FileName{URL: q.Get("url"), Tag: q.Get("tag"), Digest: digest.Digest(q.Get("digest")), Header: make(http.Header)}
	for _, line := range req.Header.Values(headerForward) {
		if err := web.ParseHeader(name.Header, line); err != nil {
			return FileName{}, err
		}
	}
	if name.Digest != "" {
		return name, blob.CheckDigest(name.Digest)
	}
	return name, nil
}

// download is one answer that brings a file.
type download struct {
	p       *Peer
	ref     blob.Ref
	meta    web.Meta
	traffic *blob.Traffic
	begun   time.Time
	keep    bool          // nobody wants the bytes, but that they are here
	kept    time.Duration // from begun on until they were; 0 as long as they are not
}

func (d *download) serve(ctx context.Context, w http.ResponseWriter, req *http.Request, b blob.Blob) {
	r, status := blob.Range{Len: d.ref.Size}, http.StatusOK
	if value := req.Header.Get("Range"); value != "" && (req.Header.Get("If-Range") == "" || req.Header.Get("If-Range") == d.etag()) {
		r, status = parseFileRange(value, d.ref.Size)
	}
	if status == http.StatusRequestedRangeNotSatisfiable {
		w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(d.ref.Size, 10))
		d.p.answerWith(w, status, blob.Errorf(blob.Invalid, "read %v: the range is not in its %d bytes", d.ref, d.ref.Size))
		return
	}
	if h := d.handing(req, b, r); h != nil {
		d.headers(w.Header(), r, status)
		w.Header().Set(headerStatus, strconv.Itoa(status))
		h.serve(ctx, w)
		return
	}
	if d.keep {
		d.p.answer(w, nil, blob.Errorf(blob.Invalid, "keep %v: it is of no version that anybody will find again", d.ref))
		return
	}
	var rc io.ReadCloser = http.NoBody
	if req.Method != http.MethodHead {
		// What fails before the first byte has an answer of its own.
		var err error
		if rc, err = b.ReadRange(ctx, r); err != nil {
			d.p.answer(w, nil, err)
			return
		}
	}
	defer func() { _ = rc.Close() }() // how it ended is known by then
	h := w.Header()
	d.headers(h, r, status)
	if req.Method == http.MethodHead {
		h.Set("Content-Length", strconv.FormatInt(r.Len, 10))
		w.WriteHeader(status)
		return
	}
	trailers := strings.Contains(req.Header.Get("TE"), "trailers")
	if trailers {
		h.Set("Trailer", strings.Join([]string{trailerError, trailerLocal, trailerPeers, trailerOrigin}, ", "))
	} else {
		h.Set("Content-Length", strconv.FormatInt(r.Len, 10))
	}
	w.WriteHeader(status)
	d.send(w, rc, trailers)
}

// headers sets those of an answer with r.
func (d *download) headers(h http.Header, r blob.Range, status int) {
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", d.etag())
	h.Set("Content-Type", contentType(d.meta.ContentType))
	h.Set(headerDigest, d.ref.Digest.String())
	h.Set(headerSize, strconv.FormatInt(d.ref.Size, 10))
	if d.meta.Unique {
		h.Set(headerUnique, "true")
	}
	if status == http.StatusPartialContent {
		h.Set("Content-Range", "bytes "+r.String()+"/"+strconv.FormatInt(d.ref.Size, 10))
	}
}

func (d *download) etag() string { return `"` + d.ref.Digest.String() + `"` }

// send sends the body, and how it ended.
func (d *download) send(w http.ResponseWriter, rc io.Reader, trailers bool) {
	to := &bodyWriter{w: w}
	n, err := io.Copy(to, rc)
	if to.err != nil {
		err = blob.Errorf(blob.Canceled, "send: %w", to.err)
	}
	if trailers {
		h := w.Header()
		h.Set(trailerLocal, strconv.FormatInt(d.traffic.Local.Load(), 10))
		h.Set(trailerPeers, strconv.FormatInt(d.traffic.Peers.Load(), 10))
		h.Set(trailerOrigin, strconv.FormatInt(d.traffic.Origin.Load(), 10))
		if err != nil {
			h.Set(trailerError, blob.KindOf(err).Error()+": "+oneLine(err.Error()))
		}
	}
	d.log(n, err)
}

// bodyWriter tells a client that went away from a source that failed.
type bodyWriter struct {
	w   io.Writer
	err error
}

func (b *bodyWriter) Write(p []byte) (int, error) {
	n, err := b.w.Write(p)
	b.err = err
	return n, err
}

// log writes the line of the download log.
func (d *download) log(n int64, err error) {
	host, peer := d.p.names()
	log := d.p.log.With("host_id", host, "task_id", d.ref.Digest, "peer_id", peer, "from", d.ref.Place(), "bytes", n,
		"local", d.traffic.Local.Load(), "peers", d.traffic.Peers.Load(), "origin", d.traffic.Origin.Load(), "duration", time.Since(d.begun))
	switch {
	case err == nil:
		log.Info("download task succeeded")
	case blob.KindOf(err) == blob.Canceled:
		log.Info("download task canceled")
	default:
		log.Error("download task failed", "error", err)
	}
}

// names returns what the download log calls this machine and this peer.
func (p *Peer) names() (host, peer string) {
	if p.member != nil {
		return p.member.cfg.Hostname, string(p.member.id)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host, host + "-" + strconv.Itoa(os.Getpid())
}

func contentType(known string) string {
	if known == "" {
		return "application/octet-stream"
	}
	return known
}

// oneLine makes text fit for a header.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
}

// parseFileRange reads the value of a Range header for a file of size bytes,
// and returns the status that an answer has. Several ranges are answered with
// the whole file, as RFC 9110 allows.
func parseFileRange(value string, size int64) (blob.Range, int) {
	set, status := ranges.Parse(value, size)
	switch {
	case len(set) == 1:
		return set[0], status
	case len(set) > 1:
		status = http.StatusOK
	}
	return blob.Range{Len: size}, status
}

// digits reads a number that consists of digits alone.
func digits(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}
