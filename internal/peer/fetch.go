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
	"syscall"

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

	io.ReadCloser
}

// OpenFile fetches a part of a file through the running peer. Errors: those of
// Files.Find, and Invalid for a part that begins behind the file.
func (c *Client) OpenFile(ctx context.Context, name FileName, part Part) (*File, error) {
	q := url.Values{"url": {name.URL}}
	if name.Tag != "" {
		q.Set("tag", name.Tag)
	}
	if name.Digest != "" {
		q.Set("digest", name.Digest.String())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer/v1/file?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("TE", "trailers")
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
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s: start one with: skimmer up", ErrNotRunning, c.socket)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w for this user on %s: permission denied", ErrNotRunning, c.socket)
	case err != nil:
		return nil, fmt.Errorf("ask the peer on %s: %w", c.socket, err)
	}
	f, err := c.file(resp)
	if err != nil {
		resp.Body.Close()
	}
	return f, err
}

// file reads the header of an answer.
func (c *Client) file(resp *http.Response) (*File, error) {
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxControlBody))
		if err != nil {
			return nil, fmt.Errorf("read the answer of the peer on %s: %w", c.socket, err)
		}
		return nil, remoteError(resp.StatusCode, data)
	}
	f := &File{Digest: digest.Digest(resp.Header.Get(headerDigest)), Unique: resp.Header.Get(headerUnique) == "true"}
	size, ok := digits(resp.Header.Get(headerSize))
	f.Size, f.Range = size, blob.Range{Len: size}
	if resp.StatusCode == http.StatusPartialContent {
		run, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "/")
		var status int
		f.Range, status = parseFileRange("bytes="+run, size)
		ok = ok && status == http.StatusPartialContent
	}
	if !ok || blob.CheckDigest(f.Digest) != nil {
		return nil, fmt.Errorf("read the answer of the peer on %s: it is not that of a peer of this version", c.socket)
	}
	f.ReadCloser = &answerReader{c: c, f: f, resp: resp, left: f.Range.Len}
	return f, nil
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
