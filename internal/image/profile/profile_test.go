package profile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

func testDigest(words ...any) digest.Digest { return digest.FromString(fmt.Sprint(words...)) }

// someLayers are the same for all profiles of random.
var someLayers = []Layer{
	{testDigest("a"), testDigest("toc a"), 40},
	{testDigest("b"), testDigest("toc b"), 300},
	{digest.SHA512.FromString("c"), testDigest("toc c"), 5},
}

// random makes a profile as recording might: runs of chunks, none twice.
func random(r *rand.Rand) Profile {
	p := Profile{
		Manifest: testDigest("manifest"), Platform: "linux/amd64", Layers: someLayers,
		Recorded: time.Unix(1_700_000_000+r.Int64N(1000), 0).UTC(), Starts: 1 + r.IntN(MaxStarts),
	}
	for i, l := range p.Layers {
		for first := r.IntN(4); first < l.Chunks; {
			n := min(1+r.IntN(5), l.Chunks-first)
			at := time.Duration(r.IntN(1000)) * time.Millisecond
			p.Reads = append(p.Reads, Read{Layer: i, First: first, Count: n, At: at, Starts: 1 + r.IntN(p.Starts)})
			first += n + r.IntN(8)
		}
	}
	slices.SortFunc(p.Reads, byTime)
	return p
}

func mustEncode(t testing.TB, p Profile) []byte {
	t.Helper()
	data, err := Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestEncoding(t *testing.T) {
	for seed := range uint64(200) {
		p := random(rand.New(rand.NewPCG(seed, 0)))
		data := mustEncode(t, p)
		got, err := Decode(data)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		doc, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var again Profile
		if err := json.Unmarshal(doc, &again); err != nil {
			t.Fatalf("seed %d: %v in %s", seed, err, doc)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Fatalf("seed %d: as JSON: %s", seed, diff)
		}
	}
}

// TestEncodingSize holds a profile of a common start to a few KiB.
func TestEncodingSize(t *testing.T) {
	p := Profile{Manifest: testDigest("m"), Platform: "linux/amd64", Recorded: time.Unix(1, 0).UTC(), Starts: 1}
	for i := range 10 {
		p.Layers = append(p.Layers, Layer{testDigest(i), testDigest("toc", i), 5000})
	}
	for i := range 600 {
		p.Reads = append(p.Reads, Read{Layer: i % 10, First: i * 7, Count: 3, At: time.Duration(i) * time.Millisecond, Starts: 1})
	}
	if n := len(mustEncode(t, p)); n > 5<<10 {
		t.Errorf("%d reads of %d layers take %d bytes", len(p.Reads), len(p.Layers), n)
	}
}

func TestValidate(t *testing.T) {
	for words, change := range map[string]func(p *Profile){
		"bad manifest digest":                     func(p *Profile) { p.Manifest = "sha256:12" },
		"bad platform":                            func(p *Profile) { p.Platform = "linux\x1b[2J" },
		"bad time of recording":                   func(p *Profile) { p.Recorded = time.Time{} },
		"17 starts":                               func(p *Profile) { p.Starts = 17 },
		"1025 layers":                             func(p *Profile) { p.Layers = make([]Layer, 1025) },
		"8193 reads":                              func(p *Profile) { p.Reads = make([]Read, 8193) },
		"layer 1: bad digest":                     func(p *Profile) { p.Layers[1].TOC = "" },
		"layer 2: -1 chunks":                      func(p *Profile) { p.Layers[2].Chunks = -1 },
		"read 0 is of layer 3 of 3":               func(p *Profile) { p.Reads[0].Layer = 3 },
		"0 chunks from":                           func(p *Profile) { p.Reads[0].Count = 0 },
		"9223372036854775807 chunks from":         func(p *Profile) { p.Reads[0].Count = 1<<63 - 1 },
		"chunks from -1 on":                       func(p *Profile) { p.Reads[0].First = -1 },
		"chunks from 9223372036854775807 on":      func(p *Profile) { p.Reads[0].First = 1<<63 - 1 },
		"read 1 is at -1ms, after":                func(p *Profile) { p.Reads[1].At = -time.Millisecond },
		"read 0 is of 0 starts":                   func(p *Profile) { p.Reads[0].Starts = 0 },
		"read 0 is of 17 starts of":               func(p *Profile) { p.Reads[0].Starts = 17 },
		"is read twice":                           func(p *Profile) { p.Reads[1] = p.Reads[0] },
		"read 0 is at 24h0m0.001s, after one at ": func(p *Profile) { p.Reads[0].At = 24*time.Hour + time.Millisecond },
	} {
		p := random(rand.New(rand.NewPCG(1, 1)))
		p.Layers = slices.Clone(p.Layers)
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&p)
		_, err := Encode(p)
		if blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", words, err)
		}
	}
}

