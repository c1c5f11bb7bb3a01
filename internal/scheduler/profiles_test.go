package scheduler_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
)

// exchange is what a session does with profiles.
type exchange interface {
	OfferProfiles(ctx context.Context, offers map[digest.Digest]digest.Digest) ([]digest.Digest, error)
	PutProfile(ctx context.Context, manifest digest.Digest, data []byte) error
	GetProfile(ctx context.Context, manifest digest.Digest) ([]byte, error)
	RemoveProfile(ctx context.Context, manifest digest.Digest) error
}

func (m *member) profiles(t *testing.T) exchange {
	t.Helper()
	x, ok := m.session.(exchange)
	if !ok {
		t.Fatalf("%T does not exchange profiles", m.session)
	}
	return x
}

func manifestOf(name string) digest.Digest { return digest.FromString("manifest of " + name) }

// recorded returns the profile of one start that reads the first chunks of an
// image.
func recorded(t *testing.T, name string, chunks int) []byte {
	t.Helper()
	return recordedAt(t, name, chunks, time.Unix(1_700_000_000, 0))
}

func recordedAt(t *testing.T, name string, chunks int, at time.Time) []byte {
	t.Helper()
	return encoded(t, profile.Profile{
		Manifest: manifestOf(name), Platform: "linux/amd64", Recorded: at, Starts: 1,
		Layers: []profile.Layer{{Digest: digest.FromString("layer"), TOC: digest.FromString("toc"), Chunks: 1000}},
		Reads:  []profile.Read{{First: 0, Count: chunks, At: time.Millisecond, Starts: 1}},
	})
}

func encoded(t *testing.T, p profile.Profile) []byte {
	t.Helper()
	data, err := profile.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func offerOf(name string, data []byte) map[digest.Digest]digest.Digest {
	return map[digest.Digest]digest.Digest{manifestOf(name): digest.FromBytes(data)}
}

// Profiles are kept, merged and found, whoever asks from wherever.
func TestProfiles(t *testing.T) {
	for way, by := range ways {
		t.Run(way, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, how){
				"what one gives another finds": testExchange,
				"what two give is merged":      testMerge,
				"nonsense is refused":          testBadProfiles,
				"what is removed stays away":   testRemove,
			} {
				t.Run(name, func(t *testing.T) { test(t, by) })
			}
		})
	}
}

func testExchange(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")).profiles(t), w.join(by, hello("b")).profiles(t)
	if _, err := b.GetProfile(t.Context(), manifestOf("x")); !errors.Is(err, blob.NotFound) {
		t.Errorf("before anybody gave one: error %v, want NotFound", err)
	}
	data := recorded(t, "x", 10)
	mustWant(t, a, "x", data, true)
	if err := a.PutProfile(t.Context(), manifestOf("x"), data); err != nil {
		t.Fatal(err)
	}
	mustHave(t, b, "x", data)
	mustWant(t, b, "x", data, false)
	if s := w.service.Stats(); s.Profiles != 1 || s.ProfileBytes != int64(len(data)) || s.ProfileLookups != 2 || s.ProfileHits != 1 {
		t.Errorf("counters are %+v, want 1 profile of %d bytes, 2 lookups, 1 hit", s, len(data))
	}
	answer, err := w.rpc().Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if c := answer.GetCounters(); c.GetProfiles() != 1 || c.GetProfileBytes() != int64(len(data)) || c.GetProfileLookups() != 2 || c.GetProfileHits() != 1 {
		t.Errorf("the status says %+v", c)
	}
}

// mustWant offers a profile and checks whether it is wanted.
func mustWant(t *testing.T, x exchange, name string, data []byte, want bool) {
	t.Helper()
	wanted, err := x.OfferProfiles(t.Context(), offerOf(name, data))
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Contains(wanted, manifestOf(name)); got != want || len(wanted) > 1 {
		t.Errorf("wanted are %v, want %v in it: %v", wanted, manifestOf(name), want)
	}
}

func mustHave(t *testing.T, x exchange, name string, data []byte) {
	t.Helper()
	got, err := x.GetProfile(t.Context(), manifestOf(name))
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(got) != digest.FromBytes(data) {
		t.Errorf("the profile of %s is another one than was given", name)
	}
}

