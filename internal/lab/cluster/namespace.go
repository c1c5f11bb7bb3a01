package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name: it lasts as long as file is
// open, or a process or a socket is in it.
type namespace struct {
	file *os.File // constant
}

// newNamespace makes an empty network namespace without IPv6, whose automatic
// addresses would only be traffic. TCP finds its rate there as congestion names, or
// if that is empty as on the machine.
func newNamespace(congestion string) (*namespace, error) {
	n := new(namespace)
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		// A kernel may have no IPv6 at all.
		for _, name := range []string{"all", "default"} {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
		}
		if congestion != "" {
			if err := os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(congestion), 0); err != nil {
				return fmt.Errorf("set TCP's congestion control to %q: %w; /proc/sys/net/ipv4/tcp_available_congestion_control says what there is", congestion, err)
			}
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (n *namespace) close() error { return n.file.Close() }

// do calls f on a thread in the namespace. Sockets that f makes and programs
// that it starts are in it and stay there; a program that is to get a signal
// when its parent thread ends must not outlive f.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread, which must be locked and not be given back.
func (n *namespace) enter() error {
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// batch runs a program of iproute2 in the namespace and feeds it a script. The
// files become its descriptors from 3 on.
func (n *namespace) batch(ctx context.Context, program, script string, files ...*os.File) error {
	return n.do(func() error {
		cmd := exec.CommandContext(ctx, tool(program), "-batch", "-")
		var said bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(script), &said, &said
		cmd.ExtraFiles = files
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run %s: %w", program, errors.Join(err, errors.New(oneLine(said.Bytes()))))
		}
		return nil
	})
}

// tool finds a program of the system, also where it is not in everybody's PATH.
func tool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return filepath.Join("/usr/sbin", name)
}

// oneLine puts what a program said into one line.
func oneLine(said []byte) string { return strings.Join(strings.Fields(string(said)), " ") }

// onThread calls f on a thread that ends with it, so that f may change what
// belongs to the thread.
func onThread(f func() error) error {
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err = f()
	})
	wg.Wait()
	return err
}
