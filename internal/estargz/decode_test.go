package estargz

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skimmer/internal/blob"
)

const (
	zeroSum  = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	testBlob = 1 << 40 // size of the blobs that hand-written TOCs belong to
)

// decodeEntries decodes a TOC with the given entries.
func decodeEntries(entries string) (*TOC, error) {
	return Decode([]byte(`{"version":1,"entries":[`+entries+`]}`), Gzip, testBlob, testBlob/2)
}

func TestDecodeLayout(t *testing.T) {
	sum := `"chunkDigest":"` + zeroSum + `"`
	toc, err := decodeEntries(strings.Join([]string{
		`{"name":".prefetch.landmark","type":"reg","size":1,"offset":100,"chunkDigest":"x"}`,
		`{"name":"a","type":"reg","size":10,"offset":200,"chunkSize":6,` + sum + `}`,
		`{"name":"a","type":"chunk","offset":300,"chunkOffset":6,` + sum + `}`,
		`{"name":"e","type":"reg"}`,
		`{"name":"b","type":"reg","size":4097,"offset":400,` + sum + `}`,
		`{"name":"c","type":"reg","size":1,"offset":400,"innerOffset":4608,"digest":"` + zeroSum + `"}`,
		`{"name":"stargz.index.json","type":"reg","size":9,"offset":450}`,
		`{"name":"huge","type":"reg","size":8589934592,"offset":500,"chunkSize":2147483647,` + sum + `}`,
		`{"name":"huge","type":"chunk","chunkOffset":2147483647,"chunkSize":6442450944,"chunkType":"zeros"}`,
		`{"name":"huge","type":"chunk","chunkOffset":8589934591,"chunkSize":1,"offset":600,` + sum + `}`,
		`{"name":"hole","type":"reg","size":5000,"chunkType":"zeros"}`,
		`{"name":"z","type":"reg","size":1,"offset":700,` + sum + `}`,
	}, ","))
	if err != nil {
		t.Fatal(err)
	}
	const huge = 4 * BlockSize
	const hole = huge + 8589934592
	const z = hole + 2*BlockSize
	want := Index{
		Compression: Gzip, BlobSize: testBlob, DataSize: z + BlockSize, PrefetchEnd: 100,
		Streams: []Stream{
			{200, 300, 0, 1}, {300, 400, 1, 1}, {400, 450, 2, 2},
			{500, 600, 4, 1}, {600, 700, 5, 1}, {700, testBlob / 2, 6, 1},
		},
		Chunks: []Chunk{
			{DataOff: 0, Size: 6}, {DataOff: 6, Size: 4},
			{DataOff: BlockSize, Size: 4097}, {DataOff: 3 * BlockSize, Size: 1, InnerOff: 4608},
			{DataOff: huge, Size: 1<<31 - 1}, {DataOff: huge + 8589934591, Size: 1},
			{DataOff: z, Size: 1},
		},
		Files: []File{
			{"a", 0, 10}, {"b", BlockSize, 4097}, {"c", 3 * BlockSize, 1},
			{"huge", huge, 8589934592}, {"hole", hole, 5000}, {"z", z, 1},
		},
	}
	if d := cmp.Diff(want, toc.Index); d != "" {
		t.Errorf("index (-want +got):\n%s", d)
	}
	var names []string
	for _, e := range toc.Entries {
		names = append(names, e.Name)
	}
	if got := strings.Join(names, " "); got != "a e b c huge hole z" {
		t.Errorf("entries %s", got)
	}
	for _, c := range []struct {
		off  int64
		want string
	}{{0, "a"}, {9, "a"}, {10, ""}, {BlockSize, "b"}, {3*BlockSize - 1, ""}, {3 * BlockSize, "c"}, {1 << 60, ""}} {
		if f, ok := toc.Index.FileAt(c.off); f.Name != c.want || ok != (c.want != "") {
			t.Errorf("FileAt(%d) = %q, %v; want %q", c.off, f.Name, ok, c.want)
		}
	}
}

