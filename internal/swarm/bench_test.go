package swarm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/store"
)

// cpu returns the processor time this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// plainServer is a file server that sends with sendfile.
func plainServer(b *testing.B, content []byte) string {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), content, 0o600); err != nil {
		b.Fatal(err)
	}
	s := httptest.NewServer(http.FileServer(http.Dir(dir)))
	b.Cleanup(s.Close)
	return s.URL + "/file"
}

// plainFetch downloads, hashes and writes a file, as a careful client does.
func plainFetch(b *testing.B, url string) {
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(h, f)}, resp.Body, make([]byte, 1<<20)); err != nil {
		b.Fatal(err)
	}
	h.Sum(nil)
}

// verify waits until a node has compared the digest of what it has.
func verify(b *testing.B, n *node, ref blob.Ref) {
	held, err := n.store.Local().Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	defer held.Close()
	if err := held.(store.Verifier).Verify(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPeerToPeer has one peer bring a blob of another onto its disk,
// verified, in turn with a client and a server of package net/http that do no
// more than that. Both ends are in this process, and so is the scheduler.
func BenchmarkPeerToPeer(b *testing.B) {
	const size = 1 << 30
	content := blobtest.Bytes(1, size)
	url := plainServer(b, content)
	w := newWorld(b)
	ref := w.origin.add(content)
	s := w.service("scheduler")
	s.start()
	holder := w.node("holder", options{slots: 64})
	s.join(holder)
	if err := holder.swarm.Fetch(b.Context(), ref); err != nil {
		b.Fatal(err)
	}
	verify(b, holder, ref) // or it would be done meanwhile, and be counted
	var ours, plain, oursCPU, plainCPU time.Duration
	for i := 0; b.Loop(); i++ {
		n := w.node(fmt.Sprint("node", i), options{slots: 64})
		s.join(n)
		began, used := time.Now(), cpu(b)
		if err := n.swarm.Fetch(b.Context(), ref); err != nil {
			b.Fatal(err)
		}
		ours, oursCPU = ours+time.Since(began), oursCPU+cpu(b)-used
		if st := n.swarm.Stats(); st.PeerBytes != size {
			b.Fatalf("%d bytes came from the peer", st.PeerBytes)
		}
		n.close()
		began, used = time.Now(), cpu(b)
		plainFetch(b, url)
		plain, plainCPU = plain+time.Since(began), plainCPU+cpu(b)-used
	}
	b.ReportMetric(float64(plain)/float64(ours), "x-net/http-speed")
	b.ReportMetric(float64(oursCPU)/float64(plainCPU), "x-net/http-cpu")
	b.ReportMetric(float64(size)*float64(b.N)/ours.Seconds()/1e6, "MB/s")
}

// BenchmarkFirstRange has a peer read 64 KiB that its neighbour has, in turn
// with a direct request to that neighbour for as much. Each range is new to it.
func BenchmarkFirstRange(b *testing.B) {
	const piece = 64 << 10
	content := blobtest.Bytes(2, 64<<20)
	w := newWorld(b)
	ref := w.origin.add(content)
	_, nodes := w.cluster(2, options{slots: 64})
	if err := nodes[0].swarm.Fetch(b.Context(), ref); err != nil {
		b.Fatal(err)
	}
	direct, err := nodes[1].client.Source(nodes[0].addr).Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	through, err := nodes[1].swarm.Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	defer through.Close()
	p := make([]byte, piece)
	var ours, plain []time.Duration
	for i := 0; b.Loop(); i++ {
		off := int64(i) * piece % ref.Size
		for j, src := range []blob.Blob{direct, through} {
			began := time.Now()
			if err := blob.ReadFull(b.Context(), src, p, off); err != nil {
				b.Fatal(err)
			}
			took := time.Since(began)
			if j == 0 {
				plain = append(plain, took)
			} else {
				ours = append(ours, took)
			}
			if !bytes.Equal(p, content[off:off+piece]) {
				b.Fatal("wrong bytes")
			}
		}
	}
	median := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2]
	}
	b.ReportMetric(float64(median(ours)-median(plain))/1e6, "ms-over-direct")
	b.ReportMetric(float64(median(plain))/1e6, "ms-direct")
}
