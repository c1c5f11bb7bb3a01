package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// secret is the password in all tests; nothing that is printed may have it.
const secret = "s3cret-password"

var alice = Credential{Username: "alice", Password: secret}

// keys is a Keychain with one credential for everything.
type keys Credential

func (k keys) Credential(context.Context, string) (Credential, error) { return Credential(k), nil }

// logs is a log that is searched for secrets when the test ends.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer // mu guards
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newOrigin returns an Origin that is quick to retry and fails the test if it
// logs a secret.
func newOrigin(t testing.TB, change ...func(*Config)) *Origin {
	t.Helper()
	log := &logs{}
	cfg := Config{
		Keychain: keys{}, Backoff: time.Millisecond, MaxBackoff: 4 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	o, err := New(cfg)
	if err != nil {
		t.Fatalf("new origin: %v", err)
	}
	t.Cleanup(func() {
		o.Close()
		checkSecrets(t, log.String())
	})
	return o
}

func checkSecrets(t testing.TB, text string) {
	t.Helper()
	for _, bad := range []string{secret, "Signature", basicAuth(alice), "Bearer "} {
		if strings.Contains(text, bad) {
			t.Errorf("a secret (%s) is shown: %s", bad, text)
		}
	}
}

// read reads a range and returns what arrived before the error.
func read(t testing.TB, o *Origin, ref blob.Ref, r blob.Range) ([]byte, error) {
	t.Helper()
	b, err := o.Open(t.Context(), ref)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	rc, err := b.ReadRange(t.Context(), r)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestConforms(t *testing.T) {
	for _, c := range []struct {
		name string
		opts testkit.Options
	}{
		{"plain", testkit.Options{}},
		{"token", testkit.Options{Auth: testkit.TokenAuth, Private: []string{"some/repo"}}},
		{"basic", testkit.Options{Auth: testkit.BasicAuth}},
		{"redirect", testkit.Options{Redirect: true}},
		{"tls, token, redirect", testkit.Options{TLS: true, Auth: testkit.TokenAuth, Redirect: true}},
		{"no ranges", testkit.Options{Faults: []testkit.Fault{{On: testkit.BlobGet, Do: testkit.NoRanges}}}},
		{"breaks off", testkit.Options{Faults: []testkit.Fault{{On: testkit.BlobGet, Do: testkit.ShortBody, After: 300_000}}}},
		{"no lengths", testkit.Options{Faults: []testkit.Fault{
			{On: testkit.BlobGet, Do: testkit.NoLength}, {On: testkit.BlobHead, Do: testkit.NoLength}}}},
		{"storage fails at times", testkit.Options{Redirect: true, Faults: []testkit.Fault{
			{On: testkit.StorageGet, Do: testkit.Status, Status: 503, Times: 1},
			{On: testkit.StorageGet, Do: testkit.Reset, Times: 1},
			{On: testkit.BlobGet, Do: testkit.Status, Status: 429, Times: 1, RetryAfter: "0"},
			{On: testkit.StorageGet, Do: testkit.ShortBody, After: 1, Times: 1}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Users = map[string]string{alice.Username: alice.Password}
			blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				reg := testkit.NewRegistry(t, c.opts)
				o := newOrigin(t, func(cfg *Config) {
					cfg.Keychain = keys(alice)
					if c.opts.TLS {
						ca := reg.CAFile()
						cfg.CAFiles = map[string][]string{reg.Host(): {ca}, reg.StorageHost(): {ca}}
					}
				})
				var refs []blob.Ref
				for _, p := range contents {
					refs = append(refs, reg.AddBlob("some/repo", p))
				}
				t.Cleanup(func() {
					if n := reg.Stats().Leaks; n > 0 {
						t.Errorf("credentials were sent to the storage server %d times", n)
					}
				})
				return o, refs
			})
		})
	}
}

func TestDockerRegistryConforms(t *testing.T) {
	host := testkit.DockerRegistry(t)
	blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
		var refs []blob.Ref
		for _, p := range contents {
			refs = append(refs, testkit.PushBlob(t, "http://"+host, "some/repo", p))
		}
		return newOrigin(t), refs
	})
}

