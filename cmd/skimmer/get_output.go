package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"skimmer/internal/peer"
)

// output is where a downloaded file goes.
type output struct {
	path string // empty: to stream
	// stream is standard output, or what is there and is no regular file; nil
	// for files.
	stream io.Writer
	opened *os.File // stream, if it must be closed
}

func (o output) name() string {
	if o.path == "" {
		return "standard output"
	}
	return o.path
}

// newOutput says where a file from rawURL goes when --output is flag.
func newOutput(flag, rawURL string, force bool, stdout io.Writer) (output, error) {
	if flag == "-" {
		return output{stream: stdout}, nil
	}
	o := output{path: flag}
	st, err := os.Stat(flag)
	if flag == "" || err == nil && st.IsDir() || strings.HasSuffix(flag, "/") {
		name, err := fileNameOf(rawURL)
		if err != nil {
			return output{}, err
		}
		o.path = filepath.Join(flag, name)
		st, _ = os.Stat(o.path)
	}
	switch {
	case st == nil: // nothing is there
	case st.IsDir():
		return output{}, fmt.Errorf("write %s: it is a directory", o.path)
	case !st.Mode().IsRegular():
		f, err := os.OpenFile(o.path, os.O_WRONLY, 0)
		if err != nil {
			return output{}, fmt.Errorf("write: %w", err)
		}
		o.stream, o.opened = f, f
	case !force:
		return output{}, fmt.Errorf("write %s: it exists: choose another name with --output, or replace it with --force", o.path)
	}
	return o, nil
}

// fileNameOf returns what a file from rawURL is called: the last element of
// the path, and for a blob of a registry the digits of its digest.
func fileNameOf(rawURL string) (string, error) {
	if _, d, ok := strings.Cut(rawURL, "@"); ok && strings.HasPrefix(rawURL, "oci://") && digest.Digest(d).Validate() == nil {
		return digest.Digest(d).Encoded(), nil
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", errors.New("read URL: it is malformed")
	}
	name := path.Base(u.Path)
	if strings.HasSuffix(u.Path, "/") || name == "." || name == ".." || name == "/" || strings.ContainsAny(name, "/\x00") {
		return "", errors.New("read URL: it does not say what to call the file: choose a name with --output")
	}
	return name, nil
}

// partID is the content of FILE.part.id: of what FILE.part is a part.
type partID struct {
	Digest digest.Digest `json:"digest"`
	Off    int64         `json:"off"`
	Len    int64         `json:"len"` // as asked for; 0 is to the end
}

// partFile is a file while it is downloaded. It is written to in order.
type partFile struct {
	out  output
	path string   // of FILE.part; empty for a stream
	f    *os.File // nil for a stream
	id   partID
	n    int64 // bytes there are of it

	unique, useless bool // nobody can continue it
}

// openPart opens what is there of the file. Of another part of it, and what is
// not known to be of it, n is 0.
func (o output) openPart(want peer.Part) (*partFile, error) {
	p := &partFile{out: o}
	if o.stream != nil {
		return p, nil
	}
	p.path = o.path + ".part"
	f, err := os.OpenFile(p.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	if err := p.lock(f); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(p.idPath())
	if err == nil && json.Unmarshal(text, &p.id) == nil && p.id.Off == want.Off && p.id.Len == want.Len && p.id.Digest != "" {
		if st, err := f.Stat(); err == nil {
			p.n = st.Size()
		}
	}
	return p, nil
}

// lock makes f the file that is written to, unless another process does that.
func (p *partFile) lock(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("write %s: another process does: %w", p.path, err), f.Close())
	}
	p.f = f
	return nil
}

func (p *partFile) idPath() string { return p.path + ".id" }