func TestDecodeEntries(t *testing.T) {
	toc, err := decodeEntries(strings.Join([]string{
		`{"name":"/","type":"dir","mode":16895,"modtime":"2024-02-29T12:34:56.000000007+01:00"}`,
		`{"name":"../x/./y//","type":"dir","uid":4294967295,"gid":1}`,
		`{"Name":"K","TYPE":"symlink","linkName":"/../t/","unknown":[{"a":[1,2.5e+3,true,null,"\u0000"]}]}`,
		`{"name":"h","type":"hardlink","linkName":"/a/../b"}`,
		`{"name":"n\ufffd","skimmer.rawName":"bv8=","type":"char","devMajor":4095,"devMinor":1048575,` +
			`"xattrs":{"user.b":"Yg==","user.a":null},"skimmer.rawXattrs":{"dXNlci7/":"AA=="}}`,
		`{"name":"\ud83d\ude00é` + "\xff" + `","type":"fifo","size":null}`,
	}, ","))
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{Name: "", Type: Dir, Mode: 0o777, MTime: 1709206496, MTimeNsec: 7},
		{Name: "x/y", Type: Dir, UID: 4294967295, GID: 1},
		{Name: "K", Type: Symlink, Link: "/../t/"},
		{Name: "h", Type: Hardlink, Link: "b"},
		{Name: "n\xff", Type: Char, DevMajor: 4095, DevMinor: 1<<20 - 1,
			Xattrs: []Xattr{{"user.a", nil}, {"user.b", []byte("b")}, {"user.\xff", []byte{0}}}},
		{Name: "😀é\ufffd", Type: Fifo},
	}
	if d := cmp.Diff(want, toc.Entries, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("entries (-want +got):\n%s", d)
	}
}