// TestFaults holds every misbehaviour to its outcome: the right bytes, or an
// error of the right kind that says what happened.
func TestFaults(t *testing.T) {
	const size = 600_000
	content := blobtest.Bytes(5, size)
	part, whole := blob.Range{Off: 100_000, Len: 400_000}, blob.Range{Len: size}
	get := func(a testkit.Action, f testkit.Fault) testkit.Fault {
		f.On, f.Do = testkit.BlobGet, a
		return f
	}
	none := testkit.Fault{}
	for _, c := range []struct {
		name  string
		fault testkit.Fault
		rng   blob.Range
		want  error  // nil, or a blob.Kind
		text  string // in the error
	}{
		{"short body, once", get(testkit.ShortBody, testkit.Fault{After: 1000, Times: 1}), part, nil, ""},
		{"short body, at every start", get(testkit.ShortBody, testkit.Fault{}), part, blob.Unavailable, "400000 bytes early"},
		{"short body of the whole, 4 times", get(testkit.ShortBody, testkit.Fault{After: 50, Times: 4}), whole, nil, ""},
		{"short body with little progress", get(testkit.ShortBody, testkit.Fault{After: 5000}), part, blob.Unavailable, "(after 5 attempts)"},
		{"short length", get(testkit.ShortLength, testkit.Fault{Times: 3}), part, nil, ""},
		{"short length of the whole", get(testkit.ShortLength, testkit.Fault{}), whole, blob.Corrupt, "300000 bytes, not the expected 600000"},
		{"long length", get(testkit.LongLength, testkit.Fault{}), part, blob.Corrupt, "with 400010 bytes"},
		{"long length of the whole", get(testkit.LongLength, testkit.Fault{}), whole, blob.Corrupt, "600010 bytes, not the expected 600000"},
		{"extra bytes", get(testkit.ExtraBytes, testkit.Fault{}), part, blob.Corrupt, "longer than it should be"},
		{"extra bytes after the whole", get(testkit.ExtraBytes, testkit.Fault{}), whole, blob.Corrupt, "longer than it should be"},
		{"no length", get(testkit.NoLength, testkit.Fault{}), part, nil, ""},
		{"no ranges", get(testkit.NoRanges, testkit.Fault{}), part, nil, ""},
		{"no ranges, whole", get(testkit.NoRanges, testkit.Fault{}), whole, nil, ""},
		{"several parts", get(testkit.Multipart, testkit.Fault{}), part, blob.Corrupt, "multipart/byteranges"},
		{"wrong range", get(testkit.WrongRange, testkit.Fault{}), part, blob.Corrupt, "with range 100001-500000"},
		{"wrong total", get(testkit.WrongTotal, testkit.Fault{}), part, blob.Corrupt, "600001 bytes, not the expected 600000"},
		{"bit flipped", get(testkit.CorruptBody, testkit.Fault{After: 599_999}), whole, blob.Corrupt, "digest"},
		{"429, then good", get(testkit.Status, testkit.Fault{Status: 429, Times: 4, RetryAfter: "0"}), part, nil, ""},
		{"429 for ever", get(testkit.Status, testkit.Fault{Status: 429}), part, blob.Busy, "429 Too Many Requests: fault injected by the test (TOOMANYREQUESTS) (after 5 attempts)"},
		{"429 for an hour", get(testkit.Status, testkit.Fault{Status: 429, RetryAfter: "3600"}), part, blob.Busy, "asks to wait 1h0m0s"},
		{"500, then good", get(testkit.Status, testkit.Fault{Status: 500, Times: 2}), part, nil, ""},
		{"500 for ever", get(testkit.Status, testkit.Fault{Status: 500}), part, blob.Unavailable, "500 Internal Server Error"},
		{"501", get(testkit.Status, testkit.Fault{Status: 501, Times: 1}), part, blob.Unavailable, "501 Not Implemented"},
		{"504, then good", get(testkit.Status, testkit.Fault{Status: 504, Times: 1}), whole, nil, ""},
		{"400", get(testkit.Status, testkit.Fault{Status: 400, Times: 1}), part, blob.Invalid, "400 Bad Request"},
		{"401 without a challenge", get(testkit.Status, testkit.Fault{Status: 401, Times: 1}), part, blob.Unauthorized, `log in with "docker login 127.0.0.1:`},
		{"403", get(testkit.Status, testkit.Fault{Status: 403, Times: 1}), part, blob.Forbidden, "403 Forbidden"},
		{"404", get(testkit.Status, testkit.Fault{Status: 404, Times: 1}), part, blob.NotFound, "404 Not Found"},
		{"410", get(testkit.Status, testkit.Fault{Status: 410, Times: 1}), part, blob.NotFound, "410 Gone"},
		{"416", get(testkit.Status, testkit.Fault{Status: 416, Times: 1}), part, blob.Corrupt, "no range 100000-499999"},
		{"reset, then good", get(testkit.Reset, testkit.Fault{Times: 2}), part, nil, ""},
		{"reset for ever", get(testkit.Reset, testkit.Fault{}), part, blob.Unavailable, "unexpected EOF (after 5 attempts)"},
		{"redirect without a location", get(testkit.Status, testkit.Fault{Status: 307}), part, blob.Unavailable, "redirected to no usable address"},
		{"nothing wrong", none, part, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			reg := testkit.NewRegistry(t, testkit.Options{})
			ref := reg.AddBlob("some/repo", content)
			reg.Inject(c.fault)
			got, err := read(t, newOrigin(t), ref, c.rng)
			outcome{got, err, c.want, c.text}.check(t, ref, content[c.rng.Off:c.rng.End()])
		})
	}
}

