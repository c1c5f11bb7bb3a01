package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// apt resolves and downloads packages with the machine's sources and keys but
// with files of its own, as if nothing were installed. It neither installs
// anything nor changes the machine's package lists.
type apt struct {
	dir      string // of the cache, absolute
	progress func(Progress)
}

// debFile is a downloaded package.
type debFile struct {
	// Name is the file's name, which holds the package's name and version.
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// plan is what the layers of an image consist of. It is kept in the cache, so
// an image stays the same, and is built without the network, until the cache
// is removed.
type plan struct {
	Architecture string      `json:"architecture"` // in Debian's words
	Layers       [][]debFile `json:"layers"`
}

func (a *apt) debs() string { return filepath.Join(a.dir, "debs") }

// config is what apt is told. List options are cleared so that hooks of the
// machine do not run. Packages are what their signed lists promise, so the
// user they are downloaded as does not matter.
const aptConfig = `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::State::status "%[1]s/status";
Dir::State::extended_states "%[1]s/extended_states";
Dir::Cache "%[1]s";
Dir::Cache::archives "%[1]s/debs/";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
`

// prepare makes the cache directory usable.
func (a *apt) prepare() error {
	for _, tool := range []string{"apt-get", "dpkg", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("build image from packages: %w: this works on Debian and its derivatives only", err)
		}
	}
	for _, d := range []string{"debs/partial", "none/partial", "plans", "lists/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return fmt.Errorf("prepare package cache: %w", err)
		}
	}
	if strings.ContainsAny(a.dir, "\"\n") {
		return fmt.Errorf("prepare package cache: directory %q cannot be written in apt's configuration", a.dir)
	}
	err := errors.Join(
		os.WriteFile(filepath.Join(a.dir, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(a.dir, "apt.conf"), fmt.Appendf(nil, aptConfig, a.dir), 0o644),
	)
	if err != nil {
		return fmt.Errorf("prepare package cache: %w", err)
	}
	return nil
}

// lockDir creates dir where it is missing and waits until no other process
// holds its lock. Closing the file unlocks.
func lockDir(ctx context.Context, dir string, progress func(Progress)) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock directory: %w", err)
	}
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock directory %s: %w", dir, err), f.Close())
		}
		if !said {
			progress(Progress{Step: "wait for another process to leave " + dir, Fraction: -1})
		}
		// flock(2) has no form that waits and can be interrupted from here.
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, errors.Join(fmt.Errorf("lock directory %s: %w", dir, err), f.Close())
		}
	}
}

// plan says which packages each layer consists of, everything they depend on
// included and nothing twice, and sees to it that they are in the cache, which
// it has to itself meanwhile.
func (a *apt) plan(ctx context.Context, layers [][]string) (plan, error) {
	lock, err := lockDir(ctx, a.dir, a.progress)
	if err != nil {
		return plan{}, err
	}
	defer lock.Close()
	if err := a.prepare(); err != nil {
		return plan{}, err
	}
	arch, err := exec.CommandContext(ctx, "dpkg", "--print-architecture").Output()
	if err != nil {
		return plan{}, fmt.Errorf("ask dpkg for the architecture: %w", err)
	}
	p := plan{Architecture: strings.TrimSpace(string(arch))}
	wanted, err := json.Marshal(layers)
	if err != nil {
		return plan{}, fmt.Errorf("plan packages: %w", err)
	}
	saved := filepath.Join(a.dir, "plans", digest.FromBytes(append(wanted, p.Architecture...)).Encoded()+".json")
	if a.load(saved, &p) {
		return p, nil
	}
	// The machine's package lists may be absent, or so old that the files they
	// name are gone from the mirrors; then fetch lists of our own.
	err = a.resolve(ctx, layers, &p, "")
	if err != nil && ctx.Err() == nil {
		a.progress(Progress{Step: "fetch package lists", Fraction: -1})
		own := "Dir::State::lists=" + filepath.Join(a.dir, "lists") + "/"
		if uerr := a.run(ctx, nil, "-o", own, "update"); uerr != nil {
			return plan{}, errors.Join(err, uerr)
		}
		err = a.resolve(ctx, layers, &p, own)
	}
	if err != nil {
		return plan{}, err
	}
	data, err := json.MarshalIndent(p, "", " ")
	if err == nil {
		err = writeFile(saved, data)
	}
	if err != nil {
		return plan{}, fmt.Errorf("save plan: %w", err)
	}
	return p, nil
}

