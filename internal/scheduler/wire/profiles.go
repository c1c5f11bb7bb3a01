package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	pb "skimmer/api/scheduler/v1"
)

// MaxOffers is how many profiles are offered at a time at most.
const MaxOffers = 1000

// CheckManifest refuses, as an Invalid error that names the field, what is not
// the digest of a manifest.
func CheckManifest(field string, manifest digest.Digest) error {
	if !isSHA256(manifest) && (len(manifest) > maxName || manifest.Validate() != nil) {
		return invalid(field, "%.80q is not a digest", manifest)
	}
	return nil
}

// isSHA256 is Validate for the digests that almost all are. A scheduler that has
// just begun sees a million of them at once.
func isSHA256(d digest.Digest) bool {
	encoded, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(encoded) != 2*sha256.Size {
		return false
	}
	for _, c := range []byte(encoded) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// CheckOffers refuses, as an Invalid error that names the field, offers that
// cannot be sent. They are the SHA-256 digests of profiles' encodings, by the
// manifests of their images.
func CheckOffers(offers map[digest.Digest]digest.Digest) error {
	if len(offers) > MaxOffers {
		return invalid("offers", "has %d, at most %d", len(offers), MaxOffers)
	}
	for manifest, hash := range offers {
		if err := CheckManifest("offers.manifest", manifest); err != nil {
			return err
		}
		if !isSHA256(hash) {
			return invalid("offers.hash", "%.80q is not a SHA-256", hash)
		}
	}
	return nil
}

// EncodeOffers returns the request that offers profiles. The error is that of
// CheckOffers.
func EncodeOffers(offers map[digest.Digest]digest.Digest) (*pb.OfferProfilesRequest, error) {
	if err := CheckOffers(offers); err != nil {
		return nil, err
	}
	m := &pb.OfferProfilesRequest{}
	for _, manifest := range slices.Sorted(maps.Keys(offers)) {
		hash, err := hex.DecodeString(offers[manifest].Encoded())
		if err != nil {
			return nil, err
		}
		m.Offers = append(m.Offers, &pb.ProfileOffer{Manifest: manifest.String(), Hash: hash})
	}
	return m, nil
}

// DecodeOffers reads which profiles a peer offers. Errors are Invalid and name
// the field.
func DecodeOffers(m *pb.OfferProfilesRequest) (map[digest.Digest]digest.Digest, error) {
	if n := len(m.GetOffers()); n > MaxOffers {
		return nil, invalid("offers", "has %d, at most %d", n, MaxOffers)
	}
	offers := make(map[digest.Digest]digest.Digest, len(m.GetOffers()))
	for _, o := range m.GetOffers() {
		manifest := digest.Digest(o.GetManifest())
		if _, twice := offers[manifest]; twice {
			return nil, invalid("offers.manifest", "%q is there twice", manifest)
		}
		if n := len(o.GetHash()); n != sha256.Size {
			return nil, invalid("offers.hash", "has %d bytes, not %d", n, sha256.Size)
		}
		if err := CheckManifest("offers.manifest", manifest); err != nil {
			return nil, err
		}
		offers[manifest] = digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(o.GetHash()))
	}
	return offers, nil
}

// EncodeWanted returns the answer to an offer.
func EncodeWanted(wanted []digest.Digest) *pb.OfferProfilesResponse {
	m := &pb.OfferProfilesResponse{}
	for _, manifest := range wanted {
		m.Wanted = append(m.Wanted, manifest.String())
	}
	return m
}

// DecodeWanted reads which of the offered profiles a scheduler wants. What was
// not offered is Invalid, and so is more than was.
func DecodeWanted(m *pb.OfferProfilesResponse, offers map[digest.Digest]digest.Digest) ([]digest.Digest, error) {
	if len(m.GetWanted()) > len(offers) {
		return nil, invalid("wanted", "has %d, of %d that were offered", len(m.GetWanted()), len(offers))
	}
	var wanted []digest.Digest
	for _, w := range m.GetWanted() {
		manifest := digest.Digest(w)
		if _, ok := offers[manifest]; !ok {
			return nil, invalid("wanted", "%.80q was not offered", w)
		}
		wanted = append(wanted, manifest)
	}
	return wanted, nil
}