// reseal gives data a checksum that matches.
func reseal(data []byte) []byte {
	body := data[:len(data)-sumSize]
	return binary.LittleEndian.AppendUint32(slices.Clone(body), crc32.Checksum(body, castagnoli))
}

func TestDecodeErrors(t *testing.T) {
	good := mustEncode(t, random(rand.New(rand.NewPCG(3, 3))))
	for i := range good {
		flipped := slices.Clone(good)
		flipped[i] ^= 0x10
		if _, err := Decode(flipped); err == nil {
			t.Errorf("with byte %d changed, it is decoded", i)
		}
		if _, err := Decode(good[:i]); blob.KindOf(err) != blob.Corrupt {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
		if i > len(magic)+sumSize {
			if _, err := Decode(reseal(good[:i])); blob.KindOf(err) != blob.Corrupt {
				t.Errorf("cut after %d bytes, with a good checksum: %v", i, err)
			}
		}
	}
	newer := slices.Clone(good)
	newer[len(magic)] = 2
	if _, err := Decode(newer); blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("newer version: %v", err)
	}
	more := reseal(append(slices.Clone(good), 0))
	if _, err := Decode(more); err == nil || !strings.Contains(err.Error(), "bytes too many") {
		t.Errorf("with a byte more: %v", err)
	}
	if _, err := Decode(slices.Concat(good, make([]byte, MaxSize))); blob.KindOf(err) != blob.Corrupt {
		t.Errorf("too large: %v", err)
	}
	var p Profile
	for _, doc := range []string{`[]`, `{"version":2}`, `{"version":1,"starts":1}`} {
		if err := json.Unmarshal([]byte(doc), &p); err == nil {
			t.Errorf("%s is read", doc)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(mustEncode(f, random(rand.New(rand.NewPCG(seed, 5)))))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > len(magic)+sumSize {
			data = reseal(data)
		}
		p, err := Decode(data)
		if err != nil {
			if k := blob.KindOf(err); k != blob.Corrupt && k != blob.Invalid {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		again, err := Encode(p)
		if err != nil {
			t.Fatalf("what was decoded is not encoded: %v", err)
		}
		if !bytes.Equal(data, again) {
			t.Fatalf("encoded again, it differs:\n%x\n%x", data, again)
		}
		if merged := Merge(p, p); !reflect.DeepEqual(p, merged) {
			t.Fatalf("merged with itself, %+v became %+v", p, merged)
		}
	})
}

// TestFit cuts profiles that have too many reads, or reads that take too many
// bytes, at their end, and not a read more than that takes.
func TestFit(t *testing.T) {
	for name, gap := range map[string]int{"many": 0, "large": 1 << 30} {
		p := Profile{Manifest: testDigest("m"), Recorded: time.Unix(1, 0), Starts: 1}
		p.Layers = []Layer{{testDigest(1), testDigest(2), maxChunks}}
		for i := range 2 * MaxReads {
			p.Reads = append(p.Reads, Read{First: i + i%2*gap, Count: 1, At: time.Duration(i) * 500 * time.Millisecond, Starts: 1})
		}
		fit := p.Fit()
		n := len(fit.Reads)
		if n == 0 || !slices.Equal(fit.Reads, p.Reads[:n]) {
			t.Fatalf("%s: %d reads are left", name, n)
		}
		if data, err := Encode(fit); err != nil || n < MaxReads && len(data) < MaxSize-32 {
			t.Errorf("%s: %d bytes with %d reads: %v", name, len(data), n, err)
		}
		if again := fit.Fit(); len(again.Reads) != n {
			t.Errorf("%s: it is cut again, from %d reads to %d", name, n, len(again.Reads))
		}
		if (gap == 0) != (n == MaxReads) {
			t.Errorf("%s: %d reads are left", name, n)
		}
	}
}

// FuzzJSON reads documents as people may write them; what is read has to be
// right, and to be the same when it is written and read again.
func FuzzJSON(f *testing.F) {
	for seed := range uint64(2) {
		doc, err := json.Marshal(random(rand.New(rand.NewPCG(seed, 6))))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add([]byte(`{"version":1,"manifest":"sha256:1","reads":[{"at_ms":9223372036854775807}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		var p, again Profile
		if json.Unmarshal(doc, &p) != nil {
			return
		}
		if err := p.Validate(); err != nil {
			if p.Manifest == "" {
				return // null leaves a profile as it is
			}
			t.Fatal(err)
		}
		written, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(written, &again); err != nil {
			t.Fatalf("%v in %s", err, written)
		}
		if !reflect.DeepEqual(again, normal(p)) {
			t.Fatalf("%+v became %+v", p, again)
		}
	})
}

// normal is what a profile keeps of times, and of lists with nothing in them.
func normal(p Profile) Profile {
	p.Recorded = p.Recorded.Truncate(time.Second)
	if len(p.Layers) == 0 {
		p.Layers = nil
	}
	if len(p.Reads) == 0 {
		p.Reads = nil
	}
	return p
}
