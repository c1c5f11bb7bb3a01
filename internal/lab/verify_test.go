package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that cannot be run by others, but never where a skip
// would go unnoticed.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test must run as root")
	}
	t.Skip("NOT TESTED: must run as root")
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

var stamp = unix.Timespec{Sec: 1_600_000_000, Nsec: 123_456_789}

func setTimes(t *testing.T, path string, ts unix.Timespec) {
	t.Helper()
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// sample makes a tree with one thing of each type and returns its path.
func sample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.Mkdir(p("d"), 0o755),
		os.WriteFile(p("d/file"), []byte("content"), 0o644),
		os.WriteFile(p("d/same-size"), []byte("CONTENT"), 0o644),
		os.WriteFile(p("empty"), nil, 0o600),
		os.WriteFile(p("bad-\xff-name"), []byte("x"), 0o600),
		os.Link(p("d/file"), p("d/hard")),
		os.Symlink("file", p("d/soft")),
		unix.Mkfifo(p("fifo"), 0o644),
		unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Setxattr(p("d/file"), "user.note", []byte("abc"), 0),
		unix.Setxattr(p("d/same-size"), "security.capability", netRaw, 0),
	)
	for _, name := range []string{"d/file", "d/same-size", "d/soft", "d", "empty", "bad-\xff-name", "fifo", "null", "."} {
		setTimes(t, p(name), stamp)
	}
	return dir
}

func TestCompareTreesFindsEachDifference(t *testing.T) {
	needRoot(t)
	replace := func(t *testing.T, path string, content string) {
		must(t, os.Remove(path), os.WriteFile(path, []byte(content), 0o644))
		setTimes(t, path, stamp)
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, dir string)
		opts   CompareOptions
		want   string // "path field" of each difference
	}{
		{name: "nothing", change: func(*testing.T, string) {}},
		{name: "missing", want: `empty exists`, change: func(t *testing.T, dir string) { must(t, os.Remove(dir+"/empty")) }},
		{name: "extra", want: `new exists`, change: func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/new", 0o755), os.WriteFile(dir+"/new/below", nil, 0o600))
		}},
		{name: "type", want: `empty type`, change: func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/empty"), os.Mkdir(dir+"/empty", 0o600))
		}},
		{name: "setuid", want: `empty mode`, change: func(t *testing.T, dir string) { must(t, unix.Chmod(dir+"/empty", 0o4600)) }},
		{name: "top", want: `. mode`, change: func(t *testing.T, dir string) { must(t, os.Chmod(dir, 0o700)) }},
		{name: "owner", want: `d/soft uid; d/soft gid`, change: func(t *testing.T, dir string) { must(t, os.Lchown(dir+"/d/soft", 7, 8)) }},
		{name: "nanosecond", want: `d mtime`, change: func(t *testing.T, dir string) {
			setTimes(t, dir+"/d", unix.Timespec{Sec: stamp.Sec, Nsec: stamp.Nsec + 1})
		}},
		{name: "size", want: `empty size`, change: func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/empty", []byte("x"), 0o600))
			setTimes(t, dir+"/empty", stamp)
		}},
		{name: "content", want: `bad-` + "\xff" + `-name content`, change: func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/bad-\xff-name", []byte("y"), 0o600))
			setTimes(t, dir+"/bad-\xff-name", stamp)
		}},
		{name: "content of a hard link", want: `d/file content`, change: func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/d/hard", []byte("CoNTENT"), 0o600))
			setTimes(t, dir+"/d/hard", stamp)
		}},
		{name: "hard link broken", want: `d/file nlink; d/hard xattr user.note; d/hard nlink; d/hard links`, change: func(t *testing.T, dir string) {
			replace(t, dir+"/d/hard", "content")
		}},
		{name: "hard link to another", want: `d/file nlink; d/hard xattr security.capability; d/hard xattr user.note; d/hard links; d/same-size nlink; d/same-size links`, change: func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/d/hard"), os.Link(dir+"/d/same-size", dir+"/d/hard"))
		}},
		{name: "target", want: `d/soft target`, change: func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/d/soft"), os.Symlink("hard", dir+"/d/soft"))
			setTimes(t, dir+"/d/soft", stamp)
		}},
		{name: "device", want: `null device`, change: func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/null"), unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
			setTimes(t, dir+"/null", stamp)
		}},
		{name: "xattr value", want: `d/file xattr user.note; d/hard xattr user.note`, change: func(t *testing.T, dir string) {
			must(t, unix.Setxattr(dir+"/d/file", "user.note", []byte("abd"), 0))
		}},
		{name: "xattr gone", want: `d/same-size xattr security.capability`, change: func(t *testing.T, dir string) {
			must(t, unix.Removexattr(dir+"/d/same-size", "security.capability"))
		}},
		{name: "xattr of a directory", want: `. xattr trusted.x`, change: func(t *testing.T, dir string) {
			must(t, unix.Setxattr(dir, "trusted.x", make([]byte, 3000), 0))
		}},
		{name: "directory link count", want: `d nlink`, opts: CompareOptions{DirNlink: true}, change: func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/d/sub", 0o755))
			setTimes(t, dir+"/d", stamp)
		}},
		{name: "ignored path", opts: CompareOptions{Ignore: func(p string) bool { return p == "new" }}, change: func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/new", 0o755), os.WriteFile(dir+"/new/below", nil, 0o600))
		}},
		{name: "ignored field", want: `d mode`, opts: CompareOptions{IgnoreField: func(p, f string) bool { return p == "d" && f == FieldMTime }}, change: func(t *testing.T, dir string) {
			must(t, os.Chmod(dir+"/d", 0o700), os.Chtimes(dir+"/d", time.Time{}, time.Unix(5, 0)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := sample(t), sample(t)
			c.change(t, b)
			// Making the change touched the directory it was made in.
			setTimes(t, b, stamp)
			if !strings.Contains(c.want, "d mtime") && !strings.Contains(c.want, "d mode") {
				setTimes(t, b+"/d", stamp)
			}
			if c.name == "directory link count" {
				c.opts.Ignore = func(p string) bool { return p == "d/sub" }
			}
			diffs, err := CompareTrees(t.Context(), a, b, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range diffs {
				got = append(got, d.Path+" "+d.Field)
				if d.A == d.B {
					t.Errorf("difference with equal values: %v", d)
				}
			}
			if s := strings.Join(got, "; "); s != c.want {
				t.Errorf("differences:\n got %q\nwant %q", s, c.want)
			}
		})
	}
}

func TestCompareTreesFailsOnWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := CompareTrees(t.Context(), dir+"/a", dir+"/b", CompareOptions{}); err == nil {
		t.Error("comparing two missing directories succeeded")
	}
	diffs, err := CompareTrees(t.Context(), dir, dir+"/b", CompareOptions{})
	if err != nil || len(diffs) != 1 || diffs[0].Field != FieldExists {
		t.Errorf("comparing with a missing directory = %v, %v", diffs, err)
	}
}

func TestDifferenceString(t *testing.T) {
	d := Difference{Path: "a\xff", Field: FieldMode, A: "0644", B: "0755"}
	if got, want := d.String(), `"a\xff": mode: 0644, 0755`; got != want {
		t.Errorf("String = %s, want %s", got, want)
	}
}
