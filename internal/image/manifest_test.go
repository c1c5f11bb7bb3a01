package image

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

const (
	amd = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	arm = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	att = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

const sampleIndex = `{"schemaVersion":2,"manifests":[
 {"digest":"` + att + `","size":1,"platform":{"os":"unknown","architecture":"unknown"}},
 {"digest":"` + amd + `","size":1,"platform":{"os":"linux","architecture":"amd64"}},
 {"digest":"` + arm + `","size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}`

func TestChoosePlatform(t *testing.T) {
	for _, c := range []struct {
		platform string
		want     digest.Digest
		err      string
	}{
		{"linux/amd64", amd, ""},
		{"linux/arm64", arm, ""},
		{"linux/arm64/v8", arm, ""},
		{"linux/arm64/v9", "", "only linux/amd64, linux/arm64/v8"},
		{"windows/amd64", "", "none for windows/amd64"},
	} {
		p, err := ParsePlatform(c.platform)
		if err != nil {
			t.Fatal(err)
		}
		got, err := choose([]byte(sampleIndex), p)
		if got != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %v, %v; want %v, %q", c.platform, got, err, c.want, c.err)
		}
	}
	for _, bad := range []string{"", "linux", "/amd64", "a/b/c/d"} {
		if _, err := ParsePlatform(bad); err == nil {
			t.Errorf("platform %q was accepted", bad)
		}
	}
}

func TestIsIndex(t *testing.T) {
	for _, c := range []struct {
		mediaType, data string
		want            bool
	}{
		{"application/vnd.oci.image.index.v1+json", "{}", true},
		{"application/vnd.docker.distribution.manifest.list.v2+json", "{}", true},
		{"application/vnd.oci.image.manifest.v1+json", sampleIndex, false},
		{"", sampleIndex, true},
		{"text/plain", `{"layers":[{}]}`, false},
		{"text/plain", `not json`, false},
	} {
		if got := isIndex(c.mediaType, []byte(c.data)); got != c.want {
			t.Errorf("isIndex(%q, %.20s) = %v", c.mediaType, c.data, got)
		}
	}
}

func TestParseManifest(t *testing.T) {
	good := `{"layers":[{"mediaType":"m","digest":"` + amd + `","size":7,
	  "annotations":{"containerd.io/snapshot/stargz/toc.digest":"` + arm + `"}},
	  {"digest":"` + arm + `","size":8,"annotations":{"io.containers.zstd-chunked.manifest-checksum":"` + amd + `"}},
	  {"digest":"` + att + `","size":9}]}`
	layers, err := parseManifest([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := []manifestLayer{
		{Digest: amd, Size: 7, MediaType: "m", TOC: arm},
		{Digest: arm, Size: 8, Read: estargz.ReadOptions{CompressedDigest: amd}},
		{Digest: att, Size: 9},
	}
	if diff := cmp.Diff(want, layers); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	for bad, wantText := range map[string]string{
		`{`:             "decode manifest",
		`{"layers":[]}`: "no layers",
		`{"layers":[{"digest":"sha256:../x","size":1}]}`:                                                                    "digest",
		`{"layers":[{"digest":"` + amd + `","size":-1}]}`:                                                                   "size -1",
		`{"layers":[{"digest":"` + amd + `","size":1,"annotations":{"containerd.io/snapshot/stargz/toc.digest":"zzz"}}]}`:   "table of contents",
		`{"layers":[` + strings.Repeat(`{"digest":"`+amd+`","size":1},`, maxLayers) + `{"digest":"` + amd + `","size":1}]}`: "at most",
	} {
		_, err := parseManifest([]byte(bad))
		if err == nil || blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), wantText) {
			t.Errorf("manifest %.60s: got %v, want kind invalid and %q", bad, err, wantText)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(sampleIndex))
	f.Add([]byte(`{"layers":[{"digest":"` + amd + `","size":7}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := choose(data, HostPlatform()); err == nil && d.Validate() != nil {
			t.Errorf("chose an invalid digest %q", d)
		}
		layers, err := parseManifest(data)
		for _, l := range layers {
			if err == nil && (l.Digest.Validate() != nil || l.Size < 0) {
				t.Errorf("accepted layer %+v", l)
			}
		}
	})
}
