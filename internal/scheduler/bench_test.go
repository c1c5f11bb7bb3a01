package scheduler_test

import (
	"testing"

	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
)

// BenchmarkWantGrant is the round trip of a reader that waits: it wants a
// piece, is granted it, and has it.
func BenchmarkWantGrant(b *testing.B) {
	for way, by := range ways {
		b.Run(way, func(b *testing.B) {
			w := newWorld(b, scheduler.Config{})
			holder, reader := w.join(by, hello("a")), w.join(by, hello("b"))
			holder.Send(announce(blobA))
			w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
			b.ResetTimer()
			for i := range b.N {
				if i%64 == 0 {
					reader.Send(schedule.Announce{Blob: blobA, Shape: shape}) // has nothing again
				}
				reader.Send(want(blobA, uint64(i+1), i%64, 1))
				next[schedule.Grant](b, reader.recorder)
				reader.Send(schedule.Have{Blob: blobA, Runs: run(i%64, 1)})
			}
			b.StopTimer()
			s := w.service.Stats()
			b.ReportMetric(float64(s.StepTime.Nanoseconds())/float64(s.Decisions), "ns/decision")
		})
	}
}
