package keychain

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"skimmer/internal/origin"
)

func TestDecodeBasic(t *testing.T) {
	for in, want := range map[string]origin.Credential{
		base64.StdEncoding.EncodeToString([]byte("u:p:q")):           {Username: "u", Password: "p:q"},
		base64.RawStdEncoding.EncodeToString([]byte("u:p")):          {Username: "u", Password: "p"},
		base64.StdEncoding.EncodeToString([]byte("u:p\x00\x00")):     {Username: "u", Password: "p"},
		" " + base64.StdEncoding.EncodeToString([]byte("u:")) + "\n": {Username: "u"},
	} {
		if got, ok := DecodeBasic(in); !ok || got != want {
			t.Errorf("%q: %#v, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "!!!", base64.StdEncoding.EncodeToString([]byte("no colon"))} {
		if got, ok := DecodeBasic(in); ok {
			t.Errorf("%q: %#v", in, got)
		}
	}
}

// config returns a docker configuration whose keys are patterns; the user of
// each is its pattern.
func dockerConfig(patterns ...string) []byte {
	var auths []string
	for _, p := range patterns {
		auths = append(auths, fmt.Sprintf("%q: {\"auth\": %q}", p, base64.StdEncoding.EncodeToString([]byte(p+":"+secretWord))))
	}
	// A user may have a colon in these tests only because none has.
	return []byte(`{"auths": {` + strings.Join(auths, ",") + `}}`)
}

func TestMatching(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, not []string
	}{
		{"r.example", []string{"r.example/a", "R.example/a/b"}, []string{"r.example:5000/a", "x.r.example/a", "rxexample/a"}},
		{"https://r.example", []string{"r.example/a"}, nil},
		{"http://r.example/", []string{"r.example/a"}, nil},
		{"https://r.example/v1/", []string{"r.example/a"}, nil},
		{"r.example/v2", []string{"r.example/a"}, nil},
		{"r.example:5000", []string{"r.example:5000/a"}, []string{"r.example/a", "r.example:500/a"}},
		{"r.example/team", []string{"r.example/team", "r.example/team/a"}, []string{"r.example/team-b/a", "r.example/a"}},
		{"r.example/v2/team/", []string{"r.example/team/a"}, []string{"r.example/a"}},
		{"*.example.com", []string{"a.example.com/x"}, []string{"example.com/x", "a.b.example.com/x", "a.example.com:1/x"}},
		{"*.example.com/team", []string{"a.example.com/team/x"}, []string{"a.example.com/x"}},
		{"eu-*.gcr.io", []string{"eu-west.gcr.io/x"}, []string{"us-west.gcr.io/x"}},
		{"https://index.docker.io/v1/", []string{"docker.io/library/nginx", "docker.io/me/x"}, []string{"r.example/docker.io"}},
		{"docker.io", []string{"docker.io/library/nginx"}, nil},
		{"docker.io/me", []string{"docker.io/me/x"}, []string{"docker.io/library/nginx"}},
		{"registry-1.docker.io", []string{"docker.io/library/nginx"}, nil},
		{"[::1]:5000", []string{"[::1]:5000/a"}, []string{"[::2]:5000/a"}},
	} {
		entries, err := parseDockerConfig([]byte(fmt.Sprintf(`{"auths":{%q:{"username":"u","password":%q}}}`, c.pattern, secretWord)))
		if err != nil || len(entries) != 1 {
			t.Errorf("%s: %d entries, %v", c.pattern, len(entries), err)
			continue
		}
		for _, r := range c.yes {
			if !entries[0].matches(r) {
				t.Errorf("%s is not for %s", c.pattern, r)
			}
		}
		for _, r := range c.not {
			if entries[0].matches(r) {
				t.Errorf("%s is for %s", c.pattern, r)
			}
		}
	}
}

func TestPreferred(t *testing.T) {
	want := []string{"r.example.com/a/b", "r.example.com/a", "r.example.com", "*.example.com/a", "*.example.com", "*.*.com"}
	shuffled := slices.Clone(want)
	slices.Reverse(shuffled)
	entries, err := parseDockerConfig(dockerConfig(shuffled...))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(entries, preferred)
	var got []string
	for _, e := range entries {
		if !e.matches("r.example.com/a/b/c") {
			t.Errorf("%s does not match", e.pattern)
		}
		got = append(got, e.credential.Username)
	}
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

func TestDockerConfigEntries(t *testing.T) {
	entries, err := parseDockerConfig([]byte(`{"auths": {
		"a.example": {"identitytoken": "t", "auth": "PHRva2VuPjo="},
		"b.example": {"registrytoken": "t"},
		"c.example": {"username": "u", "password": "p"},
		"d.example": {"username": "no", "password": "no", "auth": "dTpw"},
		"e.example": {"auth": "not base64"}, "f.example": {}, "g.example": [1], "h.example": {"password": 12345},
		"[.example": {"auth": "dTpw"}, "": {"auth": "dTpw"}, "u:p@i.example": {"auth": "dTpw"}, "j[.example": {"auth": "dTpw"}
	}, "credsStore": "x"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []origin.Credential{{IdentityToken: "t"}, {RegistryToken: "t"}, {Username: "u", Password: "p"}, {Username: "u", Password: "p"}}
	for i, e := range entries {
		if i >= len(want) || e.credential != want[i] {
			t.Errorf("entry %q: %#v %v", e.pattern, e.credential.Username, e.credential)
		}
	}
	if len(entries) != len(want) {
		t.Errorf("%d entries, want %d", len(entries), len(want))
	}
	for _, bad := range []string{"", "[]", `{"auths": 123456}`, `{"auths": {"a": "hunter2"`} {
		if _, err := parseDockerConfig([]byte(bad)); err == nil || strings.ContainsAny(err.Error(), "0123456789") {
			t.Errorf("%s: error %v", bad, err)
		}
	}
}

func FuzzDockerConfig(f *testing.F) {
	f.Add(dockerConfig("r.example", "https://index.docker.io/v1/", "*.example.com/a"), "r.example/a")
	f.Add([]byte(`{"auths":{"[::1]:5":{"auth":"dTpw"}}}`), "[::1]:5/a")
	f.Add([]byte(`{"auths":{"\\":{"auth":"dTpw"},"*[":{"auth":"dTpw"}}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, repository string) {
		entries, err := parseDockerConfig(data)
		if err != nil && len(entries) > 0 {
			t.Error("entries and an error")
		}
		for _, e := range entries {
			if (e.credential == origin.Credential{}) || e.host == "" {
				t.Errorf("entry %q says nothing", e.pattern)
			}
			e.matches(repository)
			if literal := e.host + "/"; !e.glob && e.path == "" && e.port == "" && !strings.Contains(e.host, ":") && !e.matches(literal+"x") {
				t.Errorf("%q is not for %sx", e.pattern, literal)
			}
		}
	})
}
