package snapshot_test

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// BenchmarkLaterPrepare is the Prepare of a layer whose image has been indexed:
// a look-up, and the record of the snapshot on disk.
func BenchmarkLaterPrepare(b *testing.B) {
	w := newWorld(b, twoLayers...)
	n := startNode(b, b.TempDir(), w)
	top, _ := w.pull(b, n, twoLayers, w.criLabels)
	var took []time.Duration
	for b.Loop() {
		i := strconv.Itoa(len(took))
		labels := w.criLabels(1)
		labels["containerd.io/snapshot.ref"] = "target-" + i
		start := time.Now()
		if _, err := n.Prepare(b.Context(), "key-"+i, top, snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-µs")
}
