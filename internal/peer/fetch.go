package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Part says which part of a file is wanted; the zero Part is everything.
type Part struct {
	// Off is the first byte, Len how many are wanted; a Len of 0 is all there
	// are from Off on.
	Off, Len int64
	// IfDigest, where set, is the identity that the file must still have. If it
	// has another, all of it is answered.
	IfDigest digest.Digest
}

// whole reports whether p is everything in any case.
func (p Part) whole() bool { return p.Off == 0 && p.Len == 0 }

// header returns the value of the Range header for p.
func (p Part) header() string {
	if p.Len == 0 {
		return fmt.Sprintf("bytes=%d-", p.Off)
	}
	return "bytes=" + blob.Range{Off: p.Off, Len: p.Len}.String()
}

// File is a file that is being fetched. It is an io.ReadCloser, used by one
// goroutine at a time: reading ends with an error that has a kind where not
// all came, and with io.EOF where it did.
type File struct {
	// Digest is its identity, Size the length of the whole in bytes. Unique is
	// whether nobody will ever find the same version again.
	Digest digest.Digest
	Size   int64
	Unique bool
	// Range is which part of it this is.
	Range blob.Range
	// Traffic says, once all was read, where the bytes came from.
	Traffic blob.Traffic
	// Verified says, once all was read, that the peer has compared all of it with
	// its digest. Kept is how long after the request all of it was in the peer's
	// store; 0 if it is not known to be.
	Verified bool
	Kept     time.Duration

	io.ReadCloser
}

// OpenFile fetches a part of a file through the running peer. Errors: those of
// Files.Find, and Invalid for a part that begins behind the file.
func (c *Client) OpenFile(ctx context.Context, name FileName, part Part) (*File, error) {
	f := new(File)
	for _, upgrade := range []string{upgradeFile, ""} {
		req, err := c.fileRequest(ctx, name, part, false)
		if err != nil {
			return nil, err
		}
		if upgrade == "" {
			req.Header.Del("Upgrade")
		}
		resp, h, err := c.ask(ctx, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols && len(h.l.files) != 1 {
			_ = resp.Body.Close() // this process has no descriptor to spare
			continue
		}
		if err := c.file(f, resp, h); err != nil {
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("ask the peer on %s: %w", c.socket, errNoDescriptor)
}

var errNoDescriptor = errors.New("it sent no descriptor, though none was asked for")

// fileRequest returns a request for a part of a file.
func (c *Client) fileRequest(ctx context.Context, name FileName, part Part, keep bool) (*http.Request, error) {
	q := url.Values{"url": {name.URL}}
	if name.Tag != "" {
		q.Set("tag", name.Tag)
	}
	if name.Digest != "" {
		q.Set("digest", name.Digest.String())
	}
	if keep {
		q.Set("keep", "true")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer/v1/file?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("TE", "trailers")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", upgradeFile)
	for key, values := range name.Header {
		for _, value := range values {
			req.Header.Add(headerForward, key+": "+value)
		}
	}
	if !part.whole() {
		req.Header.Set("Range", part.header())
		if part.IfDigest != "" {
			req.Header.Set("If-Range", `"`+part.IfDigest.String()+`"`)
		}
	}
	return req, nil
}

// file makes f what an answer says. It closes the answer if it fails.
func (c *Client) file(f *File, resp *http.Response, h *handed) error {
	err := c.head(f, resp)
	switch {
	case err != nil:
		_ = resp.Body.Close() // the failure is what counts
	case resp.StatusCode == http.StatusSwitchingProtocols:
		h.f, h.off, h.have = f, f.Range.Off, f.Range.Off
		f.ReadCloser = h
	default:
		f.ReadCloser = &answerReader{c: c, f: f, resp: resp, left: f.Range.Len}
	}
	return err
}

// head reads the head of an answer.
func (c *Client) head(f *File, resp *http.Response) error {
	status := resp.StatusCode
	if status == http.StatusSwitchingProtocols {
		status, _ = strconv.Atoi(resp.Header.Get(headerStatus))
	}
	if status != http.StatusOK && status != http.StatusPartialContent {
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxControlBody))
		if err != nil {
			return fmt.Errorf("read the answer of the peer on %s: %w", c.socket, err)
		}
		return remoteError(status, data)
	}
	f.Digest, f.Unique = digest.Digest(resp.Header.Get(headerDigest)), resp.Header.Get(headerUnique) == "true"
	size, ok := digits(resp.Header.Get(headerSize))
	f.Size, f.Range = size, blob.Range{Len: size}
	if status == http.StatusPartialContent {
		run, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "/")
		f.Range, status = parseFileRange("bytes="+run, size)
		ok = ok && status == http.StatusPartialContent
	}
	if !ok || blob.CheckDigest(f.Digest) != nil {
		return fmt.Errorf("read the answer of the peer on %s: it is not that of a peer of this version", c.socket)
	}
	return nil
}

// answerReader reads an answer's body and makes of its trailers what they
// mean.
type answerReader struct {
	c    *Client
	f    *File
	resp *http.Response
	left int64
}

func (r *answerReader) Read(p []byte) (int, error) {
	n, err := r.resp.Body.Read(p)
	r.left -= int64(n)
	switch {
	case err == io.EOF:
		return n, r.end()
	case err != nil:
		return n, blob.Errorf(blob.Unavailable, "read the answer of the peer on %s: %w", r.c.socket, err)
	}
	return n, nil
}

// end is called when the body is over, with trailers.
func (r *answerReader) end() error {
	t := r.resp.Trailer
	for key, counter := range map[string]interface{ Store(int64) }{
		trailerLocal: &r.f.Traffic.Local, trailerPeers: &r.f.Traffic.Peers, trailerOrigin: &r.f.Traffic.Origin,
	} {
		n, _ := strconv.ParseInt(t.Get(key), 10, 64)
		counter.Store(n)
	}
	if why := t.Get(trailerError); why != "" {
		for _, k := range blob.Kinds() {
			if text, ok := strings.CutPrefix(why, k.Error()+": "); ok {
				return blob.Errorf(k, "%s", text)
			}
		}
		return errors.New(why)
	}
	if r.left != 0 {
		return blob.Errorf(blob.Unavailable, "read the answer of the peer on %s: it ends %d bytes early", r.c.socket, r.left)
	}
	return io.EOF
}

func (r *answerReader) Close() error { return r.resp.Body.Close() }

// OpenFile fetches a part of a file without a peer: from where it is, keeping
// nothing. Errors: as those of Client.OpenFile.
func (f *Files) OpenFile(ctx context.Context, name FileName, part Part) (*File, error) {
	file := new(File)
	ctx, ref, meta, err := f.Find(blob.WithTraffic(ctx, &file.Traffic), name)
	if err != nil {
		return nil, err
	}
	b, err := f.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	file.Digest, file.Size, file.Unique = ref.Digest, b.Size(), meta.Unique
	file.Range = blob.Range{Len: file.Size}
	if !part.whole() && (part.IfDigest == "" || part.IfDigest == ref.Digest) {
		var status int
		if file.Range, status = parseFileRange(part.header(), file.Size); status != http.StatusPartialContent {
			_ = b.Close() // nothing was read
			return nil, blob.Errorf(blob.Invalid, "read %v: the range is not in its %d bytes", ref, file.Size)
		}
	}
	rc, err := b.ReadRange(ctx, file.Range)
	_ = b.Close() // the reader has what it needs
	file.ReadCloser = rc
	return file, err
}