func testMerge(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")).profiles(t), w.join(by, hello("b")).profiles(t)
	one, two := recorded(t, "x", 10), recorded(t, "x", 20)
	for i, x := range []exchange{a, b} {
		data := [][]byte{one, two}[i]
		mustWant(t, x, "x", data, true)
		if err := x.PutProfile(t.Context(), manifestOf("x"), data); err != nil {
			t.Fatal(err)
		}
	}
	old, err := profile.Decode(one)
	if err != nil {
		t.Fatal(err)
	}
	more, err := profile.Decode(two)
	if err != nil {
		t.Fatal(err)
	}
	merged := encoded(t, profile.Merge(old, more))
	mustHave(t, a, "x", merged)
	// What it was made from, and what came of it, is not wanted again, nor
	// taken.
	for _, data := range [][]byte{one, two, merged} {
		mustWant(t, a, "x", data, false)
		if err := a.PutProfile(t.Context(), manifestOf("x"), data); err != nil {
			t.Fatal(err)
		}
	}
	mustHave(t, b, "x", merged)
}

func testRemove(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")).profiles(t), w.join(by, hello("b")).profiles(t)
	put := func(x exchange, data []byte) {
		t.Helper()
		if err := x.PutProfile(t.Context(), manifestOf("x"), data); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(x exchange, name string) {
		t.Helper()
		if err := x.RemoveProfile(t.Context(), manifestOf(name)); err != nil {
			t.Error(err)
		}
	}
	mustLack := func() {
		t.Helper()
		if _, err := b.GetProfile(t.Context(), manifestOf("x")); !errors.Is(err, blob.NotFound) {
			t.Errorf("looking up what was removed: error %v, want NotFound", err)
		}
		if s := w.service.Stats(); s.Profiles != 0 || s.ProfileBytes != 0 {
			t.Errorf("%d profiles of %d bytes are kept, want none", s.Profiles, s.ProfileBytes)
		}
	}
	remove(a, "nothing") // is no error
	one, two := recorded(t, "x", 10), recorded(t, "x", 20)
	put(a, one)
	remove(b, "x")
	mustLack()

	// Who holds it is not asked for it, nor is it taken.
	mustWant(t, a, "x", one, false)
	put(a, one)
	mustLack()
	// One the scheduler never saw it asks for, sees how old it is, and does not
	// ask again.
	mustWant(t, a, "x", two, true)
	put(a, two)
	mustWant(t, b, "x", two, false)
	mustLack()

	later := recordedAt(t, "x", 5, time.Now().Add(time.Hour))
	mustWant(t, b, "x", later, true)
	put(b, later)
	mustHave(t, a, "x", later)
	mustWant(t, a, "x", one, false)
	put(a, two)
	mustHave(t, a, "x", later)

	if err := a.RemoveProfile(t.Context(), "nothing"); !errors.Is(err, blob.Invalid) {
		t.Errorf("removing nothing: error %v, want Invalid", err)
	}
}

func testBadProfiles(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a := w.join(by, hello("a")).profiles(t)
	good := recorded(t, "x", 10)
	broken := slices.Clone(good)
	broken[len(broken)/2] ^= 1
	for name, c := range map[string]struct {
		manifest digest.Digest
		data     []byte
	}{
		"no manifest":      {"", good},
		"bad manifest":     {"sha256:nothing", good},
		"another manifest": {manifestOf("y"), good},
		"empty":            {manifestOf("x"), nil},
		"broken":           {manifestOf("x"), broken},
		"too long":         {manifestOf("x"), make([]byte, profile.MaxSize+1)},
		"noise":            {manifestOf("x"), make([]byte, profile.MaxSize)},
	} {
		if err := a.PutProfile(t.Context(), c.manifest, c.data); !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: error %v, want Invalid", name, err)
		}
	}
	if _, err := a.GetProfile(t.Context(), "nothing"); !errors.Is(err, blob.Invalid) {
		t.Errorf("looking up nothing: error %v, want Invalid", err)
	}
	if _, err := a.OfferProfiles(t.Context(), map[digest.Digest]digest.Digest{"x": "y"}); !errors.Is(err, blob.Invalid) {
		t.Errorf("offering nothing: error %v, want Invalid", err)
	}
	if s := w.service.Stats(); s.Profiles != 0 || s.ProfileBytes != 0 {
		t.Errorf("%d profiles are kept, want none", s.Profiles)
	}
	mustWant(t, a, "x", good, true) // the peer is still welcome
}

