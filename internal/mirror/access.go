package mirror

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// repo names a repository at the host of a registry's API.
type repo struct{ host, name string }

// hash stands for an Authorization header. It is keyed with what only this
// process knows, so that a table of them tells nothing.
type hash [sha256.Size]byte

// reader is somebody who may read a repository.
type reader struct {
	repo repo
	who  hash
}

// item is what a repository has. A manifest's digest is not that of a blob to
// a registry.
type item struct {
	repo   repo
	what   what
	digest digest.Digest
}

// member is what is known of an item.
type member struct {
	at   time.Time // when the upstream last said so
	size int64     // or blob.SizeUnknown
}

// Bounds of the tables: some 20 MiB if all are full.
const (
	maxReaders = 8 << 10
	maxMembers = 64 << 10
	maxHosts   = 1 << 10
	// maxVouched is how many descriptors of one manifest are remembered; one
	// with more must not push out everything else.
	maxVouched = 1 << 10
)

// restful is how long an upstream that did not answer is not asked again about
// what an earlier answer covers: each such request would wait for its limit.
const restful = 5 * time.Second

// access remembers whom upstreams let read what.
type access struct {
	// Constant after newAccess.
	ttl, grace time.Duration
	salt       []byte
	readers    *table[reader, time.Time] // when they were last let
	members    *table[item, member]
	away       *table[string, time.Time] // hosts that could not be asked, and when

	mu     sync.Mutex // guards asking
	asking map[question]*asked
}

func newAccess(ttl, grace time.Duration) *access {
	a := &access{
		ttl: ttl, grace: grace, salt: make([]byte, 32), asking: make(map[question]*asked),
		readers: newTable[reader, time.Time](maxReaders), members: newTable[item, member](maxMembers), away: newTable[string, time.Time](maxHosts),
	}
	_, _ = rand.Read(a.salt) // it does not fail
	return a
}

// hash returns what stands for a header. Nobody outside sees it, so that it
// can be continued does not matter.
func (a *access) hash(text string) hash {
	return sha256.Sum256(append(a.salt[:len(a.salt):len(a.salt)], text...))
}

// within returns what is known of an item, if both it and its reader were
// accepted no longer than life ago.
func (a *access) within(life time.Duration, r reader, i item) (member, bool) {
	let, ok := a.readers.get(r)
	if !ok || time.Since(let) >= life {
		return member{}, false
	}
	m, ok := a.members.get(i)
	return m, ok && time.Since(m.at) < life
}

// accepted notes that an upstream let somebody read an item.
func (a *access) accepted(r reader, i item, size int64) member {
	now := time.Now()
	m := member{now, size}
	if old, ok := a.members.get(i); ok && size == blob.SizeUnknown {
		m.size = old.size
	}
	a.readers.put(r, now)
	a.members.put(i, m)
	a.away.remove(r.repo.host)
	return m
}

// refused notes what an upstream's refusal says of earlier answers.
func (a *access) refused(r reader, i item, status int) {
	switch exchange.StatusKind(status) {
	case blob.Unauthorized, blob.Forbidden:
		a.readers.remove(r)
	case blob.NotFound:
		a.members.remove(i)
	}
}

// question is what an upstream is asked; who ask the same wait for one answer.
type question struct {
	reader reader
	item   item
}

type asked struct {
	done   chan struct{} // closed when what follows is set
	member member
	err    error
}

// refusal is the error of an answer that was no. It is for the client.
type refusal struct {
	error
	status int
	header http.Header
}

func (r *refusal) Unwrap() error { return r.error }

// may finds out whether the request's client may read what it asks for, and
// what is known of that: from memory, from the upstream, or, where that cannot
// tell, from an older memory.
//
// Errors: a refusal, with the upstream's status, or what kept it from
// answering.
func (r *request) may(ctx context.Context) (member, error) {
	a := r.m.access
	q := question{reader{r.to.repo(), r.who}, item{r.to.repo(), r.target.what, r.target.digest}}
	if m, ok := a.within(a.ttl, q.reader, q.item); ok {
		return m, nil
	}
	graced, fallback := a.within(a.grace, q.reader, q.item)
	if fallback && a.isAway(r.to.host) {
		r.m.stats.Graced.Add(1)
		return graced, nil
	}
	m, err := a.share(ctx, q, func() (member, error) { return r.ask(ctx, q) })
	a.noteAway(r.to.host, err)
	if fallback && err != nil && blob.KindOf(err).Temporary() {
		r.m.stats.Graced.Add(1)
		r.m.log.Debug("an upstream that is away let this client read before", "upstream", r.to.host, "path", r.target.String(), "error", err)
		return graced, nil
	}
	return m, err
}

// share has ask answered as once does. What a manifest has vouched for, nobody
// asks about who waits for the answer to the same client about something else in
// the repository: snapshotters begin all layers at once, with a token of their own.
func (a *access) share(ctx context.Context, q question, ask func() (member, error)) (member, error) {
	if m, ok := a.members.get(q.item); !ok || time.Since(m.at) >= a.ttl {
		return a.once(ctx, q, ask)
	}
	mine := false
	m, err := a.once(ctx, question{reader: q.reader}, func() (member, error) {
		mine = true
		return ask()
	})
	if mine || err != nil && ctx.Err() != nil {
		return m, err
	}
	if m, ok := a.within(a.ttl, q.reader, q.item); ok {
		return m, nil
	}
	return a.once(ctx, q, ask) // what the other was told need not go for this
}

