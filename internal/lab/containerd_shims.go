package lab

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one line of what runs on the machine.
type process struct {
	pid, parent int
	args        []string
}

// processes lists what runs. Those that end meanwhile are left out.
func processes() []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only on a bad pattern
	var list []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		parent, ok := parentOf(string(stat))
		if !ok {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
		list = append(list, process{pid, parent, args})
	}
	return list
}

// parentOf returns the parent in a stat file (proc(5)): the second field after
// the program's name, which is in parentheses and may contain any character.
func parentOf(stat string) (int, bool) {
	_, rest, ok := cutLast(stat, ")")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 2 {
		return 0, false
	}
	pid, err := strconv.Atoi(fields[1])
	return pid, err == nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

// shimsOf returns the shims of the containerd with the given socket, and then
// what they have started: containers, whose orphans a shim adopts. They are to
// be killed from the end, as the children of a shim that is gone are nobody's.
func shimsOf(socket string, all []process) []process {
	var found []process
	for _, p := range all {
		i := slices.Index(p.args, "-address")
		if i >= 0 && i+1 < len(p.args) && p.args[i+1] == socket &&
			strings.HasPrefix(filepath.Base(p.args[0]), "containerd-shim") {
			found = append(found, p)
		}
	}
	for i := 0; i < len(found); i++ { // it grows meanwhile
		for _, p := range all {
			if p.parent == found[i].pid {
				found = append(found, p)
			}
		}
	}
	return found
}

// killShims kills the shims of a containerd that has ended, and the containers
// below them, and waits up to stopLimit until they are gone.
func killShims(socket string, log *slog.Logger) {
	killAll(func() []process { return shimsOf(socket, processes()) }, log)
}

// KillProcesses kills every process that was started with a path below dir
// among its arguments, and waits up to five seconds until they are gone: what
// daemons have left that had their files there. dir is an absolute path that
// nobody else uses. This process is spared.
func KillProcesses(dir string, log *slog.Logger) {
	killAll(func() []process {
		return slices.DeleteFunc(processes(), func(p process) bool {
			below := func(arg string) bool { return strings.Contains(arg, dir+"/") }
			return p.pid == os.Getpid() || !slices.ContainsFunc(p.args, below)
		})
	}, log)
}

// killAll kills what find finds, the last one first, until it finds nothing or
// stopLimit is over.
func killAll(find func() []process, log *slog.Logger) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	deadline := time.Now().Add(stopLimit)
	for {
		left := find()
		if len(left) == 0 {
			return
		}
		for _, p := range slices.Backward(left) {
			log.Info("killing what was left running", "pid", p.pid, "args", p.args)
			_ = unix.Kill(p.pid, unix.SIGKILL) // it may have ended
		}
		if time.Now().After(deadline) {
			log.Warn("not all that was left running could be killed", "count", len(left))
			return
		}
		again := time.NewTimer(20 * time.Millisecond)
		<-again.C
	}
}

// runcRoot is where shims keep runc's state unless they are told otherwise: one
// folder for every namespace, shared by all containerds of the machine.
const runcRoot = "/run/containerd/runc"

// shimSocket is where a bundle says what its shim listens on, in a folder that
// all containerds of the machine share.
var shimSocket = regexp.MustCompile(`unix://(/run/containerd/s/[0-9a-f]{64})\b`)

// forgetContainers removes runc's state, the cgroups and the shims' sockets of
// containers that were killed, so that their names can be used again. stateDir
// is containerd's.
func forgetContainers(stateDir string) error {
	bundles, err := filepath.Glob(filepath.Join(stateDir, "io.containerd.runtime.v2.task", "*", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, bundle := range bundles {
		for _, name := range []string{"address", "bootstrap.json"} { // of 1.x, of 2.x
			text, _ := os.ReadFile(filepath.Join(bundle, name)) // there is one of them
			if m := shimSocket.FindSubmatch(text); m != nil {
				_ = os.Remove(string(m[1])) // the shim may have done it
			}
		}
		id, namespace := filepath.Base(bundle), filepath.Base(filepath.Dir(bundle))
		root := filepath.Join(runcRoot, namespace)
		state, err := os.ReadFile(filepath.Join(root, id, "state.json"))
		// Another containerd may have a container of the same name.
		if err != nil || !bytes.Contains(state, []byte(`"bundle=`+bundle+`"`)) {
			continue
		}
		if out, err := exec.Command("runc", "--root", root, "delete", "--force", id).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("delete container %s of namespace %s: %w: %s", id, namespace, err, bytes.TrimSpace(out)))
		}
	}
	return errors.Join(errs...)
}
