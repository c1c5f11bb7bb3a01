package transfer

import (
	"context"
	"net/http"
	"strconv"
	"strings"
)

// headerOrigin asks a peer to read from the origin what it does not have:
// "<size of the blob> <repository or URL>". A peer may ignore it.
const headerOrigin = "X-Skimmer-Origin"

// maxOrigin is how many bytes a place may have.
const maxOrigin = 8 << 10

type originKey struct{}

type origin struct {
	place string
	size  int64
}

// WithOrigin returns a context whose reads from peers say where the blob, which
// has size bytes, can be had: a repository, "host/path", or a URL. A peer that
// is there to read from origins for others may do so, with its own credentials.
func WithOrigin(ctx context.Context, place string, size int64) context.Context {
	return context.WithValue(ctx, originKey{}, origin{place, size})
}

// OriginOf returns what WithOrigin put into the context; on a server, what the
// client did. The place is empty if there is nothing.
func OriginOf(ctx context.Context) (place string, size int64) {
	o, _ := ctx.Value(originKey{}).(origin)
	return o.place, o.size
}

// setOrigin puts what ctx says into a request.
func setOrigin(ctx context.Context, h http.Header) {
	if place, size := OriginOf(ctx); place != "" {
		h[headerOrigin] = []string{strconv.FormatInt(size, 10) + " " + place}
	}
}

// originContext returns the request's context with what it says of the origin.
// What makes no sense is ignored, as by a peer that does not know the header.
func originContext(req *http.Request) context.Context {
	text, place, ok := strings.Cut(req.Header.Get(headerOrigin), " ")
	size, err := strconv.ParseUint(text, 10, 62)
	if !ok || err != nil || place == "" || len(place) > maxOrigin {
		return req.Context()
	}
	for _, c := range []byte(place) {
		if c <= ' ' || c >= 0x7f {
			return req.Context()
		}
	}
	return WithOrigin(req.Context(), place, int64(size))
}

type looseKey struct{}

// WithoutChecksums returns a context whose reads from peers are not held against
// the checksums that come with them, for a caller that compares them with
// something better.
func WithoutChecksums(ctx context.Context) context.Context {
	return context.WithValue(ctx, looseKey{}, true)
}
