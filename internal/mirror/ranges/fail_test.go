package ranges_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/mirror/ranges"
)

// backwards delivers several ranges last first, a few bytes at a time.
type backwards struct{ blob.Blob }

func (b backwards) ReadRanges(ctx context.Context, set []blob.Range, land blob.Land) error {
	buf := make([]byte, 10<<10)
	for i, r := range slices.Backward(set) {
		if err := blob.LandRange(ctx, b.Blob, r, buf, func(off int64, p []byte) error { return land(i, off, p) }); err != nil {
			return err
		}
	}
	return nil
}

// scripted is a blob whose readers are made by read.
type scripted struct {
	size int64
	read func(ctx context.Context, r blob.Range) (io.Reader, error)
}

func (s scripted) Size() int64  { return s.size }
func (s scripted) Close() error { return nil }

func (s scripted) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	from, err := s.read(ctx, r)
	return io.NopCloser(from), err
}

// failing is a reader that fails with err.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// zeros is a reader without an end that does not write by itself.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// after returns a blob of 1000 bytes whose readers deliver n bytes of each
// range and then fail with err, or end where it is nil.
func after(n int64, err error) blob.Blob {
	return scripted{1000, func(_ context.Context, _ blob.Range) (io.Reader, error) {
		var end io.Reader = failing{err}
		if err == nil {
			end = strings.NewReader("")
		}
		return io.MultiReader(io.LimitReader(zeros{}, n), end), nil
	}}
}

var requests = map[string]http.Header{
	"whole": {}, "range": {"Range": {"bytes=100-199"}}, "ranges": {"Range": {"bytes=100-199,300-399"}}, "unsorted": {"Range": {"bytes=300-399,100-199"}},
}

func TestNothingIsWrittenBeforeTheFirstByte(t *testing.T) {
	for name, h := range requests {
		for what, c := range map[string]struct {
			b    blob.Blob
			kind blob.Kind
		}{
			"refused": {scripted{1000, func(context.Context, blob.Range) (io.Reader, error) {
				return nil, blob.Errorf(blob.Forbidden, "read: no")
			}}, blob.Forbidden},
			"failed":   {after(0, blob.Errorf(blob.Unavailable, "read: away")), blob.Unavailable},
			"empty":    {after(0, nil), blob.Corrupt},
			"too much": {scripted{1000, func(context.Context, blob.Range) (io.Reader, error) { return bytes.NewReader(make([]byte, 1001)), nil }}, blob.Corrupt},
		} {
			rec := httptest.NewRecorder()
			sent, err := ranges.Serve(rec, request(t, http.MethodGet, h), ranges.Content{Blob: c.b, ETag: `"a"`, Header: http.Header{"X-More": {"x"}}})
			if !errors.Is(err, c.kind) || sent != (ranges.Sent{}) || len(rec.Header()) > 0 || rec.Body.Len() > 0 {
				t.Errorf("%s, %s: %+v, %v, header %v", name, what, sent, err, rec.Header())
			}
		}
	}
	rec := httptest.NewRecorder()
	sent, err := ranges.Serve(rec, request(t, http.MethodPut, http.Header{}), ranges.Content{Blob: after(0, nil)})
	if !errors.Is(err, blob.Invalid) || sent.Status != 0 || len(rec.Header()) > 0 {
		t.Errorf("a PUT: %+v, %v", sent, err)
	}
}

// handler serves b as the doc of Serve says, and tells how it went.
func handler(b blob.Blob, ended chan<- error) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		sent, err := ranges.Serve(w, req, ranges.Content{Blob: b})
		ended <- err
		switch {
		case err != nil && sent.Status == 0:
			http.Error(w, err.Error(), http.StatusBadGateway)
		case err != nil:
			panic(http.ErrAbortHandler)
		}
	}
}

