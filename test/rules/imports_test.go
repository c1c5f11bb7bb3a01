package rules

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the name our own import paths start with.
const module = "skimmer/"

// layer is a row of the import table.
type layer struct {
	may []string // our packages it may import
	why string
}

// layers is who may import whom. Imports run the way data does and only that
// way, so that each part can be understood, tested and replaced with nothing
// but what is below it. Tests may import anything: they put worlds together.
var layers = map[string]layer{
	"internal/blob":            {nil, "the words everybody uses depend on nobody's"},
	"internal/blob/blobtest":   {[]string{"internal/blob"}, "a conformance suite knows the contract and no implementation"},
	"internal/config":          {nil, "files become structs here; cmd turns them into each package's own Config"},
	"internal/daemon":          {nil, "starts and stops whatever it is given"},
	"internal/telemetry":       {[]string{"internal/image/trace"}, "loggers and registries are handed to the data path, never fetched by it"},
	"internal/origin":          {[]string{"internal/blob", "internal/origin/exchange"}, "a Source of its own: what is above it must not matter"},
	"internal/origin/exchange": {[]string{"internal/blob"}, "requests to servers of others, whatever is asked for"},
	"internal/origin/web":      {[]string{"internal/blob", "internal/origin/exchange"}, "a Source of its own, beside that of registries"},
	"internal/store":           {[]string{"internal/blob"}, "a Source over any Source"},
	"internal/mirror/ranges":   {[]string{"internal/blob"}, "answers about any blob, whoever asks for it"},
	"internal/mirror/forward":  {[]string{"internal/blob", "internal/mirror/ranges"}, "what is answered by the mirror or the swarm is handed in"},
	"internal/mirror": {[]string{"internal/blob", "internal/estargz", "internal/origin", "internal/origin/exchange", "internal/mirror/ranges"},
		"answers clients of registries; where bytes come from is handed in"},
	"internal/schedule":       {[]string{"internal/blob"}, "decides who fetches what from whom: no clock, no network, no disk"},
	"internal/transfer":       {[]string{"internal/blob"}, "moves ranges between peers; what is served, and from whom to ask, is handed in"},
	"api/scheduler/v1":        {nil, "generated code, and nothing about what it is for"},
	"api/generate":            {nil, "a tool of the build"},
	"internal/scheduler/wire": {[]string{"internal/blob", "internal/schedule", "api/scheduler/v1"}, "what messages mean; who sends them does not matter"},
	"internal/scheduler": {[]string{"internal/blob", "internal/schedule", "internal/image/profile", "internal/scheduler/wire", "api/scheduler/v1"},
		"the service around the core: moves no bytes and knows nobody who does"},
	"internal/scheduler/remote": {[]string{"internal/blob", "internal/schedule", "internal/scheduler/wire", "api/scheduler/v1"},
		"a peer's side of the protocol; what is done about an action is handed in"},
	"internal/estargz":         {[]string{"internal/blob", "internal/estargz/gunzip"}, "reads layers from any Source"},
	"internal/estargz/gunzip":  {nil, "bytes to bytes"},
	"internal/erofs":           {[]string{"internal/blob", "internal/estargz"}, "metadata from TOCs; moves no bytes"},
	"internal/layerdev/fuse":   {nil, "the kernel's protocol, and nothing about what is served"},
	"internal/layerdev/holder": {[]string{"internal/blob"}, "keeps descriptors and knows nothing of what they are"},
	"internal/layerdev": {[]string{"internal/blob", "internal/estargz", "internal/layerdev/fuse"},
		"serves flat data of any layer; knows no images"},
	"internal/image": {[]string{"internal/blob", "internal/estargz", "internal/erofs", "internal/layerdev", "internal/image/nodejs", "internal/image/profile", "internal/image/python", "internal/image/trace"},
		"puts layers together into mounts, over any Source"},
	"internal/snapshot": {[]string{"internal/blob", "internal/image"},
		"containerd's side of lazy images; where bytes come from does not matter"},
	"internal/image/convert": {[]string{"internal/blob", "internal/estargz"},
		"reads and writes registries; mounts nothing"},
	"internal/image/trace":   {nil, "data, and how people are shown it"},
	"internal/image/nodejs":  {nil, "what files say about others; who reads and fetches them is somebody else"},
	"internal/image/python":  {nil, "what files say about others; who reads and fetches them is somebody else"},
	"internal/image/profile": {[]string{"internal/blob"}, "data and its files; who learns it and where it goes does not matter"},
	"internal/image/optimize": {[]string{"internal/blob", "internal/estargz", "internal/image", "internal/image/convert", "internal/image/profile"},
		"a user of lazy mounts and of conversion; neither knows it"},
	"internal/peer": {[]string{"internal/blob", "internal/origin", "internal/origin/keychain", "internal/origin/web", "internal/store", "internal/estargz",
		"internal/erofs", "internal/layerdev", "internal/layerdev/holder", "internal/image", "internal/image/profile", "internal/image/trace", "internal/snapshot", "internal/snapshot/cri",
		"internal/schedule", "internal/scheduler", "internal/scheduler/remote", "internal/swarm", "internal/transfer",
		"internal/mirror", "internal/mirror/ranges", "internal/mirror/forward", "internal/origin/exchange"},
		"the one place where the data path is stacked"},
	"internal/install": {[]string{"internal/blob"}, "edits text about us, and runs nothing of us"},
	"internal/install/doctor": {[]string{"internal/blob", "internal/erofs", "internal/install", "internal/origin"},
		"looks at a node from outside, with the parts that know how"},
	"internal/origin/keychain": {[]string{"internal/blob", "internal/origin"},
		"answers origin's questions about credentials; reads no blobs"},
	"internal/snapshot/cri": {[]string{"internal/blob", "internal/origin", "internal/origin/keychain"},
		"passes calls on and tells credentials; knows no snapshots"},
	"internal/snapshot/pull": {[]string{"internal/blob", "internal/origin"},
		"a client of containerd; whose snapshotter answers must not matter"},
	"internal/swarm": {[]string{"internal/blob", "internal/store", "internal/schedule", "internal/transfer", "internal/image/profile"},
		"where a range comes from; who carries its questions to a scheduler is handed in"},
	"internal/schedule/sim": {[]string{"internal/blob", "internal/schedule"},
		"a world for the core alone: nothing of what carries its decisions out"},
	"internal/lab/child":       {nil, "starts and ends any program"},
	"internal/lab/cluster":     {[]string{"internal/lab", "internal/lab/child"}, "machines and links; what runs on them is handed in"},
	"internal/lab/distribute":  {[]string{"internal/lab", "internal/lab/cluster"}, "measures programs from outside"},
	"internal/lab/coldstart":   {[]string{"internal/lab", "internal/lab/child", "internal/image/trace"}, "measures programs from outside; what it needs of the product is handed in"},
	"bench/stargz-snapshotter": {nil, "what we compare with has none of us in it"},
	"internal/lab":             {everything, "experiments run the whole product"},
	"internal/testkit":         {[]string{"internal/blob", "internal/blob/blobtest", "internal/lab/child"}, "the world around us, not us"},
	"test/e2e":                 {nil, "drives the built binary as its users do"},
	"test/swarm":               {nil, "drives the built binary on the nodes of a cluster"},
	"test/containerd":          {nil, "drives the built binary as containerd and the kubelet do"},
	"test/docker":              {nil, "drives the built binary as dockerd does"},
	"cmd/skimmer":              {everything, "stacks the parts"},
	"test/rules":               {nil, "looks at text"},
}

