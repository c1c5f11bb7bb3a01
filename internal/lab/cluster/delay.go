package cluster

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// offloads are what a tap device is to leave undone: checksums, and cutting
	// large segments. What is left undone at one end is described in a header
	// before the frame, which the other end is given as it is.
	offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	// largest is the most that one read of a tap device returns, in bytes.
	largest = 64<<10 + 1024
	// underWay is how many frames are under way in one direction before the
	// sender's queue fills.
	underWay = 4096
)

// wire is a cable that takes time: what is sent into one end comes out of the
// other after a delay. It is there because many kernels have no netem. The
// ends are tap devices.
type wire struct {
	ends  [2]*os.File
	delay time.Duration
	wg    sync.WaitGroup
}

// newWire makes a device in each of two namespaces and connects them.
func newWire(delay time.Duration, a *namespace, nameA string, b *namespace, nameB string) (*wire, error) {
	w := &wire{delay: delay}
	var err error
	if w.ends[0], err = a.tap(nameA); err != nil {
		return nil, err
	}
	if w.ends[1], err = b.tap(nameB); err != nil {
		return nil, errors.Join(err, w.ends[0].Close())
	}
	w.wg.Go(func() { w.carry(w.ends[0], w.ends[1]) })
	w.wg.Go(func() { w.carry(w.ends[1], w.ends[0]) })
	return w, nil
}

// tap makes a tap device, which is there as long as the file is open.
func (n *namespace) tap(name string) (f *os.File, err error) {
	err = n.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make tap device %s: %w", name, err), unix.Close(fd))
		}
		// Not before: a file that is no device yet wakes nobody who waits for it.
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	return f, err
}

// frame is what is under way, with the time of its arrival.
type frame struct {
	data []byte
	at   time.Time
}

// carry moves frames from one end to the other until the wire is closed.
func (w *wire) carry(from, to *os.File) {
	way := make(chan frame, underWay)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(way)
	wg.Go(func() {
		t := time.NewTimer(0)
		defer t.Stop()
		for f := range way {
			if d := time.Until(f.at); d > 0 {
				t.Reset(d)
				<-t.C
			}
			// An end that is down takes nothing, as a real one.
			_, _ = to.Write(f.data)
		}
	})
	buf := make([]byte, largest)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return // it was closed
		}
		way <- frame{append([]byte(nil), buf[:n]...), time.Now().Add(w.delay)}
	}
}

// close takes the wire away and waits until nothing is on it.
func (w *wire) close() error {
	err := errors.Join(w.ends[0].Close(), w.ends[1].Close())
	w.wg.Wait()
	return err
}
