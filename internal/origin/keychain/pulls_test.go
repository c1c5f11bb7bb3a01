package keychain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"skimmer/internal/origin"
)

// secretWord is in all secrets of these tests, and so must not be anywhere
// else.
const secretWord = "hunter2"

// testLog returns a logger whose text, at the end of the test, must not have a
// secret in it, and a function that returns the text so far.
func testLog(t *testing.T) (*slog.Logger, func() string) {
	t.Helper()
	var text lockedBuffer
	t.Cleanup(func() {
		if s := text.String(); strings.Contains(s, secretWord) {
			t.Errorf("a secret is in the log:\n%s", s)
		}
	})
	return slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug})), text.String
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func password(user string) origin.Credential {
	return origin.Credential{Username: user, Password: secretWord}
}

func wantCredential(t *testing.T, k origin.Keychain, repository string, want origin.Credential) {
	t.Helper()
	got, err := k.Credential(t.Context(), repository)
	if err != nil || got != want {
		t.Errorf("credential of %s: %v, %v; want %v", repository, got, err, want)
	}
}

type fixed struct {
	c   origin.Credential
	err error
}

func (f fixed) Credential(context.Context, string) (origin.Credential, error) { return f.c, f.err }

func TestChain(t *testing.T) {
	broken := errors.New("helper is not there")
	logger, text := testLog(t)
	wantCredential(t, NewChain(logger), "r.example/a", origin.Credential{})
	wantCredential(t, NewChain(logger, fixed{}, fixed{c: password("a")}, fixed{c: password("b")}), "r.example/a", password("a"))
	if text() != "" {
		t.Errorf("log of a chain without failures: %s", text())
	}
	wantCredential(t, NewChain(logger, fixed{err: broken}, fixed{c: password("a")}), "r.example/a", password("a"))
	if !strings.Contains(text(), broken.Error()) {
		t.Errorf("failure is not in the log: %s", text())
	}
	if c, err := NewChain(logger, fixed{}, fixed{err: broken}, fixed{}).Credential(t.Context(), "r.example/a"); !errors.Is(err, broken) || c != (origin.Credential{}) {
		t.Errorf("nothing found and one failed: %v, %v; want %v", c, err, broken)
	}
}

func openPulls(t *testing.T, dir string) (*Pulls, func() string) {
	t.Helper()
	logger, text := testLog(t)
	p, err := OpenPulls(dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	return p, text
}

func TestPulls(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "credentials")
	p, _ := openPulls(t, dir)
	all := map[string]origin.Credential{
		"r.example:5000/team/app":   password("a"),
		"r.example:5000/team/other": {IdentityToken: secretWord},
		"docker.io/library/nginx":   {RegistryToken: secretWord},
	}
	for repository, c := range all {
		p.Put(repository, password("old"))
		p.Put(repository, c)
		p.Put(repository, origin.Credential{})
	}
	reopened, _ := openPulls(t, dir)
	for _, p := range []*Pulls{p, reopened} {
		for repository, c := range all {
			wantCredential(t, p, repository, c)
		}
		wantCredential(t, p, "nginx", all["docker.io/library/nginx"])
		for _, other := range []string{"r.example:5000/team", "r.example:5000/team/app/x", "r.example/team/app", "docker.io/library/redis"} {
			wantCredential(t, p, other, origin.Credential{})
		}
	}
	for _, name := range []string{keyName, sealedName} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", name, info.Mode(), err)
		}
	}
	sealed, err := os.ReadFile(filepath.Join(dir, sealedName))
	if err != nil || bytes.Contains(sealed, []byte(secretWord)) || bytes.Contains(sealed, []byte("team")) {
		t.Errorf("file is not encrypted (%v)", err)
	}

	reopened.Forget("r.example:5000/team/app")
	reopened.Forget("r.example:5000/unknown")
	reopened.Keep(func(repository string) bool { return strings.HasPrefix(repository, "docker.io/") })
	again, _ := openPulls(t, dir)
	for repository, c := range all {
		if !strings.HasPrefix(repository, "docker.io/") {
			c = origin.Credential{}
		}
		wantCredential(t, again, repository, c)
	}
}

// TestPullsDamage damages the files in all ways; the credentials may be lost,
// and nothing else.
func TestPullsDamage(t *testing.T) {
	flip := func(data []byte) []byte {
		data[len(data)-1] ^= 1
		return data
	}
	for _, c := range []struct {
		name, file string
		damage     func([]byte) []byte
	}{
		{"bit of the seal", sealedName, flip},
		{"cut short", sealedName, func(b []byte) []byte { return b[:len(sealedHeader)+3] }},
		{"empty", sealedName, func([]byte) []byte { return nil }},
		{"other version", sealedName, func(b []byte) []byte { return bytes.Replace(b, []byte(" 1\n"), []byte(" 2\n"), 1) }},
		{"foreign", sealedName, func([]byte) []byte { return []byte(`{"auths":{}}`) }},
		{"other key", keyName, flip},
		{"key cut short", keyName, func(b []byte) []byte { return b[:7] }},
		{"key too long", keyName, func(b []byte) []byte { return append(b, 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			p, _ := openPulls(t, dir)
			p.Put("r.example/a", password("a"))
			path := filepath.Join(dir, c.file)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, c.damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			p, text := openPulls(t, dir)
			wantCredential(t, p, "r.example/a", origin.Credential{})
			if !strings.Contains(text(), path) && !strings.Contains(text(), sealedName) {
				t.Errorf("log does not name the file: %s", text())
			}
			p.Put("r.example/b", password("b"))
			p, _ = openPulls(t, dir)
			wantCredential(t, p, "r.example/b", password("b"))
		})
	}
}

func TestPullsFilesInTheWay(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{keyName, sealedName} {
		if err := os.MkdirAll(filepath.Join(dir, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// What a crash while saving leaves behind.
	if err := os.WriteFile(filepath.Join(dir, partName), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, _ := openPulls(t, dir)
	p.Put("r.example/a", password("a"))
	p, _ = openPulls(t, dir)
	wantCredential(t, p, "r.example/a", password("a"))

	if err := os.Chmod(filepath.Join(dir, keyName), 0o644); err != nil {
		t.Fatal(err)
	}
	p, text := openPulls(t, dir)
	wantCredential(t, p, "r.example/a", password("a"))
	if info, err := os.Stat(filepath.Join(dir, keyName)); err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(text(), keyName) {
		t.Errorf("key that others could read: mode %v, %v, log %q", info.Mode(), err, text())
	}
}

// TestPullsUnsaved takes the directory away: what arrives is still of use.
func TestPullsUnsaved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	p, text := openPulls(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	p.Put("r.example/a", password("a"))
	wantCredential(t, p, "r.example/a", password("a"))
	if !strings.Contains(text(), "not saved") {
		t.Errorf("log: %s", text())
	}
	if _, err := OpenPulls("/dev/null/x", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opened in a directory that cannot be")
	}
}

func TestPullsConcurrently(t *testing.T) {
	dir := t.TempDir()
	p, _ := openPulls(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				repository := fmt.Sprintf("r.example/%d/%d", i, j)
				p.Put(repository, password(repository))
				wantCredential(t, p, repository, password(repository))
				if j%2 == 0 {
					p.Forget(repository)
				}
			}
		})
	}
	wg.Wait()
	p, _ = openPulls(t, dir)
	for i := range 8 {
		for j := range 5 {
			repository := fmt.Sprintf("r.example/%d/%d", i, j)
			want := password(repository)
			if j%2 == 0 {
				want = origin.Credential{}
			}
			wantCredential(t, p, repository, want)
		}
	}
}
