package wire

import (
	"fmt"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// EncodeEvent returns the message for an event a peer reports. Who reports it
// is not in it: that is whose stream it is. Events that are not a peer's to
// report, and those Check refuses, are Invalid.
func EncodeEvent(event schedule.Event) (*pb.Event, error) {
	if err := Check(event); err != nil {
		return nil, err
	}
	switch e := event.(type) {
	case schedule.Announce:
		return &pb.Event{Kind: &pb.Event_Announce{Announce: &pb.Announce{
			Blob: e.Blob, Shape: encodeShape(e.Shape), Have: encodeRuns(e.Have), Sums: encodeSums(e.Sums)}}}, nil
	case schedule.Want:
		return &pb.Event{Kind: &pb.Event_Want{Want: &pb.Want{
			Blob: e.Blob, Shape: encodeShape(e.Shape), Id: e.ID, Runs: encodeRuns(e.Runs), Priority: pb.Priority(e.Priority),
			Origin: e.Origin, Window: encodeRuns(e.Window)}}}, nil
	case schedule.Have:
		return &pb.Event{Kind: &pb.Event_Have{Have: &pb.Have{Blob: e.Blob, Runs: encodeRuns(e.Runs), Sums: encodeSums(e.Sums)}}}, nil
	case schedule.Fail:
		return &pb.Event{Kind: &pb.Event_Fail{Fail: &pb.Fail{
			Blob: e.Blob, Runs: encodeRuns(e.Runs), Source: string(e.Source), Reason: reasons.number(e.Reason)}}}, nil
	case schedule.Progress:
		return &pb.Event{Kind: &pb.Event_Progress{Progress: &pb.Progress{
			Blob: e.Blob, First: uint32(e.Run.First), Count: uint32(e.Run.Count)}}}, nil
	case schedule.Cancel:
		return &pb.Event{Kind: &pb.Event_Cancel{Cancel: &pb.Cancel{Blob: e.Blob, Want: e.Want}}}, nil
	case schedule.Reject:
		return &pb.Event{Kind: &pb.Event_Reject{Reject: &pb.Reject{Blob: e.Blob, Runs: encodeRuns(e.Runs)}}}, nil
	case schedule.Uploading:
		return &pb.Event{Kind: &pb.Event_Uploading{Uploading: &pb.Uploading{Slots: uint32(e.Slots), Other: uint32(e.Other)}}}, nil
	case schedule.PeerLeaving:
		return &pb.Event{Kind: &pb.Event_Leaving{Leaving: &pb.Leaving{}}}, nil
	}
	return nil, notReported(event)
}

func notReported(event schedule.Event) error {
	return blob.Errorf(blob.Invalid, "check event: %T is not for a peer to report", event)
}

// DecodeEvent reads an event that came on the stream of peer. Errors are
// Invalid and name the field.
func DecodeEvent(m *pb.Event, peer schedule.PeerID) (schedule.Event, error) {
	event, err := decodeEvent(m, peer)
	if err == nil {
		err = Check(event)
	}
	if err != nil {
		return nil, err
	}
	return event, nil
}

func decodeEvent(m *pb.Event, peer schedule.PeerID) (schedule.Event, error) {
	var p parser
	switch k := m.GetKind().(type) {
	case *pb.Event_Announce:
		e := k.Announce
		return schedule.Announce{Peer: peer, Blob: e.GetBlob(), Shape: decodeShape(e.GetShape()),
			Have: p.runs("announce.have", e.GetHave()), Sums: p.sums("announce.sums", e.GetSums())}, p.err
	case *pb.Event_Want:
		e := k.Want
		return schedule.Want{Peer: peer, Blob: e.GetBlob(), Shape: decodeShape(e.GetShape()), ID: e.GetId(),
			Runs: p.runs("want.runs", e.GetRuns()), Priority: p.priority("want.priority", e.GetPriority()),
			Origin: e.GetOrigin(), Window: p.runs("want.window", e.GetWindow())}, p.err
	case *pb.Event_Have:
		e := k.Have
		return schedule.Have{Peer: peer, Blob: e.GetBlob(), Runs: p.runs("have.runs", e.GetRuns()),
			Sums: p.sums("have.sums", e.GetSums())}, p.err
	case *pb.Event_Fail:
		e := k.Fail
		return schedule.Fail{Peer: peer, Blob: e.GetBlob(), Runs: p.runs("fail.runs", e.GetRuns()),
			Source: schedule.PeerID(e.GetSource()), Reason: reasons.word(e.GetReason())}, p.err
	case *pb.Event_Progress:
		e := k.Progress
		return schedule.Progress{Peer: peer, Blob: e.GetBlob(), Run: schedule.Run{First: int(e.GetFirst()), Count: int(e.GetCount())}}, nil
	case *pb.Event_Cancel:
		return schedule.Cancel{Peer: peer, Blob: k.Cancel.GetBlob(), Want: k.Cancel.GetWant()}, nil
	case *pb.Event_Reject:
		return schedule.Reject{Peer: peer, Blob: k.Reject.GetBlob(), Runs: p.runs("reject.runs", k.Reject.GetRuns())}, p.err
	case *pb.Event_Uploading:
		return schedule.Uploading{Peer: peer, Slots: int(k.Uploading.GetSlots()), Other: int(k.Uploading.GetOther())}, nil
	case *pb.Event_Leaving:
		return schedule.PeerLeaving{ID: peer}, nil
	}
	return nil, invalid("event.kind", "is none that is known")
}

// parser keeps the first error of several reads.
type parser struct{ err error }

func (p *parser) runs(field string, m *pb.Runs) []schedule.Run {
	runs, err := decodeRuns(field, m)
	p.note(err)
	return runs
}

func (p *parser) sums(field string, m []*pb.Sums) []schedule.PieceSum {
	sums, err := decodeSums(field, m)
	p.note(err)
	return sums
}

func (p *parser) priority(field string, v pb.Priority) blob.Priority {
	if v < pb.Priority_PRIORITY_DEMAND || v > pb.Priority_PRIORITY_BACKGROUND {
		p.note(invalid(field, "is %d, which is none that is known", v))
		return blob.Demand
	}
	return blob.Priority(v)
}

func (p *parser) note(err error) {
	if p.err == nil {
		p.err = err
	}
}

func encodeShape(s schedule.Shape) *pb.Shape {
	return &pb.Shape{Size: s.Size, PieceSize: s.PieceSize}
}

func decodeShape(m *pb.Shape) schedule.Shape {
	return schedule.Shape{Size: m.GetSize(), PieceSize: m.GetPieceSize()}
}

// words translates between an enumeration's numbers and the words of package
// schedule. Number 0 is no word.
type words[W ~string, N ~int32] []W

func (w words[W, N]) number(word W) N {
	for i, known := range w {
		if known == word {
			return N(i)
		}
	}
	return 0
}

// word returns the empty word for a number that is not known.
func (w words[W, N]) word(number N) W {
	if number < 0 || int(number) >= len(w) {
		return ""
	}
	return w[number]
}

var reasons = words[schedule.Reason, pb.Fail_Reason]{
	"", schedule.Busy, schedule.Slow, schedule.Gone, schedule.Corrupt, schedule.Origin,
}

var whys = words[schedule.Why, pb.Why]{
	"", schedule.WhyBusy, schedule.WhyLeased, schedule.WhyOrigin, schedule.WhyInvalid, schedule.WhyTooMany,
}

// Check reports what is wrong with an event of a peer, as an Invalid error that
// names the field.
func Check(event schedule.Event) error {
	switch e := event.(type) {
	case schedule.Announce:
		return first(checkBlob("announce.blob", e.Blob), checkShape("announce.shape", e.Shape),
			checkRuns("announce.have", e.Have, e.Shape), checkSums("announce.sums", e.Sums, e.Shape))
	case schedule.Want:
		err := first(checkBlob("want.blob", e.Blob), checkShape("want.shape", e.Shape),
			checkRuns("want.runs", e.Runs, e.Shape), checkRuns("want.window", e.Window, e.Shape))
		switch {
		case err != nil:
			return err
		case e.ID == 0:
			return invalid("want.id", "is 0")
		case len(e.Runs) == 0:
			return invalid("want.runs", "is empty")
		case e.Priority > blob.Background:
			return invalid("want.priority", "is %d, which is none that is known", e.Priority)
		case len(e.Origin) > maxOrigin:
			return invalid("want.origin", "has %d bytes, at most %d", len(e.Origin), maxOrigin)
		}
		return nil
	case schedule.Have:
		return first(checkBlob("have.blob", e.Blob), checkRuns("have.runs", e.Runs, schedule.Shape{}),
			checkSums("have.sums", e.Sums, schedule.Shape{}))
	case schedule.Fail:
		if reasons.number(e.Reason) == 0 {
			return invalid("fail.reason", "is %q, which is none that is known", e.Reason)
		}
		return first(checkBlob("fail.blob", e.Blob), checkName("fail.source", string(e.Source)), checkRuns("fail.runs", e.Runs, schedule.Shape{}))
	case schedule.Progress:
		return first(checkBlob("progress.blob", e.Blob), checkRuns("progress.run", []schedule.Run{e.Run}, schedule.Shape{}))
	case schedule.Cancel:
		return checkBlob("cancel.blob", e.Blob)
	case schedule.Reject:
		return first(checkBlob("reject.blob", e.Blob), checkRuns("reject.runs", e.Runs, schedule.Shape{}))
	case schedule.Uploading:
		if e.Slots < 0 || e.Slots > MaxPieces || e.Other < 0 || e.Other > MaxPieces {
			return invalid("uploading.slots", "are %d, and %d used otherwise: must be from 0 to %d", e.Slots, e.Other, MaxPieces)
		}
		return nil
	case schedule.PeerLeaving:
		return nil
	}
	return notReported(event)
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// algorithms maps those that blobs are named by to how many hexadecimal digits
// a name has.
var algorithms = map[string]int{"sha256": 64, "sha512": 128, "url": 64}

func checkBlob(field, name string) error {
	for i := range len(name) {
		if name[i] != ':' {
			continue
		}
		digits := name[i+1:]
		if n, ok := algorithms[name[:i]]; !ok || n != len(digits) {
			break
		}
		for _, c := range []byte(digits) {
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return invalid(field, "%q has a digit that is not hexadecimal in lower case", name)
			}
		}
		return nil
	}
	return invalid(field, "%s is not a digest: must be sha256, sha512 or url, a colon, and hexadecimal digits", quoted(name))
}

// quoted keeps what a stranger sent from filling a log.
func quoted(s string) string {
	if len(s) > maxName {
		return fmt.Sprintf("%q...", s[:maxName])
	}
	return fmt.Sprintf("%q", s)
}

func checkShape(field string, s schedule.Shape) error {
	switch {
	case s.Size <= 0:
		return invalid(field+".size", "is %d: must be more than 0", s.Size)
	case s.PieceSize <= 0:
		return invalid(field+".piece_size", "is %d: must be more than 0", s.PieceSize)
	case (s.Size-1)/s.PieceSize >= MaxPieces:
		return invalid(field+".piece_size", "is %d: gives a blob of %d bytes more than %d pieces", s.PieceSize, s.Size, MaxPieces)
	}
	return nil
}

// pieces returns how many pieces a blob of that shape has; of one whose shape
// is not known as many as it may have.
func pieces(s schedule.Shape) int {
	if s.Size <= 0 || s.PieceSize <= 0 {
		return MaxPieces
	}
	return int((s.Size-1)/s.PieceSize) + 1
}

func checkRuns(field string, runs []schedule.Run, shape schedule.Shape) error {
	n := pieces(shape)
	for _, r := range runs {
		if r.First < 0 || r.Count <= 0 || r.Count > n || r.First > n-r.Count {
			return invalid(field, "%d pieces from %d: the blob has %d", r.Count, r.First, n)
		}
	}
	return nil
}

func checkSums(field string, sums []schedule.PieceSum, shape schedule.Shape) error {
	n := pieces(shape)
	if len(sums) > n {
		return invalid(field, "are %d digests: the blob has %d pieces", len(sums), n)
	}
	for _, s := range sums {
		if s.Group {
			return invalid(field, "have level 1: peers report pieces")
		}
		if s.Piece < 0 || s.Piece >= n {
			return invalid(field, "have a digest of piece %d: the blob has %d", s.Piece, n)
		}
	}
	return nil
}

// From returns event as one that peer reports, whatever peer it named.
func From(event schedule.Event, peer schedule.PeerID) schedule.Event {
	switch e := event.(type) {
	case schedule.Announce:
		e.Peer = peer
		return e
	case schedule.Want:
		e.Peer = peer
		return e
	case schedule.Have:
		e.Peer = peer
		return e
	case schedule.Fail:
		e.Peer = peer
		return e
	case schedule.Progress:
		e.Peer = peer
		return e
	case schedule.Cancel:
		e.Peer = peer
		return e
	case schedule.Reject:
		e.Peer = peer
		return e
	case schedule.Uploading:
		e.Peer = peer
		return e
	case schedule.PeerLeaving:
		e.ID = peer
		return e
	}
	return event
}
