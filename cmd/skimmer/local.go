package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Where a node keeps its things unless it is told otherwise.
const (
	defaultDataDir = "/var/lib/skimmer"
	defaultSocket  = "/run/skimmer/skimmer.sock"
)

// localPeer is the flags by which commands find this machine's peer, and what
// it takes to start one.
type localPeer struct {
	socket, dataDir, config string
}

func (l *localPeer) socketFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.socket, "socket", defaultSocket, "control socket of the peer")
}

func (l *localPeer) flags(cmd *cobra.Command) {
	l.socketFlag(cmd)
	cmd.Flags().StringVar(&l.dataDir, "data-dir", defaultDataDir, "where a peer that is started keeps its data")
	cmd.Flags().StringVar(&l.config, "config", "", "configuration file of a peer that is started")
	_ = cmd.MarkFlagDirname("data-dir")
	_ = cmd.MarkFlagFilename("config", "yaml")
}

// startLimit is how long a peer may take to become ready.
const startLimit = 30 * time.Second

// start runs a peer in the background, in a session of its own so that it
// survives this command and its terminal, and returns when it is ready.
func (l *localPeer) start(ctx context.Context, a *app) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start a peer: %w", err)
	}
	for _, path := range []*string{&l.dataDir, &l.socket, &l.config} {
		if *path == "" {
			continue
		}
		// The peer runs elsewhere, so that it keeps no directory busy.
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("start a peer: %w", err)
		}
	}
	if err := os.MkdirAll(l.dataDir, 0o700); err != nil {
		return fmt.Errorf("start a peer: %w", err)
	}
	logPath := filepath.Join(l.dataDir, "peer.log")
	// Appending, because a peer that is about to end may still write to it.
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start a peer: %w", err)
	}
	defer logFile.Close()

	ready, err := listenReady()
	if err != nil {
		return fmt.Errorf("start a peer: %w", err)
	}
	defer ready.Close()

	args := []string{"up", "--exit-when-idle", "--socket", l.socket, "--data-dir", l.dataDir}
	if l.config != "" {
		args = append(args, "--config", l.config)
	}
	if a.verbose {
		args = append(args, "--verbose")
	}
	// Not CommandContext: the peer is meant to outlive this command.
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+ready.LocalAddr().String())
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a peer: %w", err)
	}
	a.logger().Debug("started a peer", "pid", cmd.Process.Pid, "log", logPath)

	// Whatever makes waiting pointless closes the socket waited on.
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { ready.Close() })()
	var reaper sync.WaitGroup // ends with the peer or with this command
	reaper.Go(func() {
		_ = cmd.Wait() // how it ended is in its log
		ready.Close()
	})
	err = awaitReady(ready)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errors.Join(fmt.Errorf("start a peer: not ready: %w (see %s)", ctx.Err(), logPath), cmd.Process.Kill())
	}
	return fmt.Errorf("start a peer: it ended at once: %s (all of it in %s)", lastLine(logPath), logPath)
}

// listenReady returns a socket for the readiness protocol of systemd
// (sd_notify(3)), under an abstract name that no file system holds.
func listenReady() (*net.UnixConn, error) {
	name := fmt.Sprintf("@skimmer-ready-%d", os.Getpid())
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
}

// awaitReady returns when somebody says READY=1 on conn.
func awaitReady(conn *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return fmt.Errorf("wait for the peer: %w", err)
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return nil
			}
		}
	}
}

// lastLine returns the last line of a log that says anything.
func lastLine(path string) string {
	data, _ := os.ReadFile(path)
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(lines[len(lines)-1])
}