// What is used least goes when there are too many, or they are too large.
func TestProfileLimits(t *testing.T) {
	size := len(recorded(t, "0", 1))
	for name, cfg := range map[string]scheduler.Config{
		"count": {MaxProfiles: 3},
		"bytes": {MaxProfileBytes: int64(3*size + size/2)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, cfg)
			a := w.join(ways["remote"], hello("a")).profiles(t)
			for i := range 5 {
				name := fmt.Sprint(i)
				if err := a.PutProfile(t.Context(), manifestOf(name), recorded(t, name, 1)); err != nil {
					t.Fatal(err)
				}
				mustHave(t, a, "0", recorded(t, "0", 1))
			}
			for i, want := range []bool{true, false, false, true, true} {
				_, err := a.GetProfile(t.Context(), manifestOf(fmt.Sprint(i)))
				if got := err == nil; got != want || err != nil && !errors.Is(err, blob.NotFound) {
					t.Errorf("profile %d: error %v, want it there: %v", i, err, want)
				}
			}
			if s := w.service.Stats(); s.Profiles != 3 || s.ProfileBytes != int64(3*size) {
				t.Errorf("%d profiles of %d bytes, want 3 of %d", s.Profiles, s.ProfileBytes, 3*size)
			}
		})
	}
}

// A session without a scheduler says so at once.
func TestProfilesWithoutScheduler(t *testing.T) {
	for way, by := range ways {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t, scheduler.Config{})
			m := w.join(by, hello("a"))
			a := m.profiles(t)
			w.stop()
			next[down](t, m.recorder)
			if _, err := a.GetProfile(t.Context(), manifestOf("x")); !errors.Is(err, blob.Unavailable) {
				t.Errorf("lookup: error %v, want Unavailable", err)
			}
			if _, err := a.OfferProfiles(t.Context(), offerOf("x", nil)); !errors.Is(err, blob.Unavailable) {
				t.Errorf("offer: error %v, want Unavailable", err)
			}
			if err := a.PutProfile(t.Context(), manifestOf("x"), recorded(t, "x", 1)); !errors.Is(err, blob.Unavailable) {
				t.Errorf("put: error %v, want Unavailable", err)
			}
			if err := a.RemoveProfile(t.Context(), manifestOf("x")); !errors.Is(err, blob.Unavailable) {
				t.Errorf("remove: error %v, want Unavailable", err)
			}
		})
	}
}

// Who does not wait for an answer hears of its own end, not of the scheduler's.
func TestLookupEndsWithContext(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	a := w.join(ways["remote"], hello("a")).profiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.GetProfile(ctx, manifestOf("x")); !errors.Is(err, blob.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}

// With mutual TLS members exchange profiles, and nobody else does.
func TestProfilesTLS(t *testing.T) {
	ours, stranger := node(t, t.TempDir()), node(t, t.TempDir())
	w := newWorld(t, scheduler.Config{TLS: ours.ServerConfig()})
	r := newRecorder()
	s, err := remote.Dial(remote.Config{Addr: w.addr, Hello: hello("a"), Handler: r, TLS: ours.ClientConfig})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	next[up](t, r)
	data := recorded(t, "x", 1)
	if err := s.PutProfile(t.Context(), manifestOf("x"), data); err != nil {
		t.Fatal(err)
	}
	mustHave(t, s, "x", data)

	conn, err := remote.Connect(remote.Config{Addr: w.addr, TLS: func(addr string) (*tls.Config, error) {
		cfg, err := stranger.ClientConfig(addr)
		if err == nil {
			cfg.InsecureSkipVerify = true
		}
		return cfg, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewSchedulerClient(conn).GetProfile(t.Context(), &pb.GetProfileRequest{Manifest: manifestOf("x").String()}); status.Code(err) != codes.Unavailable {
		t.Errorf("a stranger gets error %v, want Unavailable", err)
	}
	if s := w.service.Stats(); s.ProfileLookups != 1 {
		t.Errorf("%d lookups, want that of the member", s.ProfileLookups)
	}
}
