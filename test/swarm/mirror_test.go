//go:build e2e

package swarm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/lab/cluster"
	"skimmer/internal/testkit"
)

// piece is the size of the pieces of a blob, in bytes.
const piece = 16 << 10

// client makes HTTP requests as a program on the node does.
func client(p *cluster.Peer) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: p.Node().DialContext}}
}

// ask requests ranges of a blob at the mirror of a node, in the way of the
// stargz snapshotter: all of them at once.
func (s *swarm) ask(ctx context.Context, c *http.Client, what thing, content []byte, ranges ...[2]int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:4001"+what.path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Dragonfly-Registry", "http://"+s.host)
	var list []string
	for _, r := range ranges {
		list = append(list, fmt.Sprintf("%d-%d", r[0], r[1]))
	}
	if len(list) > 0 {
		req.Header.Set("Range", "bytes="+strings.Join(list, ","))
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case len(ranges) == 0 && resp.StatusCode == http.StatusOK:
		return compare(resp.Body, content)
	case len(ranges) == 0 || resp.StatusCode != http.StatusPartialContent:
		return fmt.Errorf("the mirror answers %s", resp.Status)
	case len(ranges) == 1:
		return compare(resp.Body, content[ranges[0][0]:ranges[0][1]+1])
	}
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	parts := multipart.NewReader(resp.Body, params["boundary"])
	for _, r := range ranges {
		part, err := parts.NextRawPart()
		if err != nil {
			return err
		}
		if got, want := part.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", r[0], r[1], len(content)); got != want {
			return fmt.Errorf("a part is %q, want %q", got, want)
		}
		if err := compare(part, content[r[0]:r[1]+1]); err != nil {
			return err
		}
	}
	if _, err := parts.NextRawPart(); err != io.EOF {
		return fmt.Errorf("after the last part: %v", err)
	}
	return nil
}

func compare(r io.Reader, want []byte) error {
	got, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d wrong bytes, want %d", len(got), len(want))
	}
	return err
}

// TestMirrors asks the mirrors of 8 nodes for the same small ranges at once:
// each byte leaves the origin once, and what nobody asks for does not.
func TestMirrors(t *testing.T) {
	for _, seeds := range []int{0, 2} {
		t.Run(fmt.Sprintf("%d seeds", seeds), func(t *testing.T) {
			s := newSwarm(t, formation{nodes: 8, seeds: seeds, rate: 200 * mbit})
			what := s.blob("library/ranges", 48*mib)
			content, _ := random("library/ranges", what.size)
			requests := [][][2]int{
				{{len(content) - 300_000, len(content) - 1}}, // the footer and what is before it
				{{1 << 20, 1<<20 + 49_999}},
				{{2<<20 + 17, 2<<20 + 30_720}, {5_000_000, 5_049_999}, {9_999_999, 9_999_999}, {20 << 20, 20<<20 + 199_999}},
				{{0, 4095}, {4096, 8191}, {40 << 20, 41 << 20}},
			}
			var wg sync.WaitGroup
			for _, p := range s.peers {
				wg.Go(func() {
					c := client(p)
					defer c.CloseIdleConnections()
					for _, ranges := range requests {
						if err := s.ask(t.Context(), c, what, content, ranges...); err != nil {
							t.Errorf("%s, %v: %v", p.Node().Name(), ranges, err)
						}
					}
				})
			}
			wg.Wait()
			// Requests for several ranges are answered in one body, so that what
			// came twice shows in the sum alone.
			asked := map[int]bool{}
			for _, ranges := range requests {
				for _, r := range ranges {
					for p := r[0] / piece; p <= r[1]/piece; p++ {
						asked[p] = true
					}
				}
			}
			sent, want := s.origin.Sent(what.path), int64(len(asked)*piece)
			t.Logf("%d bytes left the origin in %d requests, for %d in the pieces asked for", sent.Bytes, sent.Requests, want)
			if float64(sent.Bytes) > once*float64(want) {
				t.Errorf("%d bytes left the origin, want at most %.2f times the %d of the pieces asked for", sent.Bytes, once, want)
			}
			for _, p := range s.peers[:2] { // all of it, one after the other
				c := client(p)
				if err := s.ask(t.Context(), c, what, content); err != nil {
					t.Errorf("%s: %v", p.Node().Name(), err)
				}
				c.CloseIdleConnections()
			}
			s.leftOnce(what, once)
		})
	}
}

// TestMirrorPrefetch asks for a little of a blob, after which the rest comes.
func TestMirrorPrefetch(t *testing.T) {
	s := newSwarm(t, formation{nodes: 2, rate: 200 * mbit, more: "proxy: {prefetch: true}"})
	what := s.blob("library/rest", 16*mib)
	content, _ := random("library/rest", what.size)
	c := client(s.peers[0])
	defer c.CloseIdleConnections()
	if err := s.ask(t.Context(), c, what, content, [2]int{100, 5000}); err != nil {
		t.Fatal(err)
	}
	s.complete(s.peers[0], digest.FromBytes(content))
	before := s.origin.Sent(what.path)
	if err := s.ask(t.Context(), c, what, content); err != nil {
		t.Error(err)
	}
	other := client(s.peers[1])
	defer other.CloseIdleConnections()
	if err := s.ask(t.Context(), other, what, content, [2]int{1 << 20, 2 << 20}, [2]int{3 << 20, 4 << 20}); err != nil {
		t.Error(err)
	}
	if after := s.origin.Sent(what.path); after != before {
		t.Errorf("the origin sent %+v, before all of it was asked for %+v", after, before)
	}
}

// complete waits until a node has all of a blob.
func (s *swarm) complete(p *cluster.Peer, d digest.Digest) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, "a blob is complete", func() error {
		out, err := p.Run(s.t.Context(), "blob", "stat", d.String(), "--output", "json")
		if err == nil && !strings.Contains(out, `"complete": true`) {
			err = fmt.Errorf("not yet: %s", out)
		}
		return err
	})
}