// load reads a saved plan and reports whether all its packages are there.
func (a *apt) load(path string, p *plan) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var saved plan
	if json.Unmarshal(data, &saved) != nil {
		return false
	}
	for _, layer := range saved.Layers {
		for _, d := range layer {
			st, err := os.Stat(filepath.Join(a.debs(), d.Name))
			if err != nil || st.Size() != d.Size {
				return false
			}
		}
	}
	*p = saved
	return true
}

// resolve fills in p.Layers and downloads the packages. option is one more
// option for apt, or empty.
func (a *apt) resolve(ctx context.Context, layers [][]string, p *plan, option string) error {
	var opts []string
	if option != "" {
		opts = []string{"-o", option}
	}
	p.Layers = nil
	var all []string
	have := map[string]bool{}
	for _, names := range layers {
		all = append(all, names...)
		var out bytes.Buffer
		// With an empty archive directory apt prints every package it needs,
		// not only those that are still to be downloaded.
		args := append(opts, "-o", "Dir::Cache::archives="+filepath.Join(a.dir, "none")+"/", "--print-uris", "install")
		if err := a.run(ctx, &out, append(args, all...)...); err != nil {
			return fmt.Errorf("resolve packages %s: %w", strings.Join(names, " "), err)
		}
		debs, err := parseURIs(&out)
		if err != nil {
			return fmt.Errorf("resolve packages %s: %w", strings.Join(names, " "), err)
		}
		var layer []debFile
		for _, d := range debs {
			if !have[d.Name] {
				have[d.Name] = true
				layer = append(layer, d)
			}
		}
		if len(layer) == 0 {
			return fmt.Errorf("resolve packages %s: the layers below have them all", strings.Join(names, " "))
		}
		p.Layers = append(p.Layers, layer)
	}
	if err := a.download(ctx, append(append(opts, "--download-only", "install"), all...)); err != nil {
		return err
	}
	for _, layer := range p.Layers {
		for _, d := range layer {
			if _, err := os.Stat(filepath.Join(a.debs(), d.Name)); err != nil {
				return fmt.Errorf("download packages: apt left one out: %w", err)
			}
		}
	}
	return nil
}

// parseURIs reads the output of apt-get --print-uris: per line a quoted
// address, the file's name, its size and perhaps a checksum.
func parseURIs(out *bytes.Buffer) ([]debFile, error) {
	var debs []debFile
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") || !strings.HasSuffix(f[1], ".deb") {
			continue // apt also says what it does
		}
		size, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil || size <= 0 || f[1] != filepath.Base(f[1]) {
			return nil, fmt.Errorf("read apt's answer: line %q makes no sense", strings.TrimSpace(line))
		}
		debs = append(debs, debFile{f[1], size})
	}
	if len(debs) == 0 {
		return nil, errors.New("read apt's answer: it names no package")
	}
	return debs, nil
}

// download runs apt-get with args and passes on how far it is.
func (a *apt) download(ctx context.Context, args []string) error {
	pr, pw, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("download packages: %w", err)
	}
	defer pr.Close()
	cmd := a.command(ctx, append([]string{"-o", "APT::Status-Fd=3"}, args...))
	cmd.ExtraFiles = []*os.File{pw}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Start()
	_ = pw.Close()
	if err != nil {
		return fmt.Errorf("download packages: %w", err)
	}
	// dlstatus:<file>:<percent>:<text> (apt's README.progress-reporting)
	for lines := bufio.NewScanner(pr); lines.Scan(); {
		f := strings.SplitN(lines.Text(), ":", 4)
		if len(f) < 3 || f[0] != "dlstatus" {
			continue
		}
		if percent, err := strconv.ParseFloat(f[2], 64); err == nil {
			a.progress(Progress{Step: "download packages", Fraction: percent / 100})
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("download packages: %w", aptError(ctx, err, stderr.String()))
	}
	return nil
}

// run runs apt-get with args; its output goes to out when that is not nil.
func (a *apt) run(ctx context.Context, out *bytes.Buffer, args ...string) error {
	cmd := a.command(ctx, args)
	if out != nil {
		cmd.Stdout = out
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return aptError(ctx, err, stderr.String())
	}
	return nil
}

func (a *apt) command(ctx context.Context, args []string) *exec.Cmd {
	args = append([]string{"-c", filepath.Join(a.dir, "apt.conf"), "-qq", "-y"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	return cmd
}

// aptError adds what apt said to how it ended.
func aptError(ctx context.Context, err error, stderr string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("apt-get: %w", ctx.Err())
	}
	return fmt.Errorf("apt-get: %w: %s", err, strings.TrimSpace(stderr))
}

// writeFile writes data to path so that path is never half written.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Chmod(0o644), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
