package layerdev

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/layerdev/fuse"
)

// reading is a READ being answered. Device.mu guards watched.
type reading struct {
	cancel  context.CancelFunc
	ctx     context.Context // ends when it is answered
	pid     uint32          // the task that asked
	watched bool
}

// killedPoll is how often a task that was sent a signal is looked at.
const killedPoll = 200 * time.Millisecond

// interrupt is told that the task which waits for a read has been sent a
// signal, whatever signal: Go programs send themselves some all the time. The
// task waits on unless it is to die, and a read that fails with EINTR in the
// middle of EROFS is an I/O error in a container, so the read ends only when
// the task was killed. The kernel tells once per read, so from then on the
// task is watched.
func (d *Device) interrupt(req fuse.Request) error {
	unique, err := req.Target()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.reads[unique]
	if r == nil {
		// Not begun yet, or over: the kernel asks again only where it matters.
		return unix.EAGAIN
	}
	if !r.watched {
		r.watched = true
		d.work.Go(r.watch)
	}
	return nil
}

// watch ends the read once its task has been killed.
func (r *reading) watch() {
	t := time.NewTicker(killedPoll)
	defer t.Stop()
	for !killed(r.pid) {
		select {
		case <-r.ctx.Done():
			return
		case <-t.C:
		}
	}
	r.cancel()
}

// killed reports whether a task has SIGKILL pending, which every fatal signal
// becomes but those that dump core, or is gone. Of a task without a number,
// one of another PID namespace, nothing is known.
func killed(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || killedStatus(status)
}

// killedStatus reads a status file of proc(5).
func killedStatus(status []byte) bool {
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch string(name) {
		case "State":
			if len(value) > 0 && (value[0] == 'Z' || value[0] == 'X') {
				return true
			}
		case "SigPnd", "ShdPnd":
			mask, err := strconv.ParseUint(string(value), 16, 64)
			if err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}