// noteAway notes that a host could not be asked, if that is what err says.
func (a *access) noteAway(host string, err error) {
	if err != nil && blob.KindOf(err).Temporary() {
		a.away.put(host, time.Now())
	}
}

// isAway reports whether a host could not be asked a moment ago.
func (a *access) isAway(host string) bool {
	at, ok := a.away.get(host)
	return ok && time.Since(at) < restful
}

// once has ask answered once for all who ask q meanwhile. Who asks and goes
// away leaves the question to the next.
func (a *access) once(ctx context.Context, q question, ask func() (member, error)) (member, error) {
	for {
		a.mu.Lock()
		other, ok := a.asking[q]
		if !ok {
			mine := &asked{done: make(chan struct{})}
			a.asking[q] = mine
			a.mu.Unlock()
			mine.member, mine.err = ask()
			a.mu.Lock()
			delete(a.asking, q)
			a.mu.Unlock()
			close(mine.done)
			return mine.member, mine.err
		}
		a.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return member{}, exchange.Ended(ctx)
		}
		if other.err == nil || blob.KindOf(other.err) != blob.Canceled {
			return other.member, other.err
		}
	}
}

// ask asks the upstream, with the client's authorization.
func (r *request) ask(ctx context.Context, q question) (member, error) {
	r.m.stats.Asked.Add(1)
	resp, err := r.send(ctx, http.MethodHead, r.askHeader(), "")
	if err != nil {
		return member{}, err
	}
	exchange.Discard(resp)
	if resp.StatusCode != http.StatusOK && r.target.what == aBlob && r.unclear(resp) {
		header := r.askHeader()
		header.Set("Range", "bytes=0-0")
		if resp, err = r.send(ctx, http.MethodGet, header, ""); err != nil {
			return member{}, err
		}
		resp.Body.Close()
	}
	size, ok := sizeIn(resp)
	if !ok {
		r.m.access.refused(q.reader, q.item, resp.StatusCode)
		kind := exchange.StatusKind(resp.StatusCode)
		return member{}, &refusal{blob.Errorf(kind, "%s: %s", r.to.host, exchange.StatusText(resp.StatusCode)), resp.StatusCode, resp.Header}
	}
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); d.Validate() == nil && d.Algorithm() == q.item.digest.Algorithm() && d != q.item.digest {
		return member{}, blob.Errorf(blob.Corrupt, "%s: asked for %v, it answers for %v", r.to.host, q.item.digest, d)
	}
	return r.m.access.accepted(q.reader, q.item, size), nil
}

func (r *request) askHeader() http.Header {
	h := make(http.Header)
	for _, key := range []string{"Accept", "User-Agent"} {
		if v := r.req.Header.Values(key); len(v) > 0 {
			h[key] = v
		}
	}
	return h
}

// unclear reports whether an answer to HEAD leaves open what GET would get:
// servers that do not know HEAD say so in many ways, and the address of a
// storage server may be signed for GET alone.
func (r *request) unclear(resp *http.Response) bool {
	kind := exchange.StatusKind(resp.StatusCode)
	if resp.Request.URL.Host != r.to.host {
		return !kind.Temporary()
	}
	return kind == blob.Invalid || resp.StatusCode == http.StatusNotImplemented
}

// sizeIn returns whether an answer brings something, and how long that is as a
// whole, or blob.SizeUnknown.
func sizeIn(resp *http.Response) (int64, bool) {
	size := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		// An empty blob has no first byte.
		c, err := exchange.ParseContentRange(resp.Header.Get("Content-Range"))
		if size = c.Total; err != nil {
			size = blob.SizeUnknown
		}
		if resp.StatusCode != http.StatusPartialContent && size != 0 {
			return 0, false
		}
	default:
		return 0, false
	}
	if e := resp.Header.Get("Content-Encoding"); size < 0 || e != "" && e != "identity" {
		size = blob.SizeUnknown
	}
	return size, true
}

// vouch notes what a manifest lists and brings, which the upstream has just let this
// client read in this repository: who may read the one may read the others.
// What has addresses of its own (descriptors with urls) need not be in the
// repository, so nothing is said of it.
func (r *request) vouch(data []byte, at time.Time) {
	n := 0
	for _, d := range listed(data) {
		if d.Digest.Validate() != nil || d.Size < 0 || len(d.URLs) > 0 {
			continue
		}
		if n++; n > maxVouched {
			return
		}
		i, m := item{r.to.repo(), d.what, d.Digest}, member{at, d.Size}
		if old, ok := r.m.access.members.get(i); ok {
			if old.size != blob.SizeUnknown {
				m.size = old.size // the upstream's own word
			}
			if old.at.After(at) {
				m.at = old.at
			}
		}
		r.m.access.members.put(i, m)
		if d.what == aBlob {
			r.m.embed(d.Descriptor)
		}
	}
}

// mediaType returns the type of an answer, as it may be sent on.
func mediaType(h http.Header) string {
	t := h.Get("Content-Type")
	if _, _, err := mime.ParseMediaType(t); err != nil || len(t) > maxType {
		return ""
	}
	return t
}

const maxType = 255

// refusedWith returns the answer that an error of may is.
func refusedWith(err error) (*refusal, bool) {
	var f *refusal
	ok := errors.As(err, &f)
	return f, ok
}
