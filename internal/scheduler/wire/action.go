package wire

import (
	"math"
	"time"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// EncodeAction returns the message for an action that is sent at now. Whom it
// is for is not in it: that is whose stream it is.
func EncodeAction(action schedule.Action, now time.Time) (*pb.Action, error) {
	switch a := action.(type) {
	case schedule.Grant:
		g := &pb.Grant{Blob: a.Blob, Shape: encodeShape(a.Shape), Want: a.Want, Origin: a.Origin, Priority: pb.Priority(a.Priority)}
		for _, p := range a.Parts {
			g.Parts = append(g.Parts, encodePart(p, now))
		}
		return &pb.Action{Kind: &pb.Action_Grant{Grant: g}}, nil
	case schedule.Revoke:
		return &pb.Action{Kind: &pb.Action_Revoke{Revoke: &pb.Revoke{Blob: a.Blob, From: string(a.From), Runs: encodeRuns(a.Runs)}}}, nil
	case schedule.Drop:
		return &pb.Action{Kind: &pb.Action_Drop{Drop: &pb.Drop{Blob: a.Blob, Source: string(a.Source)}}}, nil
	case schedule.Forget:
		return &pb.Action{Kind: &pb.Action_Forget{Forget: &pb.Forget{Blob: a.Blob, Runs: encodeRuns(a.Runs)}}}, nil
	case schedule.Sums:
		return &pb.Action{Kind: &pb.Action_Sums{Sums: &pb.MoreSums{Blob: a.Blob, Sums: encodeSums(a.Sums)}}}, nil
	case schedule.Parked:
		return &pb.Action{Kind: &pb.Action_Parked{Parked: &pb.Parked{Blob: a.Blob, Want: a.Want, Why: whys.number(a.Why)}}}, nil
	case schedule.Refused:
		return &pb.Action{Kind: &pb.Action_Refused{Refused: &pb.Refused{Blob: a.Blob, Want: a.Want, Why: whys.number(a.Why)}}}, nil
	}
	return nil, blob.Errorf(blob.Internal, "encode action: %T has no message", action)
}

func encodePart(p schedule.Part, now time.Time) *pb.Part {
	m := &pb.Part{Runs: encodeRuns(p.Runs), Sums: encodeSums(p.Sums)}
	for _, s := range p.Sources {
		m.Sources = append(m.Sources, &pb.Source{Id: string(s.ID), Addr: s.Addr})
	}
	if !p.Lease.IsZero() {
		// At least 1, because 0 is no lease; it is overdue then all the same.
		m.LeaseMs = uint32(min(max(p.Lease.Sub(now).Milliseconds(), 1), math.MaxInt32))
	}
	return m
}

// DecodeAction reads an action that came for peer at now. Errors are Invalid
// and name the field; a scheduler that is newer may say what is not known here.
func DecodeAction(m *pb.Action, peer schedule.PeerID, now time.Time) (schedule.Action, error) {
	action, name, err := decodeAction(m, peer, now)
	if err == nil {
		err = checkBlob("action.blob", name)
	}
	if err != nil {
		return nil, err
	}
	return action, nil
}

// decodeAction returns the blob's name, too.
func decodeAction(m *pb.Action, peer schedule.PeerID, now time.Time) (schedule.Action, string, error) {
	var p parser
	switch k := m.GetKind().(type) {
	case *pb.Action_Grant:
		g, err := decodeGrant(k.Grant, peer, now)
		return g, g.Blob, err
	case *pb.Action_Revoke:
		a := k.Revoke
		return schedule.Revoke{To: peer, Blob: a.GetBlob(), From: schedule.PeerID(a.GetFrom()), Runs: p.runs("revoke.runs", a.GetRuns())},
			a.GetBlob(), p.err
	case *pb.Action_Drop:
		return schedule.Drop{To: peer, Blob: k.Drop.GetBlob(), Source: schedule.PeerID(k.Drop.GetSource())}, k.Drop.GetBlob(), nil
	case *pb.Action_Forget:
		return schedule.Forget{To: peer, Blob: k.Forget.GetBlob(), Runs: p.runs("forget.runs", k.Forget.GetRuns())}, k.Forget.GetBlob(), p.err
	case *pb.Action_Sums:
		return schedule.Sums{To: peer, Blob: k.Sums.GetBlob(), Sums: p.sums("sums.sums", k.Sums.GetSums())}, k.Sums.GetBlob(), p.err
	case *pb.Action_Parked:
		a := k.Parked
		return schedule.Parked{To: peer, Blob: a.GetBlob(), Want: a.GetWant(), Why: p.why("parked.why", a.GetWhy())}, a.GetBlob(), p.err
	case *pb.Action_Refused:
		a := k.Refused
		return schedule.Refused{To: peer, Blob: a.GetBlob(), Want: a.GetWant(), Why: p.why("refused.why", a.GetWhy())}, a.GetBlob(), p.err
	}
	return nil, "", invalid("action.kind", "is none that is known")
}

func (p *parser) why(field string, v pb.Why) schedule.Why {
	w := whys.word(v)
	if w == "" {
		p.note(invalid(field, "is %d, which is none that is known", v))
	}
	return w
}

func decodeGrant(m *pb.Grant, peer schedule.PeerID, now time.Time) (schedule.Grant, error) {
	var p parser
	g := schedule.Grant{To: peer, Blob: m.GetBlob(), Shape: decodeShape(m.GetShape()), Want: m.GetWant(), Origin: m.GetOrigin(),
		Priority: p.priority("grant.priority", m.GetPriority())}
	p.note(checkShape("grant.shape", g.Shape))
	for _, part := range m.GetParts() {
		out := schedule.Part{Runs: p.runs("grant.parts.runs", part.GetRuns()), Sums: p.sums("grant.parts.sums", part.GetSums())}
		p.note(checkRuns("grant.parts.runs", out.Runs, g.Shape))
		for _, s := range part.GetSources() {
			out.Sources = append(out.Sources, schedule.Source{ID: schedule.PeerID(s.GetId()), Addr: s.GetAddr()})
		}
		if ms := part.GetLeaseMs(); ms > 0 {
			out.Lease = now.Add(time.Duration(ms) * time.Millisecond)
		}
		if len(out.Runs) == 0 || (len(out.Sources) == 0) == out.Lease.IsZero() {
			p.note(invalid("grant.parts", "has a part without pieces, or that does not say from whom"))
		}
		g.Parts = append(g.Parts, out)
	}
	return g, p.err
}
