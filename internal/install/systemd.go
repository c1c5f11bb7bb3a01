package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"skimmer/internal/blob"
)

// DefaultUnit is the systemd unit that runs the node daemon.
const DefaultUnit = "/etc/systemd/system/skimmer.service"

// Systemd makes the node daemon a systemd service.
type Systemd struct {
	// Unit is the file to write; empty is DefaultUnit.
	Unit string
	// Binary is the skimmer to run, an absolute path.
	Binary string
	// PeerConfig is the daemon's configuration file, an absolute path. It has
	// to be there when the service starts.
	PeerConfig string
}

// unitWritten is the first line of units that are ours.
const unitWritten = "# Written by skimmer install systemd."

// unit is the service, with the program and its configuration left open.
//
// What is not in it is as important: PrivateTmp, ProtectSystem and the like
// give the daemon a mount namespace of its own, in which containers cannot
// see what it mounts.
const unit = unitWritten + ` Put changes into
# skimmer.service.d/*.conf (systemctl edit skimmer), where they are kept.
[Unit]
Description=Skimmer: lazy and peer-to-peer container images
After=local-fs.target network.target
# Containers that containerd starts again at boot need their images mounted.
Before=containerd.service

[Service]
Type=notify
ExecStart=%s peer --config %s
Restart=always
RestartSec=1
# A helper holds the mounts while the daemon is replaced; it must outlive it.
KillMode=process
Delegate=yes
TimeoutStopSec=90
RuntimeDirectory=skimmer
RuntimeDirectoryPreserve=yes
StateDirectory=skimmer
# Mounts have to be seen outside.
MountFlags=shared
# Containers wait for this process: it is the last to go when memory is short.
OOMScoreAdjust=-999
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
LockPersonality=yes
RestrictRealtime=yes

[Install]
WantedBy=multi-user.target
`

func (s *Systemd) complete() {
	if s.Unit == "" {
		s.Unit = DefaultUnit
	}
}

// Install returns what writes the unit. A unit of somebody else is not
// overwritten (Invalid).
func (s Systemd) Install() (*Change, error) {
	s.complete()
	for _, path := range []string{s.Binary, s.PeerConfig} {
		if !validPath.MatchString(path) || strings.ContainsAny(path, " ~") {
			return nil, blob.Errorf(blob.Invalid, "write unit: %q is not an absolute path in plain characters", path)
		}
	}
	before, err := s.read()
	if err != nil {
		return nil, err
	}
	return &Change{Path: s.Unit, Before: before, After: fmt.Appendf(nil, unit, s.Binary, s.PeerConfig)}, nil
}

// Uninstall returns what removes the unit. A unit of somebody else is not
// removed (Invalid).
func (s Systemd) Uninstall() (*Change, error) {
	s.complete()
	before, err := s.read()
	if err != nil {
		return nil, err
	}
	return &Change{Path: s.Unit, Before: before}, nil
}

// read returns the unit that is there, which has to be ours.
func (s *Systemd) read() ([]byte, error) {
	text, err := readFile(s.Unit)
	if err != nil {
		return nil, fmt.Errorf("read unit: %w", err)
	}
	if text != nil && !bytes.HasPrefix(text, []byte(unitWritten)) {
		return nil, blob.Errorf(blob.Invalid, "write unit: %s is there and was not written by skimmer: move it away, or choose another place with --unit", s.Unit)
	}
	return text, nil
}

// Name returns the name systemd knows the unit by.
func (s Systemd) Name() string {
	s.complete()
	return filepath.Base(s.Unit)
}

// Systemctl runs systemctl on the services of this machine. Errors:
// Unavailable on a machine that systemd does not run.
func Systemctl(ctx context.Context, args ...string) error {
	what := "systemctl " + strings.Join(args, " ")
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return blob.Errorf(blob.Unavailable, "run %s: this machine does not run systemd: do it with what does run its services", what)
	}
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		if text := strings.Join(strings.Fields(string(out)), " "); text != "" {
			return fmt.Errorf("run %s: %w: %s", what, err, text)
		}
		return fmt.Errorf("run %s: %w", what, err)
	}
	return nil
}

// ContainerdVersion asks the containerd program for its version; empty if
// there is none.
func ContainerdVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "containerd", "--version").Output()
	if err != nil {
		return ""
	}
	if _, _, ok := parseVersion(strings.TrimSpace(string(out))); !ok {
		return ""
	}
	return strings.TrimSpace(string(out))
}
