package scheduler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
	"skimmer/internal/schedule"
)

func TestCallersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c callers
		for i := range 5000 {
			if err := c.get(fmt.Sprint(i)).pay(callBurst); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.get("7").pay(1); !errors.Is(err, blob.Busy) {
			t.Errorf("who has spent all pays: error %v, want Busy", err)
		}
		<-time.After(time.Second)
		if err := c.get("7").pay(callRate); err != nil {
			t.Errorf("after a second: %v", err)
		}
		if err := c.get("7").pay(1); !errors.Is(err, blob.Busy) {
			t.Errorf("more than a second's worth: error %v, want Busy", err)
		}
		<-time.After(time.Minute)
		for i := range 5000 {
			c.get(fmt.Sprint("new", i))
		}
		if _, old := c.of["7"]; old || len(c.of) > 5001 {
			t.Errorf("%d callers are remembered, an old one among them: %v", len(c.of), old)
		}
	})
}

// A peer that calls all the time is told so, by all calls; others are not.
func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		defer s.Close(t.Context())
		g := &server{s: s}
		from := func(port int) context.Context {
			return peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}})
		}
		manifest, data := start(t, 1)
		calls := map[string]func(port int) codes.Code{
			"offer": func(port int) codes.Code {
				_, err := g.OfferProfiles(from(port), &pb.OfferProfilesRequest{})
				return status.Code(err)
			},
			"put": func(port int) codes.Code {
				_, err := g.PutProfile(from(port), &pb.PutProfileRequest{Manifest: manifest.String(), Data: data})
				return status.Code(err)
			},
			"get": func(port int) codes.Code {
				_, err := g.GetProfile(from(port), &pb.GetProfileRequest{Manifest: manifest.String()})
				return status.Code(err)
			},
			"remove": func(port int) codes.Code {
				_, err := g.RemoveProfile(from(port), &pb.RemoveProfileRequest{Manifest: digest.FromString("another image").String()})
				return status.Code(err)
			},
		}
		for calls["put"](1) == codes.OK { // the clock stands still
		}
		for calls["get"](1) == codes.OK {
		}
		for name, call := range calls {
			if got := call(1); got != codes.ResourceExhausted {
				t.Errorf("%s of who called too often: %v, want ResourceExhausted", name, got)
			}
			if got := call(2); got != codes.OK {
				t.Errorf("%s of another: %v, want OK", name, got)
			}
		}
		<-time.After(time.Second)
		if got := calls["get"](1); got != codes.OK {
			t.Errorf("a second later: %v, want OK", got)
		}
	})
}

func start(t *testing.T, chunks int) (digest.Digest, []byte) {
	manifest := digest.FromString("an image")
	data, err := profile.Encode(profile.Profile{
		Manifest: manifest, Recorded: time.Unix(int64(chunks), 0), Starts: 1, Platform: "linux/amd64",
		Layers: []profile.Layer{{Digest: manifest, TOC: manifest, Chunks: 1000}},
		Reads:  []profile.Read{{Count: chunks, Starts: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return manifest, data
}

// Of an image that thousands start at once a few profiles are taken, and later
// one now and then.
func TestMergesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProfiles(10, 1<<20)
		give := func(from, to int) (taken int) {
			for i := from; i < to; i++ {
				manifest, data := start(t, i)
				wanted := p.offer(map[digest.Digest]digest.Digest{manifest: digest.FromBytes(data)})
				if err := p.put(manifest, data); err != nil {
					t.Fatal(err)
				}
				taken += len(wanted)
			}
			return taken
		}
		if got := give(1, 100); got != mergeFree {
			t.Errorf("%d profiles were wanted, want %d", got, mergeFree)
		}
		manifest, _ := start(t, 1)
		before, err := p.get(manifest)
		if err != nil {
			t.Fatal(err)
		}
		give(100, 110) // nobody wants them, and they are not taken
		if after, err := p.get(manifest); err != nil || digest.FromBytes(after) != digest.FromBytes(before) {
			t.Errorf("the profile changed, or error %v", err)
		}
		<-time.After(mergeEvery)
		if got := give(200, 210); got != 1 {
			t.Errorf("%d profiles were wanted a while later, want 1", got)
		}
		if k := p.kept[manifest].Value.(*keptProfile); len(k.made) > maxSums {
			t.Errorf("%d digests are remembered", len(k.made))
		}
	})
}

// Others are asked when those that were do not send.
func TestAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProfiles(4, 1<<20)
		manifest, data := start(t, 1)
		offers := map[digest.Digest]digest.Digest{manifest: digest.FromBytes(data)}
		for i, want := range []int{1, 1, 0, 0} {
			if got := len(p.offer(offers)); got != want {
				t.Errorf("offer %d: %d wanted, want %d", i, got, want)
			}
		}
		<-time.After(askedFor + time.Second)
		if got := len(p.offer(offers)); got != 1 {
			t.Errorf("later: %d wanted, want 1", got)
		}
		for i := range 100 {
			p.offer(map[digest.Digest]digest.Digest{digest.FromString(fmt.Sprint(i)): digest.FromBytes(data)})
		}
		if len(p.asked) > 4 {
			t.Errorf("%d questions are remembered, want at most 4", len(p.asked))
		}
	})
}

