package sim

import (
	"time"

	"golang.org/x/sys/unix"
)

// processor returns the time that the calling thread has had of a processor,
// so that what else runs on the machine does not count. Who compares two of
// them has locked the thread.
func processor() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0 // not in any kernel that runs us: every thread has this clock
	}
	return time.Duration(t.Nano())
}
