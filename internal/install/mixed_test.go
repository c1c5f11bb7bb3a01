package install

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// pieces are statements that mean something to us, in the many ways TOML has
// of writing them.
var pieces = []string{
	"[plugins]\n",
	"  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = 'x'\n",
	"[plugins . 'io.containerd.grpc.v1.cri' . containerd] # spaced\n",
	"snapshotter = \"overlayfs\"\n",
	"disable_snapshot_annotations = true # why\n",
	"[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n",
	"plugins.\"io.containerd.grpc.v1.cri\".containerd.default_runtime_name = \"runc\"\n",
	"plugins.\"io.containerd.grpc.v1.cri\" = { containerd = { snapshotter = 'native' } }\n",
	"\"io.containerd.grpc.v1.cri\".containerd = {}\n",
	"containerd.x = 1\n",
	"[plugins.'io.containerd.cri.v1.images']\n",
	"[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = ''\n",
	"'io.containerd.cri.v1.images'.snapshotter = ''\n",
	"[plugins.'io.containerd.transfer.v1.local']\n",
	"unpack_config = []\n",
	"unpack_config = [ { platform = 'linux', snapshotter = 'erofs' } ]\n",
	"unpack_config = [\n  { platform = 'linux' }, # last\n]\n",
	"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  snapshotter = 'x'\n",
	"[proxy_plugins]\n",
	"[proxy_plugins.stargz]\n",
	"  type = \"snapshot\"\n",
	"  address = '''/old.sock'''\n",
	"[proxy_plugins.stargz.exports]\nroot = \"/old\"\n",
	"proxy_plugins = { soci = { type = 'snapshot' }, }\n",
	"proxy_plugins.stargz.address = '/dotted.sock'\n",
	"stargz = { type = 'snapshot', exports = {} }\n",
	"stargz.capabilities = [\n  'a', # [proxy_plugins.stargz]\n]\n",
	"[[other.list]]\nname = \"\"\"\n[proxy_plugins.stargz]\n\"\"\"\n",
	"[timeouts]\n  'a.b' = '0s'\n",
	"# a comment\n",
	"\n",
}

// TestMixed edits texts put together at random: each is edited rightly and
// taken back, or refused.
func TestMixed(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	edited, refused := 0, 0
	for range 500 {
		var b strings.Builder
		b.WriteString([]string{"version = 2\n", "version = 3\n"}[rng.IntN(2)])
		for range rng.IntN(9) {
			b.WriteString(pieces[rng.IntN(len(pieces))])
		}
		text := []byte(b.String())
		if rng.IntN(4) == 0 {
			text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
		}
		_, content, err := parse(text)
		if err != nil {
			continue // the pieces do not go together
		}
		c := Containerd{Name: "stargz", Address: "/run/s.sock", Root: "/var/lib/skimmer", Version: []string{"1.7.0", "2.1.0"}[rng.IntN(2)]}
		after, _, err := c.edit(text)
		if err != nil {
			refused++
			continue
		}
		edited++
		if again, _, err := c.edit(after); err != nil || !bytes.Equal(again, after) {
			t.Fatalf("not idempotent: %v\n%s\n--- then\n%s", err, after, again)
		}
		// Somebody adds something; then ours goes.
		after = append(after, "\n[added]\nx = 1\n"...)
		restored, _, err := c.restore(after, text)
		if err != nil {
			t.Fatalf("restore: %v\n--- original\n%s\n--- edited\n%s", err, text, after)
		}
		_, got, err := parse(restored)
		if err != nil {
			t.Fatal(err)
		}
		content["added"] = map[string]any{"x": int64(1)}
		if !reflect.DeepEqual(prune(got), prune(content)) {
			t.Fatalf("restored to something else:\n%s", unified("original", "restored", string(text), string(restored)))
		}
	}
	t.Logf("%d edited, %d refused", edited, refused)
	if edited < 300 || refused > edited/20 {
		t.Errorf("%d edited, %d refused: want most edited", edited, refused)
	}
}