// TestDecodeRefuses holds TOCs that make no sense and words of the error.
func TestDecodeRefuses(t *testing.T) {
	sum := `"chunkDigest":"` + zeroSum + `"`
	reg := func(fields string) string { return `{"name":"f","type":"reg",` + fields + `}` }
	for _, c := range []struct{ entries, want string }{
		{`{"name":"f","type":"door"}`, `unknown type "door"`},
		{`{"name":"f"}`, "unknown type"},
		{`null`, "is null"},
		{`{"name":"f","type":"dir","name":"g"}`, "given twice"},
		{`{"name":5,"type":"dir"}`, "where a string should be"},
		{`{"name":"f","type":"dir"`, "end of an object"},
		{`{"name":"f","type":"dir","x":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `}`, "nested"},
		{`{"name":"/","type":"reg"}`, "root directory"},
		{`{"name":"` + strings.Repeat("n", 256) + `","type":"dir"}`, "more than 255 bytes"},
		{`{"name":"a\u0000b","type":"dir"}`, "NUL"},
		{`{"name":"f","type":"dir","uid":-1}`, "out of range"},
		{`{"name":"f","type":"dir","gid":4294967296}`, "out of range"},
		{`{"name":"f","type":"dir","uid":1.0}`, "integer"},
		{`{"name":"f","type":"dir","modtime":"yesterday"}`, "modification time"},
		{`{"name":"f","type":"dir","xattrs":{"":"AA=="}}`, "extended attribute"},
		{`{"name":"f","type":"dir","xattrs":{"a":"!"}}`, "illegal base64"},
		{`{"name":"f","type":"dir","xattrs":{"a":"AA=="},"skimmer.rawXattrs":{"YQ==":"AA=="}}`, "given twice"},
		{`{"name":"f","type":"dir","skimmer.rawXattrs":{"!":"AA=="}}`, "illegal base64"},
		{`{"name":"f","type":"symlink"}`, "symlink target"},
		{`{"name":"f","type":"symlink","linkName":"` + strings.Repeat("l", 4096) + `"}`, "symlink target"},
		{`{"name":"f","type":"hardlink","linkName":"/.."}`, "hard link"},
		{`{"name":"f","type":"char","devMajor":4096}`, "device number"},
		{`{"name":"f","type":"block","devMinor":-1}`, "device number"},
		{reg(`"size":-1`), "negative"},
		{reg(`"size":9223372036854775807,` + sum), "out of range"},
		{reg(`"size":9223372036854775808,` + sum), "out of range"},
		{reg(`"size":5,"offset":9`), "no chunk digest"},
		{reg(`"size":5,"offset":9,"chunkSize":4,"digest":"` + zeroSum + `"`), "no chunk digest"},
		{reg(`"size":5,"offset":9,"chunkDigest":"sha256:00"`), "not a SHA-256"},
		{reg(`"size":5,"offset":9,"chunkDigest":"` + strings.ToUpper(zeroSum) + `"`), "not a SHA-256"},
		{reg(`"size":5,"offset":9,"chunkDigest":"` + strings.Replace(zeroSum, "00", "AA", 1) + `"`), "not a SHA-256"},
		{reg(`"size":5,"offset":-1,` + sum), "outside the payload"},
		{reg(`"size":5,"offset":549755813888,` + sum), "outside the payload"},
		{reg(`"size":5,"offset":9,"chunkSize":4,` + sum), "cover 4 of its 5"},
		{reg(`"size":5,"offset":9,"chunkSize":6,` + sum), "6 bytes where 5"},
		{reg(`"size":5,"offset":9,"chunkSize":-6,` + sum), "-6 bytes where 5"},
		{reg(`"size":5,"offset":9,"chunkOffset":1,"chunkSize":4,` + sum), "starts at 1"},
		{reg(`"size":2147483648,"offset":9,` + sum), "at most 2147483647"},
		{reg(`"size":5,"offset":9,"chunkType":"ones",` + sum), "unknown chunk type"},
		{reg(`"size":5,"offset":9,"innerOffset":-1,` + sum), "inner offset"},
		{reg(`"size":5,"offset":9,"innerOffset":9223372036854775807,` + sum), "inner offset"},
		{`{"type":"chunk","chunkSize":1,` + sum + `}`, "does not follow a file"},
		{reg(`"size":5,"offset":9,`+sum) + "," + `{"type":"chunk","chunkOffset":5,"chunkSize":1,` + sum + `}`, "does not follow a file"},
		{reg(`"size":5,"offset":9,`+sum) + "," + reg(`"size":5,"offset":8,`+sum), "before that of the entry before"},
		{reg(`"size":5,"offset":9,`+sum) + "," + reg(`"size":5,"offset":9,"innerOffset":4,`+sum), "inner offset 4"},
	} {
		toc, err := decodeEntries(c.entries)
		if err == nil {
			t.Errorf("%.200s: accepted as %+v", c.entries, toc)
		} else if !strings.Contains(err.Error(), c.want) || !errors.Is(err, blob.Invalid) {
			t.Errorf("%.200s:\n got error %q, %v\nwant one with %q", c.entries, err, blob.KindOf(err), c.want)
		}
	}
	for _, js := range []string{"", "[]", `{"entries":{}}`, `{"entries":[]}x`, `{"entries":[],"entries":[]}`, `{"entries":[],}`} {
		if _, err := Decode([]byte(js), Gzip, 10, 5); !errors.Is(err, blob.Invalid) {
			t.Errorf("%q: error %v, want one that is Invalid", js, err)
		}
	}
	if _, err := Decode([]byte("{}"), 3, 10, 5); !errors.Is(err, blob.Invalid) {
		t.Errorf("unknown compression: error %v", err)
	}
	if _, err := Decode([]byte("{}"), Gzip, 10, 11); !errors.Is(err, blob.Invalid) {
		t.Errorf("payload larger than the blob: error %v", err)
	}
}

// refTOC is a TOC for encoding/json, the reference of the scanner.
type refTOC struct {
	Version int         `json:"version"`
	Entries []*refEntry `json:"entries"`
}

type refEntry struct {
	Name        string              `json:"name"`
	Type        string              `json:"type"`
	Size        int64               `json:"size"`
	ModTime     string              `json:"modtime"`
	LinkName    string              `json:"linkName"`
	Mode        int64               `json:"mode"`
	UID         int                 `json:"uid"`
	GID         int                 `json:"gid"`
	Offset      int64               `json:"offset"`
	InnerOffset int64               `json:"innerOffset"`
	DevMajor    int64               `json:"devMajor"`
	DevMinor    int64               `json:"devMinor"`
	Xattrs      map[string]refBytes `json:"xattrs"`
	Digest      string              `json:"digest"`
	ChunkOffset int64               `json:"chunkOffset"`
	ChunkSize   int64               `json:"chunkSize"`
	ChunkDigest string              `json:"chunkDigest"`
	ChunkType   string              `json:"chunkType"`
	RawName     refBytes            `json:"skimmer.rawName"`
	RawLinkName refBytes            `json:"skimmer.rawLinkName"`
	RawXattrs   map[string]refBytes `json:"skimmer.rawXattrs"`
}

// refBytes are bytes that, unlike those of encoding/json, come in base64 only.
type refBytes []byte

func (b *refBytes) UnmarshalJSON(p []byte) error {
	var s *string
	if err := json.Unmarshal(p, &s); err != nil || s == nil {
		return err
	}
	d, err := base64.StdEncoding.DecodeString(*s)
	*b = d
	return err
}

// ref returns the entry as encoding/json would have it.
func (e *rawEntry) ref() *refEntry {
	xattrs := func(xs []rawXattr) map[string]refBytes {
		m := make(map[string]refBytes)
		for _, x := range xs {
			m[string(x.name)] = x.value
		}
		return m
	}
	return &refEntry{
		Name: string(e.name), Type: string(e.typ), Size: e.size, ModTime: string(e.modTime), LinkName: string(e.linkName),
		Mode: e.mode, UID: int(e.uid), GID: int(e.gid), Offset: e.offset, InnerOffset: e.innerOffset,
		DevMajor: e.devMajor, DevMinor: e.devMinor, Xattrs: xattrs(e.xattrs), Digest: string(e.digest),
		ChunkOffset: e.chunkOffset, ChunkSize: e.chunkSize, ChunkDigest: string(e.chunkDigest), ChunkType: string(e.chunkType),
		RawName: e.rawName, RawLinkName: e.rawLinkName, RawXattrs: xattrs(e.rawXattrs),
	}
}

// FuzzDecode holds the scanner against encoding/json, and Decode against the
// promises of its result.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, ` {"version" : 1, "entries" : null } `, `{"entries":[null]}`, `{"x":01}`, `{"x":-}`,
		`{"entries":[{"name":"a/b","type":"dir","mode":493,"modtime":"2024-02-29T12:34:56.5Z"}]}`,
		`{"entries":[{"name":"f","type":"reg","size":5,"offset":9,"chunkSize":3,"chunkDigest":"` + zeroSum + `"},` +
			`{"name":"f","type":"chunk","offset":12,"chunkOffset":3,"chunkDigest":"` + zeroSum + `"}]}`,
		`{"ENTRIES":[{"NAME":"\ud800\n\u00e9","Kind":1e5,"xattrs":{"a":"AA==","b":null},"uid":-9223372036854775808}]}`,
		`{"entries":[{"skimmer.rawName":"/w==","skimmer.rawLinkName":"","skimmer.rawXattrs":{"YQ==":"Y\nQ=="},"x":[{},[],"",true,-0.5E-3]}]}`,
		string(benchTOC(12)),
		`{"entries":[{"name":"a/b/c","type":"symlink","linkName":"/x//y/"},{"name":"a/b/../d","type":"hardlink","linkName":"/a/./b/c/"},` +
			`{"name":"a/b/d","type":"block","devMajor":8,"devMinor":1,"modtime":"2024-02-29T12:34:56+01:00","xattrs":{"user.b":"eA==","user.a":""}}]}`,
		`{"entries":[{"name":".prefetch.landmark","type":"reg","size":1,"offset":1},{"name":"f","type":"reg","size":5,"offset":9,"digest":"` + zeroSum + `"},` +
			`{"name":"z","type":"reg","size":4097,"chunkType":"zeros"},{"name":"g","type":"reg","size":5,"offset":9,"innerOffset":5,"digest":"` + zeroSum + `"}]}`,
		"{\"entries\":[{\"name\":\"\xff\xc3\x28\",\"lin\u212aName\":\"x\"}]}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var got []*refEntry
		err := scanTOC(p, func(e *rawEntry) error {
			got = append(got, e.ref())
			return nil
		})
		var want refTOC
		wantErr := json.Unmarshal(p, &want)
		switch {
		case errors.Is(err, errTwice) || errors.Is(err, errTooDeep) || errors.Is(err, errNullEntry):
		case (err == nil) != (wantErr == nil):
			t.Fatalf("scanner: %v; encoding/json: %v", err, wantErr)
		case err == nil:
			if d := cmp.Diff(want.Entries, got, cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("entries (-encoding/json +scanner):\n%s", d)
			}
		}
		toc, err := Decode(p, Zstd, 1<<20, 1<<19)
		if err != nil {
			if !errors.Is(err, blob.Invalid) {
				t.Fatalf("error %v is not Invalid", err)
			}
			return
		}
		if err := toc.Index.check(); err != nil {
			t.Fatalf("Decode returned a wrong index: %v", err)
		}
		entries, sums := refEntries(&want)
		if d := cmp.Diff(entries, toc.Entries, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("Decode (-reference +got):\n%s", d)
		}
		if !slices.EqualFunc(sums, toc.Index.Chunks, func(sum [32]byte, c Chunk) bool { return sum == c.Digest }) {
			t.Fatalf("Decode has chunks %+v, want digests %x", toc.Index.Chunks, sums)
		}
		for _, e := range toc.Entries {
			if e.Type == Regular && e.Size > 0 {
				if f, ok := toc.Index.FileAt(e.DataOff); !ok || f.Name != e.Name || f.Size != e.Size {
					t.Fatalf("FileAt(%d) = %+v, %v for %+v", e.DataOff, f, ok, e)
				}
			}
			if strings.HasPrefix(e.Name, "/") || slices.Contains(strings.Split(e.Name, "/"), "..") {
				t.Fatalf("name %q leaves the root", e.Name)
			}
		}
	})
}

// benchTOC is a TOC of n entries such as layers of distributions have.
func benchTOC(n int) []byte {
	var buf bytes.Buffer
	buf.WriteString("{\n\t\"version\": 1,\n\t\"entries\": [")
	for i := range n {
		if i > 0 {
			buf.WriteByte(',')
		}
		if i%10 == 0 {
			fmt.Fprintf(&buf, "\n\t\t{\n\t\t\t\"name\": \"usr/lib/python3/dist-packages/package%d/\",\n\t\t\t\"type\": \"dir\",\n\t\t\t\"modtime\": \"2024-02-29T12:34:56Z\",\n\t\t\t\"mode\": 493,\n\t\t\t\"NumLink\": 0\n\t\t}", i/10)
			continue
		}
		sum := fmt.Sprintf("sha256:%064x", i)
		fmt.Fprintf(&buf, "\n\t\t{\n\t\t\t\"name\": \"usr/lib/python3/dist-packages/package%d/module_%d.py\",\n\t\t\t\"type\": \"reg\",\n\t\t\t\"size\": 4321,\n\t\t\t\"modtime\": \"2024-02-%02dT12:34:56Z\",\n\t\t\t\"mode\": 420,\n\t\t\t\"offset\": %d,\n\t\t\t\"NumLink\": 0,\n\t\t\t\"digest\": \"%s\",\n\t\t\t\"chunkDigest\": \"%s\"\n\t\t}", i/10, i, 1+i%28, 1000+2000*i, sum, sum)
	}
	buf.WriteString("\n\t]\n}")
	return buf.Bytes()
}

func BenchmarkDecode(b *testing.B) {
	p := benchTOC(20_000)
	b.Run("Decode", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decode(p, Gzip, 1<<40, 1<<39); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		b.ReportAllocs()
		for b.Loop() {
			if err := json.Unmarshal(p, new(refTOC)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
