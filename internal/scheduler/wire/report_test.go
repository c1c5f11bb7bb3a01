package wire

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

var report = PeerReport{
	ID: "a", Hostname: "node", Addr: "10.0.0.1:4000", Location: schedule.Location{Zone: "z", Rack: "r"}, Seed: true,
	Uploads: 3, Slots: 64, Blobs: 7, Version: "1.2", Since: time.UnixMilli(1700000000123), Remote: "10.0.0.1:55",
}

var blobReport = BlobReport{Blob: blobA, BlobState: schedule.BlobState{Shape: shape, Complete: 1, Partial: 2, Receiving: 3, Leased: 4, Wants: 5}}

func TestReportsArriveAsTheyWereSent(t *testing.T) {
	if got, err := DecodePeer(EncodePeer(report)); err != nil || got != report {
		t.Errorf("peer %+v became %+v, %v", report, got, err)
	}
	if got, err := DecodeBlob(EncodeBlob(blobReport)); err != nil || got != blobReport {
		t.Errorf("blob %+v became %+v, %v", blobReport, got, err)
	}
}

func TestReportsThatMakeNoSense(t *testing.T) {
	for field, m := range map[string]*pb.Peer{
		"peer.id":            {Id: "a\x1b[2J"},
		"peer.hostname":      {Hostname: strings.Repeat("x", maxName+1)},
		"peer.addr":          {Addr: "a\nb"},
		"peer.location.zone": {Location: &pb.Location{Zone: "\x00"}},
		"peer.location.rack": {Location: &pb.Location{Rack: "\x00"}},
		"peer.version":       {Version: "\t"},
		"peer.remote":        {Remote: "\r"},
		"peer.since_ms":      {SinceMs: 1 << 62},
	} {
		if _, err := DecodePeer(m); !errors.Is(err, blob.Invalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v, want Invalid that names it", field, err)
		}
	}
	for field, m := range map[string]*pb.BlobStatus{
		"blob.blob":  {Blob: "\x1b"},
		"blob.shape": {Shape: &pb.Shape{Size: -1}},
	} {
		if _, err := DecodeBlob(m); !errors.Is(err, blob.Invalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v, want Invalid that names it", field, err)
		}
	}
}

func FuzzReports(f *testing.F) {
	p, _ := proto.Marshal(&pb.PeersResponse{Peers: []*pb.Peer{EncodePeer(report)}})
	f.Add(p, true)
	p, _ = proto.Marshal(&pb.StatusResponse{Blobs: []*pb.BlobStatus{EncodeBlob(blobReport)}})
	f.Add(p, false)
	f.Fuzz(func(t *testing.T, p []byte, peers bool) {
		var a pb.PeersResponse
		if peers && proto.Unmarshal(p, &a) == nil {
			for _, m := range a.GetPeers() {
				r, err := DecodePeer(m)
				if err != nil {
					continue
				}
				if again, err := DecodePeer(EncodePeer(r)); err != nil || again != r {
					t.Errorf("peer %+v became %+v, %v", r, again, err)
				}
				if _, err := r.Since.MarshalJSON(); err != nil {
					t.Errorf("peer %+v cannot be written: %v", r, err)
				}
			}
		}
		var b pb.StatusResponse
		if !peers && proto.Unmarshal(p, &b) == nil {
			for _, m := range b.GetBlobs() {
				r, err := DecodeBlob(m)
				if err != nil {
					continue
				}
				if again, err := DecodeBlob(EncodeBlob(r)); err != nil || again != r {
					t.Errorf("blob %+v became %+v, %v", r, again, err)
				}
			}
		}
	})
}
