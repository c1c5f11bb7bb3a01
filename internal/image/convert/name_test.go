package convert

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"skimmer/internal/blob"
)

func TestParseName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, f := range []string{"save.tar", "other", "a:b.tar", "python"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	if err := os.Rename(l.Path, "image"); err != nil {
		t.Fatal(err)
	}
	zeros := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct{ in, transport, out string }{
		{"docker.io/library/python:3.12", "docker", "docker.io/library/python:3.12"},
		{"python", "docker", "docker.io/library/python:latest"}, // not the file
		{"docker://ghcr.io/a/b", "docker", "ghcr.io/a/b:latest"},
		{"127.0.0.1:5000/x:tag", "docker", "127.0.0.1:5000/x:tag"},
		{"[::1]:5000/x:tag", "docker", "[::1]:5000/x:tag"},
		{"quay.io/x@" + zeros, "docker", "quay.io/x@" + zeros},
		{"quay.io/x:v1@" + zeros, "docker", "quay.io/x@" + zeros},
		{"oci:new/dir:tag", "oci", "oci:new/dir:tag"},
		{"oci:new/dir@" + zeros, "oci", "oci:new/dir@" + zeros},
		{"oci:image", "oci", "oci:image"},
		{"image", "oci", "oci:image"},
		{"image:v1", "oci", "oci:image:v1"},
		{"./image", "oci", "oci:./image"},
		{"docker-archive:save.tar:python:3.12", "docker-archive", "docker-archive:save.tar:python:3.12"},
		{"oci-archive:a:b.tar", "oci-archive", "oci-archive:a:b.tar"},
		{"save.tar", "archive", "save.tar"},
		{"./other", "archive", "./other"},
		{"a:b.tar", "archive", "a:b.tar"},
		{dir + "/save.tar:v1", "archive", dir + "/save.tar:v1"},
	} {
		n, err := ParseName(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if string(n.Transport) != c.transport || n.String() != c.out {
			t.Errorf("%s: %s, %s, want %s, %s", c.in, n.Transport, n, c.transport, c.out)
		}
		if again, err := ParseName(n.String()); err != nil || again.String() != n.String() {
			t.Errorf("%s: written as %s it is %v, %v", c.in, n, again, err)
		}
	}
	for in, words := range map[string]string{
		"":                  "not a registry reference",
		"UPPER/case":        "not a registry reference",
		"oci:":              "the path is empty",
		"oci:dir:":          "tag behind the colon is empty",
		"oci:dir@sha256:12": "digest",
		"./nowhere":         "no such layout",
		"nowhere.tar":       "no such archive",
		"/etc":              "a directory, but not an OCI layout",
	} {
		_, err := ParseName(in)
		if blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", in, err, words)
		}
	}
	if n, err := ParseLayout("some/dir:v1"); err != nil || n.Path != "some/dir" || n.Tag != "v1" {
		t.Errorf("ParseLayout: %+v, %v", n, err)
	}
	for _, s := range []string{"oci:" + filepath.Join(dir, "image"), "oci:x", "docker-archive:x"} {
		if n, err := ParseRegistry(s); blob.KindOf(err) != blob.Invalid || err == nil {
			t.Errorf("ParseRegistry(%q) = %v, %v", s, n, err)
		}
	}
}

func TestParsePlatform(t *testing.T) {
	if p, err := ParsePlatform("linux/arm/v7"); err != nil || platformString(&p) != "linux/arm/v7" {
		t.Errorf("linux/arm/v7: %+v, %v", p, err)
	}
	for _, bad := range []string{"", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd64:1"} {
		if p, err := ParsePlatform(bad); blob.KindOf(err) != blob.Invalid || err == nil {
			t.Errorf("%q: %+v, %v", bad, p, err)
		}
	}
}
