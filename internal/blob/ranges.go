package blob

import (
	"context"
	"io"
)

// Land takes bytes that a ReadRanges brought: p are those of range i from off
// on, an offset in the blob. p is valid during the call only. An error ends
// the reading.
type Land func(i int, off int64, p []byte) error

// MultiReader is a Blob that reads several ranges with fewer round trips than
// one ReadRange each. Callers use the function ReadRanges, which works with
// any Blob.
type MultiReader interface {
	// ReadRanges calls land with the bytes of ranges, as they arrive. The ranges
	// are in order of offset, do not overlap, are not empty and lie inside the
	// blob; two may touch. It reads ranges and keeps no part of it.
	//
	// The bytes of one range come in order and without gaps; ranges may come in
	// any order, and interleaved. Calls of land do not overlap and are over when
	// ReadRanges returns. No byte comes twice. Without an error all came; with
	// one, those that came are as good as any.
	//
	// The bytes are no better than those of ReadRange.
	//
	// Errors: Invalid for ranges that are not as said, before land is called;
	// that of land, as it is or wrapped; and any Kind.
	ReadRanges(ctx context.Context, ranges []Range, land Land) error
}

// CheckRanges reports, as an Invalid error, ranges that ReadRanges does not
// take for a blob of the given size.
func CheckRanges(ranges []Range, size int64) error {
	end := int64(0)
	for _, r := range ranges {
		if err := r.Check(size); err != nil {
			return err
		}
		if r.Len == 0 {
			return Errorf(Invalid, "read range %v: empty among several", r)
		}
		if r.Off < end {
			return Errorf(Invalid, "read range %v: starts before the end of the range before it, %d", r, end)
		}
		end = r.End()
	}
	return nil
}

// landBuffer is how many bytes ReadRanges hands over at once at most.
const landBuffer = 64 << 10

// ReadRanges reads ranges of b as MultiReader says, with b's own ReadRanges if
// it has one, else one range after the other.
func ReadRanges(ctx context.Context, b Blob, ranges []Range, land Land) error {
	if m, ok := b.(MultiReader); ok {
		return m.ReadRanges(ctx, ranges, land)
	}
	if err := CheckRanges(ranges, b.Size()); err != nil {
		return err
	}
	var buf []byte
	for i, r := range ranges {
		if buf == nil {
			buf = make([]byte, landBuffer)
		}
		if err := LandRange(ctx, b, r, buf, func(off int64, p []byte) error { return land(i, off, p) }); err != nil {
			return err
		}
	}
	return nil
}

// LandRange reads one range of b and hands its bytes to land, in order and by
// at most len(buf), which is not 0.
func LandRange(ctx context.Context, b Blob, r Range, buf []byte, land func(off int64, p []byte) error) error {
	rc, err := b.ReadRange(ctx, r)
	if err != nil {
		return err
	}
	defer rc.Close()
	for off := r.Off; ; {
		n, err := rc.Read(buf)
		if int64(n) > r.End()-off {
			return Errorf(Corrupt, "read range %v: source sent more than that", r)
		}
		if n > 0 {
			if err := land(off, buf[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
		switch {
		case err == io.EOF && off < r.End():
			return Errorf(Corrupt, "read range %v: source ended early: %w", r, io.ErrUnexpectedEOF)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
