package mirror

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/origin"
	"skimmer/internal/testkit"
)

// A registry with a private authority is read through the mirror if the node
// trusts that; if not, the answer says what to set.
func TestPrivateAuthority(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{TLS: true})
	content := blobtest.Bytes(5, 100_000)
	d := reg.AddBlob("some/repo", content).Digest
	for name, c := range map[string]struct {
		files  map[string][]string
		status int
		text   string
	}{
		"trusted": {files: map[string][]string{reg.Host(): {reg.CAFile()}}, status: http.StatusOK},
		"unknown": {files: map[string][]string{reg.Host(): nil}, status: http.StatusBadGateway, text: "CA files"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := origin.New(origin.Config{Keychain: nobody{t}, Retries: -1, CAFiles: c.files})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = o.Close() }) // idle connections alone
			w := newWorld(t, reg, func(cfg *Config) { cfg.Origin, cfg.Source = o, o })
			resp, err := w.client.Get(w.url + "/v2/some/repo/blobs/" + d.String())
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.status {
				t.Fatalf("%s, %v: %.300s", resp.Status, err, got)
			}
			if c.status == http.StatusOK && !bytes.Equal(got, content) || !strings.Contains(string(got), c.text) {
				t.Errorf("got %d bytes, want %d: %.300s", len(got), len(content), got)
			}
		})
	}
}
