package testkit

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// DockerRegistry starts the docker-registry program (Debian package of that
// name) over a temporary directory on a free loopback port and returns its
// host:port. It is killed when the test ends. Without the program the test is
// skipped, or fails where CI is set.
func DockerRegistry(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		missing(t, "docker-registry", "apt-get install docker-registry")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\nhttp: {addr: \"127.0.0.1:0\"}\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatalf("write registry configuration: %v", err)
	}
	cmd := exec.Command(program, "serve", config)
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start docker-registry: %v", err)
	}
	var drain sync.WaitGroup
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		drain.Wait()
		_ = cmd.Wait()
	})
	// It says where it listens, so the port is chosen by the kernel and free.
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
	var said bytes.Buffer
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if m := listening.FindStringSubmatch(line); m != nil {
			drain.Go(func() { _, _ = io.Copy(io.Discard, lines) })
			return m[1]
		}
		if err != nil {
			t.Fatalf("start docker-registry: it ended before it listened:\n%s", said.String())
		}
	}
}

// missing skips a test that lacks a program, or fails it where CI is set.
func missing(t testing.TB, program, remedy string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed; %s", program, remedy)
	}
	t.Skipf("SKIPPED: %s IS NOT INSTALLED; %s", program, remedy)
}

// PushBlob pushes p to repo of the registry at the base URL (as
// "http://host:port") and returns a reference to it.
func PushBlob(t testing.TB, base, repo string, p []byte) blob.Ref {
	t.Helper()
	d := digest.FromBytes(p)
	u, err := url.Parse(base)
	if err != nil {
		t.Fatalf("parse %q: %v", base, err)
	}
	resp := push(t, http.MethodPost, base+"/v2/"+repo+"/blobs/uploads/", "", nil)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("start upload to %s/%s: %s", base, repo, resp.Status)
	}
	at, err := u.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatalf("parse upload location: %v", err)
	}
	q := at.Query()
	q.Set("digest", d.String())
	at.RawQuery = q.Encode()
	if resp := push(t, http.MethodPut, at.String(), "application/octet-stream", p); resp.StatusCode != http.StatusCreated {
		t.Fatalf("upload %v to %s/%s: %s", d, base, repo, resp.Status)
	}
	return blob.Ref{Digest: d, Size: int64(len(p)), Repository: u.Host + "/" + repo}
}

// PushManifest pushes a manifest or index to the registry at the base URL,
// under a name that ends in a tag, as "some/repo:v1", and returns a reference
// to it.
func PushManifest(t testing.TB, base, name, mediaType string, p []byte) blob.Ref {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatalf("parse %q: %v", base, err)
	}
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		t.Fatalf("push manifest: %q has no tag", name)
	}
	resp := push(t, http.MethodPut, base+"/v2/"+repo+"/manifests/"+tag, mediaType, p)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("push manifest %s to %s: %s", name, base, resp.Status)
	}
	return blob.Ref{Digest: digest.FromBytes(p), Size: int64(len(p)), MediaType: mediaType, Repository: u.Host + "/" + repo}
}

func push(t testing.TB, method, to, contentType string, p []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, to, bytes.NewReader(p))
	if err != nil {
		t.Fatalf("make request: %v", err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s to registry: %v", method, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}
