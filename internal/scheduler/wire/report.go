package wire

import (
	"time"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// PeerReport is what a scheduler says of a peer that has joined it.
type PeerReport struct {
	ID       schedule.PeerID   `json:"id"`
	Hostname string            `json:"hostname"`
	Addr     string            `json:"address"` // host:port at which it serves others
	Location schedule.Location `json:"-"`
	Seed     bool              `json:"seed"` // it reads from origins for others
	// Uploads are under way, Slots how many there may be.
	Uploads int `json:"uploads"`
	Slots   int `json:"slots"`
	// Blobs is of how many it has something, or is to have it.
	Blobs   int       `json:"blobs"`
	Version string    `json:"version"` // its build
	Since   time.Time `json:"since"`   // when it joined
	// Remote is from where it joined, host:port; empty if from within the
	// scheduler's process.
	Remote string `json:"-"`
}

// BlobReport is what a scheduler says of a blob.
type BlobReport struct {
	Blob string
	schedule.BlobState
}

// EncodePeer returns r as it is sent.
func EncodePeer(r PeerReport) *pb.Peer {
	return &pb.Peer{
		Id: string(r.ID), Hostname: r.Hostname, Addr: r.Addr, Location: &pb.Location{Zone: r.Location.Zone, Rack: r.Location.Rack},
		Seed: r.Seed, Slots: uint32(max(r.Slots, 0)), SlotsUsed: uint32(max(r.Uploads, 0)), Blobs: uint32(max(r.Blobs, 0)),
		Version: r.Version, SinceMs: r.Since.UnixMilli(), Remote: r.Remote,
	}
}

// DecodePeer reads what a scheduler says of a peer. Errors are Invalid and name
// the field.
func DecodePeer(m *pb.Peer) (PeerReport, error) {
	r := PeerReport{
		ID: schedule.PeerID(m.GetId()), Hostname: m.GetHostname(), Addr: m.GetAddr(),
		Location: schedule.Location{Zone: m.GetLocation().GetZone(), Rack: m.GetLocation().GetRack()},
		Seed:     m.GetSeed(), Slots: int(m.GetSlots()), Uploads: int(m.GetSlotsUsed()), Blobs: int(m.GetBlobs()),
		Version: m.GetVersion(), Since: time.UnixMilli(m.GetSinceMs()), Remote: m.GetRemote(),
	}
	for _, f := range []struct{ name, value string }{
		{"peer.id", string(r.ID)}, {"peer.hostname", r.Hostname}, {"peer.addr", r.Addr}, {"peer.location.zone", r.Location.Zone},
		{"peer.location.rack", r.Location.Rack}, {"peer.version", r.Version}, {"peer.remote", r.Remote},
	} {
		if err := checkName(f.name, f.value); err != nil {
			return PeerReport{}, err
		}
	}
	// Later years cannot be written as JSON.
	if y := r.Since.UTC().Year(); y < 1 || y > 9000 {
		return PeerReport{}, invalid("peer.since_ms", "is %d", m.GetSinceMs())
	}
	return r, nil
}

// EncodeBlob returns r as it is sent.
func EncodeBlob(r BlobReport) *pb.BlobStatus {
	return &pb.BlobStatus{
		Blob: r.Blob, Shape: &pb.Shape{Size: r.Shape.Size, PieceSize: r.Shape.PieceSize},
		Complete: uint32(r.Complete), Partial: uint32(r.Partial), Receiving: uint32(r.Receiving),
		Leased: uint32(r.Leased), Wants: uint32(r.Wants),
	}
}

// DecodeBlob reads what a scheduler says of a blob. Errors are Invalid and name
// the field.
func DecodeBlob(m *pb.BlobStatus) (BlobReport, error) {
	if err := checkName("blob.blob", m.GetBlob()); err != nil {
		return BlobReport{}, err
	}
	shape := schedule.Shape{Size: m.GetShape().GetSize(), PieceSize: m.GetShape().GetPieceSize()}
	if shape.Size < 0 || shape.PieceSize < 0 {
		return BlobReport{}, blob.Errorf(blob.Invalid, "read blob.shape: %d bytes in pieces of %d", shape.Size, shape.PieceSize)
	}
	return BlobReport{Blob: m.GetBlob(), BlobState: schedule.BlobState{
		Shape: shape, Complete: int(m.GetComplete()), Partial: int(m.GetPartial()), Receiving: int(m.GetReceiving()),
		Leased: int(m.GetLeased()), Wants: int(m.GetWants()),
	}}, nil
}