// ask makes a request to a server of h, and leaves the body to read.
func ask(t *testing.T, ctx context.Context, h http.Handler, header http.Header) *http.Response {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestFailuresMidwayAreSeen(t *testing.T) {
	for name, h := range requests {
		for what, c := range map[string]struct {
			b    blob.Blob
			kind blob.Kind
		}{
			"failed": {after(50, blob.Errorf(blob.Unavailable, "read: away")), blob.Unavailable},
			"ended":  {after(50, nil), blob.Corrupt},
			"too much": {scripted{1000, func(context.Context, blob.Range) (io.Reader, error) {
				return io.MultiReader(strings.NewReader("x"), zeros{}), nil
			}}, blob.Corrupt},
		} {
			ended := make(chan error, 1)
			resp := ask(t, t.Context(), handler(c.b, ended), h)
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil || n == 0 {
				t.Errorf("%s, %s: the client got %d bytes, and %v", name, what, n, err)
			}
			if err := <-ended; !errors.Is(err, c.kind) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// TestBytesArePassedOn has a source that waits, for the client, with all but
// the first bytes.
func TestBytesArePassedOn(t *testing.T) {
	for name, h := range requests {
		more := make(chan struct{})
		b := scripted{1000, func(_ context.Context, r blob.Range) (io.Reader, error) {
			return io.MultiReader(strings.NewReader("first"), waiting{more}, io.LimitReader(zeros{}, r.Len-5)), nil
		}}
		ended := make(chan error, 1)
		resp := ask(t, t.Context(), handler(b, ended), h)
		var got []byte
		for p := make([]byte, 1); !bytes.HasSuffix(got, []byte("first")); got = append(got, p...) {
			if _, err := io.ReadFull(resp.Body, p); err != nil {
				t.Fatalf("%s: after %q: %v", name, got, err)
			}
		}
		close(more)
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || int64(len(got))+n != resp.ContentLength {
			t.Errorf("%s: %d bytes of %d, %v", name, int64(len(got))+n, resp.ContentLength, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// waiting is a reader that ends when the channel is closed.
type waiting struct{ until <-chan struct{} }

func (w waiting) Read([]byte) (int, error) {
	<-w.until
	return 0, io.EOF
}

// TestClientGoesAway has one that leaves while the source has nothing, and one
// that leaves while it has.
func TestClientGoesAway(t *testing.T) {
	for name, b := range map[string]blob.Blob{
		"waiting": scripted{1 << 40, func(ctx context.Context, _ blob.Range) (io.Reader, error) {
			return io.MultiReader(strings.NewReader("first"), waiting{ctx.Done()}, failing{context.Canceled}), nil
		}},
		"sending": scripted{1 << 40, func(context.Context, blob.Range) (io.Reader, error) { return zeros{}, nil }},
	} {
		for _, h := range []http.Header{{}, {"Range": {"bytes=0-99999999999,200000000000-299999999999"}}} {
			ctx, leave := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			resp := ask(t, ctx, handler(b, ended), h)
			if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			leave()
			if err := <-ended; blob.KindOf(err) != blob.Canceled {
				t.Errorf("%s, %v: %v", name, h, err)
			}
		}
	}
}

// stuck is a client that takes nothing until it is closed.
type stuck struct {
	*httptest.ResponseRecorder
	until chan struct{}
}

func (s stuck) Write(p []byte) (int, error) {
	<-s.until
	return len(p), nil
}

// TestSlowClientBoundsMemory has a client that takes nothing and a source
// that gives all it is asked for, in the worst order.
func TestSlowClientBoundsMemory(t *testing.T) {
	const size, each = 64 << 20, 1 << 20
	var set []string
	for off := int64(0); off < size; off += 2 * each {
		set = append(set, blob.Range{Off: off, Len: each}.String())
	}
	for name, order := range map[string]func(blob.Blob) blob.Blob{
		"forwards":  func(b blob.Blob) blob.Blob { return b },
		"backwards": func(b blob.Blob) blob.Blob { return backwards{b} },
	} {
		synctest.Test(t, func(t *testing.T) {
			var given int64
			b := scripted{size, func(_ context.Context, r blob.Range) (io.Reader, error) {
				return &counted{io.LimitReader(zeros{}, r.Len), &given}, nil
			}}
			w := stuck{httptest.NewRecorder(), make(chan struct{})}
			ended := make(chan error, 1)
			go func() {
				sent, err := ranges.Serve(w, request(t, http.MethodGet, http.Header{"Range": {"bytes=" + strings.Join(set, ",")}}), ranges.Content{Blob: order(b)})
				if err == nil && sent.Bytes != size/2 {
					err = errors.New("not all was sent")
				}
				ended <- err
			}()
			synctest.Wait()
			if given > 5<<20 {
				t.Errorf("%s: %d bytes were read for a client that takes none", name, given)
			}
			close(w.until)
			if err := <-ended; err != nil || given != size/2 {
				t.Errorf("%s: %d bytes were read in all, %v", name, given, err)
			}
		})
	}
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += int64(n)
	return n, err
}

// TestSeveralRangesAreAskedForTogether counts at the source.
func TestSeveralRangesAreAskedForTogether(t *testing.T) {
	b := &asked{Blob: open(t, blobtest.Bytes(1, 16<<20))}
	var set []string
	for i := range int64(300) {
		set = append(set, blob.Range{Off: i * 40 << 10, Len: 10 << 10}.String())
	}
	resp := serve(t, http.MethodGet, http.Header{"Range": {"bytes=" + strings.Join(set, ",")}}, ranges.Content{Blob: b})
	if got := partsOf(t, resp); len(got) != 300 || b.times != 1 {
		t.Errorf("%d parts were asked for in %d times", len(got), b.times)
	}
}

// asked counts the times several ranges were asked for.
type asked struct {
	blob.Blob
	times int
}

func (a *asked) ReadRanges(ctx context.Context, set []blob.Range, land blob.Land) error {
	a.times++
	return blob.ReadRanges(ctx, a.Blob, set, land)
}