// outcome is how a read ended, and how it should have.
type outcome struct {
	got  []byte
	err  error
	kind error  // nil, or a blob.Kind
	text string // in the error
}

// check checks that a read of want ended well, or as it should, and that
// whatever it delivered is a prefix of want.
func (o outcome) check(t *testing.T, ref blob.Ref, want []byte) {
	t.Helper()
	got, err, kind, text := o.got, o.err, o.kind, o.text
	if kind == nil {
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, want %d right ones: %v", len(got), len(want), err)
		}
		return
	}
	if !errors.Is(err, kind) || blob.KindOf(err) != kind {
		t.Errorf("got %d bytes and error %v, want kind %v", len(got), err, kind)
		return
	}
	if text != "digest" && !bytes.HasPrefix(want, got) {
		t.Errorf("the %d bytes before the error are wrong", len(got))
	}
	for _, part := range []string{text, ref.Digest.String(), strings.Split(ref.Repository, "/")[0]} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error does not say %q: %v", part, err)
		}
	}
	checkSecrets(t, err.Error())
}

// TestHangs has a server that stops answering, for ever or at first.
func TestHangs(t *testing.T) {
	content := blobtest.Bytes(6, 500_000)
	hangs := func(t *testing.T, reg *testkit.Registry, o *Origin, fault testkit.Fault, text string) {
		ref := reg.AddBlob("some/repo", content)
		fault.On = testkit.BlobGet
		reg.Inject(fault)
		want := outcome{kind: blob.Timeout, text: text}
		if fault.Times > 0 {
			want.kind = nil
		}
		want.got, want.err = read(t, o, ref, blob.Range{Off: 10, Len: 400_000})
		want.check(t, ref, content[10:400_010])
	}
	for _, times := range []int{0, 2} {
		t.Run(fmt.Sprint("no headers, times ", times), func(t *testing.T) {
			virtual(t, testkit.Options{}, func(t *testing.T, reg *testkit.Registry, o *Origin) {
				hangs(t, reg, o, testkit.Fault{Do: testkit.HangHeaders, Times: times}, "no answer within the time limit (after 5 attempts)")
			})
		})
		// A limit of its own, short enough to be met by a server that sends nothing
		// more; what a busy machine does in that time decides nothing.
		t.Run(fmt.Sprint("no bytes, times ", times), func(t *testing.T) {
			t.Parallel()
			fault, retries := testkit.Fault{Do: testkit.HangBody, After: 7}, 2
			if times > 0 {
				fault.After, fault.Times, retries = 70_000, times, 50
			}
			o := newOrigin(t, func(cfg *Config) { cfg.IdleTimeout, cfg.Retries = 150*time.Millisecond, retries })
			hangs(t, testkit.NewRegistry(t, testkit.Options{}), o, fault, "no bytes of the answer within the time limit (after 3 attempts)")
		})
	}
}

func TestCancelEndsAHangingRead(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100_000))
	reg.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.HangBody, After: 10})
	b, err := newOrigin(t).Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	rc, err := b.ReadRange(ctx, blob.Range{Len: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	// That ten bytes arrive though more never come shows that they stream.
	if _, err := io.ReadFull(rc, make([]byte, 10)); err != nil {
		t.Fatalf("read what was sent: %v", err)
	}
	cancel()
	if _, err := rc.Read(make([]byte, 1)); blob.KindOf(err) != blob.Canceled {
		t.Errorf("read after cancel: %v, want kind canceled", err)
	}
}

func TestUnreachable(t *testing.T) {
	ref := blob.Ref{Digest: digest.FromString("x"), Size: 1, Repository: "127.0.0.1:1/some/repo"}
	_, err := read(t, newOrigin(t), ref, blob.Range{Len: 1})
	outcome{err: err, kind: blob.Unavailable, text: "connection refused (after 5 attempts)"}.check(t, ref, nil)
}

func TestWrongSize(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 1000))
	for _, c := range []struct {
		size int64
		rng  blob.Range
	}{
		{999, blob.Range{Len: 999}}, {1001, blob.Range{Len: 1001}},
		{999, blob.Range{Off: 5, Len: 10}}, {2000, blob.Range{Off: 1500, Len: 10}},
	} {
		ref.Size = c.size
		if _, err := read(t, newOrigin(t), ref, c.rng); blob.KindOf(err) != blob.Corrupt || !strings.Contains(err.Error(), "has 1000 bytes") {
			t.Errorf("size said to be %d, range %v: %v, want corrupt", c.size, c.rng, err)
		}
	}
}

