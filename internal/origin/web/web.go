// Package web reads files from any HTTP server: it makes blobs of plain URLs.
// It is a [blob.Source] beside that of package origin, with the same limits of
// time and the same retries.
//
// Identity. What a URL names changes, so a blob is a version of it: its
// identity is derived from the URL, a tag that users may choose to keep
// downloads apart, and what the server calls the version, which is its ETag,
// or else its Last-Modified with the length. Parameters of the URL's query
// that are signatures (of S3, GCS, Azure and CloudFront) do not count. Who
// knows a digest of the content can have that as identity instead and then
// shares with everybody who has the same content. Where the server names no
// version, the identity is one that nobody else will ever have.
//
// Trust. Every answer must name the version that the blob is: when the file
// changed at the server, reading fails as Corrupt, and bytes of two versions
// never come together. Answers of servers that name no version are all of one
// request. Bytes are those the server sent, never unpacked. Headers that the
// caller brings go to the URL's host and, but for harmless ones, not to another
// it redirects to; they appear in no log and no error.
//
// Servers that do not do ranges, or do not say how long the file is, or name
// no version, are asked for the whole once and it is put into a temporary
// file, from which ranges are read as they arrive; without a length, opening
// takes until all has arrived.
package web

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// Config says how files are read. Client is required.
type Config struct {
	// Client makes the requests; origin.Origin.Exchange returns one.
	Client *exchange.Client
	// TempDir is where temporary files are made, which have no name while they
	// are used. Default: os.TempDir.
	TempDir string
	// Logger receives what an operator may want to know. Default: discard.
	Logger *slog.Logger
}

// Source is a blob.Source over HTTP and HTTPS URLs. Its methods are safe for
// concurrent use. It owns nothing that must be closed but the blobs it gives
// out.
type Source struct {
	// Constant after New.
	x    *exchange.Client
	temp string
	log  *slog.Logger

	mu     sync.Mutex             // guards the rest
	spools map[spoolKey]*spool    // those in use
	noted  map[string]bool        // what was logged, so that it is said once
	spent  map[digest.Digest]bool // unique identities whose bytes were asked for
}

// New returns a Source. It makes no connection.
func New(cfg Config) *Source {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.TempDir == "" {
		cfg.TempDir = os.TempDir()
	}
	return &Source{x: cfg.Client, temp: cfg.TempDir, log: cfg.Logger, spools: make(map[spoolKey]*spool), noted: make(map[string]bool), spent: make(map[digest.Digest]bool)}
}

// maxNoted bounds what is remembered to have been said, maxSpent the unique
// identities that are.
const (
	maxNoted = 1000
	maxSpent = 10000
)

// once logs a warning about a host, the first time.
func (s *Source) once(host, text string) {
	s.mu.Lock()
	first := !s.noted[host+" "+text] && len(s.noted) < maxNoted
	s.noted[host+" "+text] = s.noted[host+" "+text] || first
	s.mu.Unlock()
	if first {
		s.log.Warn(text, "host", host)
	}
}

// Options say which version at a URL is meant, and what it is called.
type Options struct {
	// Tag keeps blobs apart that have the same URL and version.
	Tag string
	// Digest is that of the content, where it is known; the blob then has it as
	// identity, and Tag means nothing.
	Digest digest.Digest
	// Ignore lists parameters of the URL's query, beside those of signatures,
	// that do not tell files apart. They are sent all the same.
	Ignore []string
}

// Meta is what a server says of a file.
type Meta struct {
	// ContentType, ETag and LastModified are headers of the server's, or empty.
	ContentType, ETag, LastModified string
	// Ranges is whether the server sends parts of the file.
	Ranges bool
	// Unique is whether the blob's identity is of this download alone, because
	// the server names no version. Nobody will ask for it again.
	Unique bool
}

