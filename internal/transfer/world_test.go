package transfer

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// piece is the size of pieces of blobs in a folder.
const piece = 256 << 10

// folder is a Source of files named by digest, as a store without an origin.
type folder struct {
	dir   string
	piece int64
	// lie, where set, changes what Lend says.
	lie func(crcs []uint32)
}

func newFolder(t testing.TB) *folder { return &folder{dir: t.TempDir(), piece: piece} }

func (s *folder) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s *folder) add(t testing.TB, p []byte) blob.Ref {
	t.Helper()
	d := digest.FromBytes(p)
	if err := os.WriteFile(s.path(d), p, 0o600); err != nil {
		t.Fatal(err)
	}
	return blob.Ref{Digest: d, Size: int64(len(p))}
}

func (s *folder) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	f, err := os.Open(s.path(ref.Digest))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := &folderBlob{s: s, f: f, size: st.Size()}
	for off := int64(0); off < b.size; off += s.piece {
		sum, err := sumFile(f, off, min(off+s.piece, b.size))
		if err != nil {
			return nil, err
		}
		b.crcs = append(b.crcs, sum)
	}
	return b, nil
}

type folderBlob struct {
	s    *folder
	f    *os.File
	size int64
	crcs []uint32
}

func (b *folderBlob) Size() int64 { return b.size }

func (b *folderBlob) Close() error { return b.f.Close() }

func (b *folderBlob) Held() []blob.Range { return []blob.Range{{Len: b.size}} }

func (b *folderBlob) Lend(r blob.Range) (*os.File, int64, []uint32, bool) {
	crcs := slices.Clone(b.crcs[r.Off/b.s.piece : (r.End()-1)/b.s.piece+1])
	if b.s.lie != nil {
		b.s.lie(crcs)
	}
	return b.f, b.s.piece, crcs, true
}

func (b *folderBlob) ReadRange(_ context.Context, r blob.Range) (io.ReadCloser, error) {
	f, err := os.Open(b.f.Name())
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, r.Off, r.Len), f}, nil
}

// feed is a Source of one blob whose bytes come from read.
type feed struct {
	size int64
	open error
	read func(ctx context.Context, r blob.Range) (io.ReadCloser, error)
}

func (f *feed) Open(context.Context, blob.Ref) (blob.Blob, error) {
	if f.open != nil {
		return nil, f.open
	}
	return f, nil
}

func (f *feed) Size() int64 { return f.size }

func (f *feed) Close() error { return nil }

func (f *feed) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	return f.read(ctx, r)
}

// piped returns a feed of p whose bytes come when they are written to the
// pipe.
func piped(p []byte) (*feed, *io.PipeWriter) {
	r, w := io.Pipe()
	return &feed{size: int64(len(p)), read: func(ctx context.Context, _ blob.Range) (io.ReadCloser, error) {
		context.AfterFunc(ctx, func() { r.CloseWithError(ctx.Err()) })
		return r, nil
	}}, w
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve runs a server with cfg until the test ends.
func serve(t testing.TB, cfg ServerConfig) (*Server, string) {
	t.Helper()
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // cut what is left
		_ = s.Close(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

func connect(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = time.Minute // handshakes take processor time, which a busy machine has not
	}
	c := NewClient(cfg)
	t.Cleanup(c.Close)
	return c
}

// open opens ref at addr.
func open(t testing.TB, c *Client, addr string, ref blob.Ref) blob.Blob {
	t.Helper()
	b, err := c.Source(addr).Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// fetch returns r of b, as far as it comes.
func fetch(ctx context.Context, b blob.Blob, r blob.Range) ([]byte, error) {
	rc, err := b.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// someRef names a blob of n bytes that a feed may be.
func someRef(n int64) blob.Ref {
	return blob.Ref{Digest: digest.FromString("some blob"), Size: n}
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name   string
		client ClientConfig
		source func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref)
	}{
		{"Relayed", ClientConfig{}, inMemory},
		{"FromFiles", ClientConfig{}, inFiles},
		{"SeveralRequests", ClientConfig{MaxRange: 300_000}, inFiles},
		{"SeveralRelayed", ClientConfig{MaxRange: 300_000}, inMemory},
		{"Limited", ClientConfig{Rate: NewLimiter(1 << 30)}, inFiles},
	} {
		t.Run(c.name, func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				src, refs := c.source(t, contents)
				_, addr := serve(t, ServerConfig{Source: src})
				return connect(t, c.client).Source(addr), refs
			})
		})
	}
}

func inMemory(_ *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
	m := &blobtest.Memory{}
	var refs []blob.Ref
	for _, p := range contents {
		refs = append(refs, m.Add(p))
	}
	return m, refs
}

func inFiles(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
	s := newFolder(t)
	var refs []blob.Ref
	for _, p := range contents {
		refs = append(refs, s.add(t, p))
	}
	return s, refs
}
