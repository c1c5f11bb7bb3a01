package wire

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
)

func someOffers(n int) map[digest.Digest]digest.Digest {
	offers := map[digest.Digest]digest.Digest{}
	for i := range n {
		offers[digest.FromString(fmt.Sprint("manifest ", i))] = digest.FromString(fmt.Sprint("profile ", i))
	}
	return offers
}

func TestOffers(t *testing.T) {
	for _, n := range []int{0, 1, MaxOffers} {
		offers := someOffers(n)
		m, err := EncodeOffers(offers)
		if err != nil {
			t.Fatal(err)
		}
		if size := proto.Size(m); size > MaxMessage {
			t.Errorf("%d offers take %d bytes", n, size)
		}
		got, err := DecodeOffers(m)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(offers, got); d != "" {
			t.Errorf("%d offers (-want +got):\n%s", n, d)
		}
	}
	one := digest.FromString("x")
	for name, offers := range map[string]map[digest.Digest]digest.Digest{
		"too many":      someOffers(MaxOffers + 1),
		"no manifest":   {"": one},
		"no digest":     {"nothing": one},
		"a URL":         {digest.Digest("url:" + one.Encoded()): one},
		"another hash":  {one: digest.SHA512.FromString("x")},
		"no hash":       {one: ""},
		"nothing in it": {one: "sha256:"},
	} {
		if _, err := EncodeOffers(offers); !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: error %v, want Invalid", name, err)
		}
	}
	o := &pb.ProfileOffer{Manifest: one.String(), Hash: make([]byte, 32)}
	for name, offers := range map[string][]*pb.ProfileOffer{
		"twice":      {o, o},
		"short hash": {{Manifest: o.Manifest, Hash: o.Hash[1:]}},
		"nonsense":   {{Manifest: "sha256:zz", Hash: o.Hash}},
		"too many":   make([]*pb.ProfileOffer, MaxOffers+1),
	} {
		if _, err := DecodeOffers(&pb.OfferProfilesRequest{Offers: offers}); !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: error %v, want Invalid", name, err)
		}
	}
}

func TestWanted(t *testing.T) {
	offers := someOffers(2)
	for manifest := range offers {
		got, err := DecodeWanted(EncodeWanted([]digest.Digest{manifest}), offers)
		if err != nil || len(got) != 1 || got[0] != manifest {
			t.Errorf("wanted %v came as %v, error %v", manifest, got, err)
		}
	}
	stranger := digest.FromString("never offered")
	if _, err := DecodeWanted(EncodeWanted([]digest.Digest{stranger}), offers); !errors.Is(err, blob.Invalid) {
		t.Errorf("what was not offered is wanted: error %v, want Invalid", err)
	}
	if _, err := DecodeWanted(EncodeWanted(make([]digest.Digest, 3)), offers); !errors.Is(err, blob.Invalid) {
		t.Errorf("more is wanted than was offered: error %v, want Invalid", err)
	}
}

// FuzzOffers sees to it that what is read of an offer can be sent again, and
// that nothing else is read.
func FuzzOffers(f *testing.F) {
	m, err := EncodeOffers(someOffers(3))
	if err != nil {
		f.Fatal(err)
	}
	p, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		m := new(pb.OfferProfilesRequest)
		if proto.Unmarshal(p, m) != nil {
			return
		}
		offers, err := DecodeOffers(m)
		if err != nil {
			if !errors.Is(err, blob.Invalid) {
				t.Errorf("error %v, want Invalid", err)
			}
			return
		}
		again, err := EncodeOffers(offers)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeOffers(again); err != nil || !cmp.Equal(got, offers) {
			t.Errorf("%v came back as %v, error %v", offers, got, err)
		}
	})
}

// BenchmarkDecodeOffers is what each of 10,000 peers asks of a scheduler that
// has just begun.
func BenchmarkDecodeOffers(b *testing.B) {
	m, err := EncodeOffers(someOffers(100))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := DecodeOffers(m); err != nil {
			b.Fatal(err)
		}
	}
}