func TestNoRangesIsRemembered(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Faults: []testkit.Fault{{On: testkit.BlobGet, Do: testkit.NoRanges}}})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 1000))
	o := newOrigin(t)
	if o.NoRanges(ref.Repository) {
		t.Error("said to have no ranges before any read")
	}
	for range 3 {
		if _, err := read(t, o, ref, blob.Range{Off: 1, Len: 5}); err != nil {
			t.Fatal(err)
		}
	}
	if !o.NoRanges(ref.Repository) || o.Stats().RangesIgnored.Load() != 3 {
		t.Errorf("no ranges = %v, counted %d, want true and 3", o.NoRanges(ref.Repository), o.Stats().RangesIgnored.Load())
	}
}

func TestSizeIsLearned(t *testing.T) {
	content := blobtest.Bytes(1, 1234)
	for _, c := range []struct {
		name   string
		opts   testkit.Options
		faults []testkit.Fault
		want   error
	}{
		{"head", testkit.Options{}, nil, nil},
		{"head through a redirect", testkit.Options{Redirect: true}, nil, nil},
		{"url not signed for head", testkit.Options{Redirect: true}, []testkit.Fault{{On: testkit.StorageGet, Do: testkit.Status, Status: 403, Times: 1}}, nil},
		{"no head", testkit.Options{}, []testkit.Fault{{On: testkit.BlobHead, Do: testkit.Status, Status: 405}}, nil},
		{"head without length", testkit.Options{}, []testkit.Fault{{On: testkit.BlobHead, Do: testkit.NoLength}}, nil},
		{"no head, no ranges", testkit.Options{}, []testkit.Fault{
			{On: testkit.BlobHead, Do: testkit.NoLength}, {On: testkit.BlobGet, Do: testkit.NoRanges}}, nil},
		{"busy at first", testkit.Options{}, []testkit.Fault{{On: testkit.BlobHead, Do: testkit.Status, Status: 503, Times: 2}}, nil},
		{"no length anywhere", testkit.Options{}, []testkit.Fault{
			{On: testkit.BlobHead, Do: testkit.NoLength}, {On: testkit.BlobGet, Do: testkit.Status, Status: 204}}, blob.Unavailable},
		{"forbidden", testkit.Options{}, []testkit.Fault{{On: testkit.BlobHead, Do: testkit.Status, Status: 403}}, blob.Forbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := testkit.NewRegistry(t, c.opts)
			for _, f := range c.faults {
				reg.Inject(f)
			}
			o := newOrigin(t)
			for _, p := range [][]byte{content, {}} {
				ref := reg.AddBlob("some/repo", p)
				ref.Size = blob.SizeUnknown
				b, err := o.Open(t.Context(), ref)
				if c.want != nil {
					if blob.KindOf(err) != c.want {
						t.Errorf("open: %v, want %v", err, c.want)
					}
				} else if err != nil || b.Size() != int64(len(p)) {
					t.Errorf("open %d bytes: %v", len(p), err)
				}
			}
		})
	}
}

func TestReadStreamsWithOneConnection(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Redirect: true})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 1<<20))
	o := newOrigin(t)
	for i := range int64(8) {
		if _, err := read(t, o, ref, blob.Range{Off: i << 17, Len: 1 << 17}); err != nil {
			t.Fatal(err)
		}
	}
	s := reg.Stats()
	if s.Conns != 2 || s.Requests[testkit.BlobGet] != 1 || s.Requests[testkit.StorageGet] != 8 {
		t.Errorf("%d connections, requests %v; want one connection to each server and one redirect", s.Conns, s.Requests)
	}
	if got := o.Stats(); got.Requests.Load() != 9 || got.Bytes.Load() != 1<<20 || got.Redirects.Load() != 1 {
		t.Errorf("counted %d requests, %d bytes, %d redirects", got.Requests.Load(), got.Bytes.Load(), got.Redirects.Load())
	}
}