// begin prepares for what file brings, to be put behind the first n bytes.
func (p *partFile) begin(file *peer.File, want peer.Part) error {
	p.unique = file.Unique
	if p.out.stream != nil {
		return nil
	}
	if p.f == nil {
		f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := p.lock(f); err != nil {
			return err
		}
	}
	if err := p.f.Truncate(p.n); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if _, err := p.f.Seek(p.n, io.SeekStart); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	text, err := json.Marshal(partID{file.Digest, want.Off, want.Len})
	if err != nil {
		return fmt.Errorf("write %s: %w", p.idPath(), err)
	}
	// Before the first byte that it is about, and never about others.
	if err := os.WriteFile(p.idPath(), text, 0o666); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func (p *partFile) Write(b []byte) (n int, err error) {
	if p.f != nil {
		n, err = p.f.Write(b)
	} else {
		n, err = p.out.stream.Write(b)
	}
	p.n += int64(n)
	return n, err
}

// take copies some of file, which is behind what is there, and returns how much.
func (p *partFile) take(file *peer.File) (int64, error) {
	n, err := file.CopyTo(p.f, p.n)
	p.n += n
	var failed *fs.PathError
	if errors.As(err, &failed) {
		err = fmt.Errorf("write: %w", err)
	}
	return n, err
}

// has reports whether what is there has a digest.
func (p *partFile) has(d digest.Digest) (bool, error) {
	v := d.Verifier()
	err := p.copyTo(v)
	return v.Verified(), err
}

// copyTo writes what is there already to w.
func (p *partFile) copyTo(w io.Writer) error {
	if p.f == nil || p.n == 0 {
		return nil
	}
	if _, err := io.Copy(w, io.NewSectionReader(p.f, 0, p.n)); err != nil {
		return fmt.Errorf("read %s: %w", p.path, err)
	}
	return nil
}

// finish gives the complete file its name.
func (p *partFile) finish() error {
	if err := p.close(); err != nil {
		return err
	}
	if p.path == "" {
		return nil
	}
	if err := os.Rename(p.path, p.out.path); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return removeFile(p.idPath())
}

// abandon closes the file, and deletes it if nobody can continue it.
func (p *partFile) abandon() (kept bool, err error) {
	err = p.close()
	if p.path == "" {
		return false, err
	}
	if p.n > 0 && !p.unique && !p.useless {
		return true, err
	}
	return false, errors.Join(err, removeFile(p.path), removeFile(p.idPath()))
}

func (p *partFile) close() error {
	f := p.f
	if f == nil {
		f = p.out.opened
	}
	if f == nil {
		return nil
	}
	if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// fileProgress shows how a download gets on: a bar on a terminal, else a line
// now and then. A nil fileProgress shows nothing.
type fileProgress struct {
	out         io.Writer
	name        string
	bars        *mpb.Progress // nil where there is no terminal, as is bar
	bar         *mpb.Bar
	done, total int64
	last        time.Time // of the last line
}

// newFileProgress shows on out how the file called name gets on, of which done
// bytes are there.
func newFileProgress(out io.Writer, name string, done, total int64) *fileProgress {
	p := &fileProgress{out: out, name: name, done: done, total: total, last: time.Now()}
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	begun, before := time.Now(), done
	p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(48))
	p.bar = p.bars.AddBar(total,
		mpb.PrependDecorators(decor.Name(filepath.Base(name)+" ")),
		mpb.AppendDecorators(
			decor.Any(func(s decor.Statistics) string {
				rate := float64(s.Current-before) / max(time.Since(begun).Seconds(), 1e-3)
				return fmt.Sprintf("%s / %s, %s/s", formatBytes(s.Current), formatBytes(s.Total), formatBytes(int64(rate)))
			}, decor.WC{W: 38}),
		),
	)
	p.bar.SetCurrent(done)
	return p
}

// add notes that n more bytes came.
func (p *fileProgress) add(n int) {
	if p == nil {
		return
	}
	p.done += int64(n)
	switch {
	case p.bar != nil:
		p.bar.IncrBy(n)
	case time.Since(p.last) >= lineEvery:
		p.last = time.Now()
		fmt.Fprintf(p.out, "%s: %s of %s, %s\n", p.name, formatBytes(p.done), formatBytes(p.total), percent(p.done, p.total))
	}
}

// close leaves the bar as it is and waits until it is drawn.
func (p *fileProgress) close() {
	if p == nil || p.bars == nil {
		return
	}
	if p.done == p.total {
		p.bar.SetTotal(p.total, true) // of an empty file, too
	}
	p.bar.Abort(false) // does nothing to what has ended
	p.bars.Wait()
}
