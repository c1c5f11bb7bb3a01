package blob

import (
	"context"
	"sync/atomic"
)

// Traffic counts where the bytes of somebody's reads came from. It travels in
// the context: whoever wants to know puts one there with WithTraffic, and each
// hop adds what it brought in. The zero value is ready; all fields may be read
// at any time.
//
// What is fetched for several readers at once is counted for the one who came
// first, so of the others' bytes some are in no counter.
type Traffic struct {
	// Local is bytes that were on this node's disk, Peers those that other
	// nodes sent, Origin those that the registry or web server did. Bytes read
	// ahead count, too.
	Local, Peers, Origin atomic.Int64
}

type trafficKey struct{}

// WithTraffic returns a context whose reads are counted in t.
func WithTraffic(ctx context.Context, t *Traffic) context.Context {
	return context.WithValue(ctx, trafficKey{}, t)
}

// TrafficOf returns what reads made with ctx are to be counted in; where
// nobody asked, a Traffic that nobody looks at, never nil.
func TrafficOf(ctx context.Context) *Traffic {
	if t, ok := ctx.Value(trafficKey{}).(*Traffic); ok {
		return t
	}
	return new(Traffic)
}