// everything stands for all packages but those for tests.
var everything = []string{"*"}

// forTests lists what only tests, and each other, may import.
var forTests = []string{"internal/testkit", "internal/blob/blobtest"}

func TestImports(t *testing.T) {
	dirs := packages(t)
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		row, ok := layers[dir]
		if !ok {
			t.Errorf("%s: not in the import table: add a row to layers that says what it may import, and why", dir)
			continue
		}
		for _, f := range dirs[dir] {
			for _, imp := range f.syntax.Imports {
				name, _ := strconv.Unquote(imp.Path.Value)
				name, ours := strings.CutPrefix(name, module)
				if ours && !f.test && !row.allows(dir, name) {
					t.Errorf("%s:%d: %s may not import %s (%s): define an interface where it is used, or move the code to whom it belongs",
						f.path, f.line(imp.Pos()), dir, name, row.why)
				}
			}
		}
	}
}

func (l layer) allows(dir, name string) bool {
	if slices.Contains(forTests, name) {
		return slices.Contains(forTests, dir) && slices.Contains(l.may, name)
	}
	return slices.Contains(l.may, name) || slices.Equal(l.may, everything)
}

// TestImportTable checks the table itself: no rows about nothing, no circles.
func TestImportTable(t *testing.T) {
	for dir, row := range layers {
		if row.why == "" {
			t.Errorf("%s: row without a reason: say why", dir)
		}
		for _, name := range row.may {
			if _, ok := layers[name]; !ok && name != "*" {
				t.Errorf("%s: may import %s, which has no row", dir, name)
			}
			if slices.Contains(layers[name].may, dir) {
				t.Errorf("%s and %s may import each other", dir, name)
			}
		}
	}
	dirs := packages(t)
	for dir := range layers {
		if len(dirs[dir]) == 0 {
			t.Errorf("%s: row about a package that does not exist: delete it", dir)
		}
	}
}

func TestImportTableCanFail(t *testing.T) {
	for _, c := range []struct {
		dir, name string
		want      bool
	}{
		{"internal/blob", "internal/config", false},
		{"internal/store", "internal/blob", true},
		{"internal/store", "internal/origin", false},
		{"internal/image", "internal/telemetry", false},
		{"internal/peer", "internal/testkit", false},
		{"internal/testkit", "internal/blob/blobtest", true},
		{"cmd/skimmer", "internal/peer", true},
		{"cmd/skimmer", "internal/testkit", false},
		{"cmd/skimmer", "internal/blob/blobtest", false},
		{"internal/lab", "internal/testkit", false},
	} {
		if got := layers[c.dir].allows(c.dir, c.name); got != c.want {
			t.Errorf("%s may import %s: %v, want %v", c.dir, c.name, got, c.want)
		}
	}
}