// Resolve asks the server what it has at rawURL now and returns a reference to
// that version: with a size, unless the server does not say it, and a URL that
// Open understands. The headers to send are those of WithHeader.
//
// Errors: Invalid for what is no http or https URL or brings credentials (they
// belong in a header, see SplitUser), NotFound, Unauthorized, Forbidden,
// Unavailable, Timeout, Busy.
func (s *Source) Resolve(ctx context.Context, rawURL string, o Options) (blob.Ref, Meta, error) {
	u, err := normalise(rawURL)
	if err != nil {
		return blob.Ref{}, Meta{}, err
	}
	if o.Digest != "" {
		if err := blob.CheckDigest(o.Digest); err != nil {
			return blob.Ref{}, Meta{}, err
		}
		if !blob.Verifiable(o.Digest) {
			return blob.Ref{}, Meta{}, blob.Errorf(blob.Invalid, "digest %q: is not of any content", o.Digest)
		}
	}
	n := name{url: u}
	f, err := s.probe(ctx, u, headerOf(ctx))
	if err != nil {
		return blob.Ref{}, Meta{}, explain(err, "resolve %s", n.place())
	}
	ref := blob.Ref{Digest: o.Digest, Size: f.size, MediaType: f.meta.ContentType}
	if o.Digest == "" {
		n.tag, n.ignore = o.Tag, o.Ignore
		if f.version == "" {
			n.unique = nonce()
			f.meta.Unique = true
			s.once(u.Host, "a server names no version of its files: downloads from it are not shared and not kept")
		}
		ref.Digest = n.identity(f.version)
	}
	ref.URL = n.String()
	return ref, f.meta, nil
}

// nonce returns what makes an identity that nobody else has.
func nonce() string {
	var p [16]byte
	_, _ = rand.Read(p[:]) // never fails
	return hex.EncodeToString(p[:])
}

// facts are what one answer says of a file.
type facts struct {
	size    int64 // or blob.SizeUnknown
	version string
	meta    Meta
}

// probe asks for the first byte of a file, and so for all that is known of it.
// HEAD would be cheaper for some servers; signed URLs are often for GET alone.
func (s *Source) probe(ctx context.Context, u *url.URL, header http.Header) (f facts, err error) {
	err = s.x.Retry(ctx, func() (err error) {
		resp, err := s.get(ctx, u, header, "bytes=0-0")
		if err == nil && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			// An empty file has no first byte. What it is, this answer need not say.
			exchange.Discard(resp)
			resp, err = s.get(ctx, u, header, "")
		}
		if err != nil {
			return err
		}
		if f, err = read(resp, blob.SizeUnknown); err != nil {
			return err
		}
		f.meta.Ranges = resp.StatusCode == http.StatusPartialContent
		resp.Body.Close() // at most a byte is of use, and that is not kept
		return nil
	})
	return f, err
}

// read returns what an answer says of its file, known being the file's size if
// that is known; or it closes it and returns its failure.
func read(resp *http.Response, known int64) (facts, error) {
	size := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		got, err := exchange.ParseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			resp.Body.Close()
			return facts{}, blob.Errorf(blob.Corrupt, "GET %s: %w", resp.Request.URL.Host, err)
		}
		size = got.Total
	default:
		return facts{}, failed(resp)
	}
	f := facts{size: max(size, blob.SizeUnknown), meta: Meta{
		ContentType:  resp.Header.Get("Content-Type"),
		ETag:         resp.Header.Get("ETag"),
		LastModified: resp.Header.Get("Last-Modified"),
	}}
	if f.size != blob.SizeUnknown {
		known = f.size
	}
	f.version = version(f.meta.ETag, f.meta.LastModified, known)
	return f, nil
}

// Open implements blob.Source for references with a URL, those Resolve makes
// or those with a digest and a URL that somebody knows. Where ref.Size is
// known it makes no request, unless the server names no version; such a blob
// can be opened again only while it is open. The headers to send are those of
// WithHeader in ctx, for all reads.
func (s *Source) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	n, err := parseName(ref.URL)
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "open %v: %w", ref, err)
	}
	b := &openBlob{s: s, ref: ref, name: n, header: headerOf(ctx), edition: new(edition)}
	if err := b.prepare(ctx); err != nil {
		_ = b.Close() // there is nothing to lose
		return nil, explain(err, "open %v", ref)
	}
	return b, nil
}

// prepare finds out what must be known before reading.
func (b *openBlob) prepare(ctx context.Context) error {
	spooled := b.name.unique != ""
	if !spooled && b.ref.Size == blob.SizeUnknown {
		f, err := b.s.probe(ctx, b.name.url, b.header)
		if err != nil {
			return err
		}
		if err := b.check(f.version); err != nil {
			return err
		}
		b.ref.Size, spooled = f.size, f.size == blob.SizeUnknown
		if spooled {
			b.s.once(b.name.url.Host, "a server does not say how long its files are: each is fetched whole before its first byte is read")
		}
	}
	if !spooled {
		return nil
	}
	sp, err := b.spool(ctx)
	if err != nil {
		return err
	}
	defer sp.release() // the blob has it
	if b.ref.Size == blob.SizeUnknown {
		b.ref.Size, err = sp.length(ctx)
	}
	return err
}
