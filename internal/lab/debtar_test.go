package lab

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestNamesOnAMergedSystem(t *testing.T) {
	for in, want := range map[string]string{
		"./":                   ".",
		"./bin/":               "usr/bin",
		"./bin/ls":             "usr/bin/ls",
		"./lib64/ld-linux.so":  "usr/lib64/ld-linux.so",
		"./lib32/x":            "lib32/x",
		"./library/x":          "library/x",
		"./usr/bin/ls":         "usr/bin/ls",
		"sbin/init":            "usr/sbin/init",
		"/lib/../../bin/x":     "usr/bin/x",
		"./usr/share/\xff/lib": "usr/share/\xff/lib",
	} {
		if got := mergeUsr(cleanName(in)); got != want {
			t.Errorf("%q is at %q, want %q", in, got, want)
		}
	}
}

// makeDeb builds a package named after its directory with dpkg-deb.
func makeDeb(t *testing.T, name string, fill func(dir string)) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("NOT TESTED: dpkg-deb is not installed")
	}
	dir := filepath.Join(t.TempDir(), name)
	control := fmt.Sprintf("Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n", name)
	must(t, os.MkdirAll(filepath.Join(dir, "DEBIAN"), 0o755), os.WriteFile(filepath.Join(dir, "DEBIAN/control"), []byte(control), 0o644))
	fill(dir)
	out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--build", "-Zxz", "--root-owner-group", dir, dir+".deb").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir + ".deb"
}

func put(t *testing.T, path, content string, mode uint32) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600), unix.Chmod(path, mode))
	must(t, os.Chtimes(path, time.Time{}, time.Unix(1_500_000_000, 0)))
}

// list returns "type mode name -> link [xattrs] content" of each entry.
func list(t *testing.T, data []byte) []string {
	t.Helper()
	var got []string
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return got
		}
		must(t, err)
		body, err := io.ReadAll(tr)
		must(t, err)
		s := fmt.Sprintf("%c %04o %s", h.Typeflag, h.Mode, h.Name)
		if h.Linkname != "" {
			s += " -> " + h.Linkname
		}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY") {
				s += fmt.Sprintf(" %s=%d", k, len(v))
			}
		}
		if len(body) > 0 {
			s += " " + string(body)
		}
		got = append(got, s)
	}
}

func TestPackagesBecomeALayer(t *testing.T) {
	long := "usr/share/" + strings.Repeat("x", 150) + "/" + strings.Repeat("y", 150)
	a := makeDeb(t, "a", func(dir string) {
		put(t, dir+"/bin/tool", "tool", 0o4755)
		must(t, os.Link(dir+"/bin/tool", dir+"/bin/again"), os.Symlink("tool", dir+"/bin/soft"))
		put(t, dir+"/usr/share/base-passwd/passwd.master", "root:x", 0o644)
		put(t, dir+"/bin/ping", "ping", 0o755)
		put(t, dir+"/"+long, "long", 0o600)
	})
	b := makeDeb(t, "b", func(dir string) {
		put(t, dir+"/usr/bin/other", "other", 0o755)
		must(t, os.Chmod(dir+"/usr/bin", 0o700)) // too late: the first package's counts
	})
	var buf bytes.Buffer
	l := newLayerTar(&buf)
	must(t, l.deb(t.Context(), a), l.deb(t.Context(), b), l.finish())
	want := []string{
		"5 0755 usr/", "5 0755 usr/bin/",
		"0 4755 usr/bin/again tool",
		"0 0755 usr/bin/ping SCHILY.xattr.security.capability=20 ping",
		"1 4755 usr/bin/tool -> usr/bin/again",
		"5 0755 usr/share/", "5 0755 usr/share/base-passwd/",
		"0 0644 usr/share/base-passwd/passwd.master root:x",
		"5 0755 " + filepath.Dir(long) + "/",
		"0 0600 " + long + " long",
		"2 0777 usr/bin/soft -> tool",
		"0 0755 usr/bin/other other",
		"5 0755 etc/",
		"0 0644 etc/passwd root:x",
	}
	if diff := cmp.Diff(want, list(t, buf.Bytes())); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	if l.entries != len(want) {
		t.Errorf("%d entries counted, want %d", l.entries, len(want))
	}
}

func TestPackagesThatShareAFileAreRefused(t *testing.T) {
	a := makeDeb(t, "a", func(dir string) { put(t, dir+"/bin/tool", "a", 0o755) })
	b := makeDeb(t, "b", func(dir string) { put(t, dir+"/usr/bin/tool", "b", 0o755) })
	l := newLayerTar(io.Discard)
	must(t, l.deb(t.Context(), a))
	err := l.deb(t.Context(), b)
	if err == nil || !strings.Contains(err.Error(), `both a.deb and b.deb have "usr/bin/tool"`) {
		t.Errorf("err = %v", err)
	}
}

func TestBrokenPackage(t *testing.T) {
	good := makeDeb(t, "a", func(dir string) { put(t, dir+"/usr/tool", strings.Repeat("tool", 10_000), 0o755) })
	data, err := os.ReadFile(good)
	must(t, err)
	for cut := 10; cut < len(data); cut += len(data) / 5 {
		bad := filepath.Join(t.TempDir(), "bad.deb")
		must(t, os.WriteFile(bad, data[:cut], 0o644))
		if err := newLayerTar(io.Discard).deb(t.Context(), bad); err == nil {
			t.Errorf("a package cut at %d of %d bytes was accepted", cut, len(data))
		}
	}
}

func TestSkeleton(t *testing.T) {
	var buf bytes.Buffer
	l := newLayerTar(&buf)
	l.newest = time.Unix(1_500_000_000, 0)
	must(t, l.skeleton(), l.finish())
	got := strings.Join(list(t, buf.Bytes()), "\n")
	for _, want := range []string{"2 0777 bin -> usr/bin", "3 0666 dev/null", "5 1777 dev/shm/", "6 0600 run/initctl"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestParseURIs(t *testing.T) {
	in := "NOTE: something\n'http://x/a_1%3a2_all.deb' a_1%3a2_all.deb 123 MD5Sum:00\n'http://x/b.deb' b_2_amd64.deb 7 \n"
	got, err := parseURIs(bytes.NewBufferString(in))
	must(t, err)
	if diff := cmp.Diff([]debFile{{"a_1%3a2_all.deb", 123}, {"b_2_amd64.deb", 7}}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "'u' x.deb many", "'u' ../x.deb 12", "'u' x.deb 0"} {
		if got, err := parseURIs(bytes.NewBufferString(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func FuzzParseURIs(f *testing.F) {
	f.Add("'http://x/a_1%3a2_all.deb' a_1%3a2_all.deb 123 MD5Sum:00\n")
	f.Add("'u' ../x.deb 12")
	f.Fuzz(func(t *testing.T, in string) {
		debs, err := parseURIs(bytes.NewBufferString(in))
		if err == nil && len(debs) == 0 {
			t.Error("no error and no package")
		}
		for _, d := range debs {
			if d.Size <= 0 || strings.Contains(d.Name, "/") {
				t.Errorf("accepted %+v", d)
			}
		}
	})
}