// What was removed is remembered for a while, and not without end.
func TestRemovalsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProfiles(4, 1<<20)
		manifest, data := start(t, 1)
		offers := map[digest.Digest]digest.Digest{manifest: digest.FromBytes(data)}
		there := func(want bool) {
			t.Helper()
			if err := p.put(manifest, data); err != nil {
				t.Fatal(err)
			}
			if _, err := p.get(manifest); (err == nil) != want {
				t.Errorf("after it was put: error %v, want it there: %v", err, want)
			}
		}
		remove := func(manifest digest.Digest) {
			t.Helper()
			if err := p.remove(manifest); err != nil {
				t.Fatal(err)
			}
		}
		there(true)
		remove(manifest)
		there(false)
		<-time.After(removedFor)
		there(false)
		<-time.After(time.Second)
		if got := len(p.offer(offers)); got != 1 {
			t.Errorf("a week later %d are wanted, want 1", got)
		}
		there(true)

		remove(manifest)
		for i := range 100 {
			<-time.After(time.Second)
			remove(digest.FromString(fmt.Sprint(i)))
			if i == 2 {
				there(false)
			}
		}
		if len(p.removed) != 4 {
			t.Errorf("%d removals are remembered, want 4", len(p.removed))
		}
		there(true)

		remove(manifest)
		for i := range 3 * maxSums {
			_, data := start(t, i+1)
			if err := p.put(manifest, data); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(p.removed[manifest].sums); got != maxSums {
			t.Errorf("%d digests are remembered, want %d", got, maxSums)
		}
	})
}

// IDs of peers that left are kept for a while, and not without end.
func TestBonds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bonds{most: 10}
		ours := holder{names: "ours"}
		b.keep("a", ours, time.Now())
		<-time.After(bondLife / 2)
		b.keep("a", ours, time.Now())
		<-time.After(bondLife * 3 / 4)
		b.keep("b", ours, time.Now()) // the first bond of a has ended, the second has not
		if _, ok := b.of["a"]; !ok {
			t.Error("a was forgotten early")
		}
		<-time.After(bondLife / 2)
		b.keep("c", ours, time.Now())
		if _, ok := b.of["a"]; ok || len(b.of) != 2 {
			t.Errorf("%v are remembered, want b and c", b.of)
		}
		for i := range 100 {
			b.keep(schedule.PeerID(fmt.Sprint(i)), ours, time.Now())
		}
		if len(b.of) != 10 || len(b.left) != 10 {
			t.Errorf("%d are remembered, %d in order, want 10", len(b.of), len(b.left))
		}
	})
}
