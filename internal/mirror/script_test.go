package mirror

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// TestScripts runs the files of testdata, which say what clients ask a mirror
// and what they get. A line is a command, or belongs to the request above it if
// it is indented: request headers, then "=> STATUS", then what is expected.
//
//	registry NAME [auth=token|basic] [private=REPO,...] [redirect]   users alice and bob, password "secret"
//	mirror REGISTRY [ttl=never] [grace=never]         anew, and with nothing held; by default all is remembered
//	image NAME REGISTRY REPO TAG SIZE...              defines {NAME}, {NAME.0} (layers); sizes are also seeds
//	blob NAME REGISTRY REPO SIZE                      the same size is the same blob; defines {NAME}, and {NAME.data} in base64
//	document NAME REGISTRY REPO TAG TYPE JSON         a manifest as it stands
//	token NAME REGISTRY REPO [USER]                   defines {NAME}, an Authorization header
//	basic NAME USER
//	fault REGISTRY OP DO [status=N] [times=N] [after=N]
//	heal REGISTRY                                     no faults
//	dismiss REGISTRY USER
//	reset REGISTRY                                    forget what it was asked
//	asked REGISTRY [OP=N]...                          what it was asked since the last time, and nothing else
//	GET|HEAD|... PATH
//
// Expectations: a header as "Name: value", "no Name", "same" (status, headers
// and body are what the registry itself answers), "body {NAME}[from:to]",
// "text WORDS" in the body, "error CODE" of the distribution specification,
// "broken" (the body ends early).
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			s := &script{t: t, registries: make(map[string]*testkit.Registry), names: make(map[string]string), content: make(map[string][]byte)}
			s.run(file)
		})
	}
}

type script struct {
	t          *testing.T
	at         string // file and line
	registries map[string]*testkit.Registry
	world      *world
	upstream   *testkit.Registry
	names      map[string]string // what stands in braces
	content    map[string][]byte // by digest
}

func (s *script) fatalf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s: %s", s.at, fmt.Sprintf(format, args...))
}

func (s *script) run(file string) {
	f, err := os.Open(file)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	var block []string
	flush := func() {
		if len(block) > 0 {
			s.command(block)
		}
		block = nil
	}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		if line[0] != ' ' && !strings.HasPrefix(line, "=>") {
			flush()
			s.at = fmt.Sprintf("%s:%d", filepath.Base(file), n)
		}
		block = append(block, s.fill(strings.TrimSpace(line)))
	}
	flush()
}

var named = regexp.MustCompile(`\{[a-zA-Z][a-zA-Z0-9.]*\}`)

func (s *script) fill(line string) string {
	return named.ReplaceAllStringFunc(line, func(name string) string {
		v, ok := s.names[strings.Trim(name, "{}")]
		if !ok {
			return name
		}
		return v
	})
}

// options splits words into those that are NAME=VALUE and the others.
func options(words []string) (plain []string, opts map[string]string) {
	opts = make(map[string]string)
	for _, w := range words {
		if k, v, ok := strings.Cut(w, "="); ok {
			opts[k] = v
		} else {
			plain = append(plain, w)
		}
	}
	return plain, opts
}

func (s *script) registry(name string) *testkit.Registry {
	r, ok := s.registries[name]
	if !ok {
		s.fatalf("no registry %q", name)
	}
	return r
}

func (s *script) number(v string) int {
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		s.fatalf("%v", err)
	}
	return n
}

var faults = map[string]testkit.Action{
	"status": testkit.Status, "reset": testkit.Reset, "short": testkit.ShortBody, "corrupt": testkit.CorruptBody, "noranges": testkit.NoRanges,
	"nolength": testkit.NoLength, "nodigest": testkit.NoDigest, "long": testkit.LongLength, "shortlength": testkit.ShortLength,
	"wrongtotal": testkit.WrongTotal, "extra": testkit.ExtraBytes,
}

func (s *script) command(block []string) {
	words, opts := options(strings.Fields(block[0]))
	switch words[0] {
	case "registry":
		s.startRegistry(words, opts)
	case "mirror":
		s.upstream = s.registry(words[1])
		s.world = newWorld(s.t, s.upstream, func(cfg *Config) {
			if opts["ttl"] == "never" {
				cfg.AuthorizationTTL = -1
			}
			if opts["grace"] == "never" {
				cfg.AuthorizationGrace = -1
			}
		})
	case "image", "blob", "document":
		s.add(block[0])
	case "token":
		s.names[words[1]] = "Bearer " + token(s.t, s.registry(words[2]), words[3], strings.Join(words[4:], ""))
	case "basic":
		req, _ := http.NewRequest(http.MethodGet, "/", nil)
		req.SetBasicAuth(words[2], "secret")
		s.names[words[1]] = req.Header.Get("Authorization")
	case "fault":
		do, ok := faults[words[len(words)-1]]
		if !ok {
			s.fatalf("no fault %q", words[len(words)-1])
		}
		op := testkit.Op(strings.Join(words[2:len(words)-1], " "))
		s.registry(words[1]).Inject(testkit.Fault{On: op, Do: do, Status: s.number(opts["status"]), Times: s.number(opts["times"]),
			After: int64(s.number(opts["after"])), RetryAfter: opts["retry"]})
	case "heal":
		s.registry(words[1]).ClearFaults()
	case "dismiss":
		s.registry(words[1]).Dismiss(words[2])
	case "reset":
		s.registry(words[1]).ResetStats()
	case "asked":
		s.asked(s.registry(words[1]), strings.Fields(block[0])[2:])
	default:
		s.request(block)
	}
}

func (s *script) startRegistry(words []string, opts map[string]string) {
	o := testkit.Options{Users: map[string]string{"alice": "secret", "bob": "secret"}}
	switch opts["auth"] {
	case "token":
		o.Auth = testkit.TokenAuth
	case "basic":
		o.Auth = testkit.BasicAuth
	}
	if p := opts["private"]; p != "" {
		o.Private = strings.Split(p, ",")
	}
	o.Redirect = len(words) > 2 && words[2] == "redirect"
	s.registries[words[1]] = testkit.NewRegistry(s.t, o)
	s.names[words[1]+".url"] = s.registries[words[1]].URL()
	s.names[words[1]+".host"] = s.registries[words[1]].Host()
	s.names[words[1]+".ns"] = url.QueryEscape(s.registries[words[1]].Host())
}

// add puts something into a registry.
func (s *script) add(line string) {
	w := strings.Fields(line)
	name, reg, repo := w[1], s.registry(w[2]), w[3]
	sized := func(size string) []byte { return blobtest.Bytes(uint64(s.number(size)), s.number(size)) }
	switch w[0] {
	case "blob":
		p := sized(w[4])
		s.define(name, reg.AddBlob(repo, p).Digest, p)
	case "document":
		p := []byte(strings.Join(w[6:], " "))
		s.define(name, reg.AddManifest(repo, w[4], w[5], p).Digest, p)
	case "image":
		var layers [][]byte
		for i, size := range w[5:] {
			p := sized(size)
			layers = append(layers, p)
			s.define(name+"."+strconv.Itoa(i), digest.FromBytes(p), p)
		}
		d := reg.AddImage(repo, w[4], layers...).Digest
		p, _ := reg.Manifest(repo, d.String())
		s.define(name, d, p)
	}
}

func (s *script) define(name string, d digest.Digest, p []byte) {
	s.names[name] = d.String()
	s.names[name+".data"] = base64.StdEncoding.EncodeToString(p)
	s.content[d.String()] = p
}

// asked compares what a registry was asked with what is expected.
func (s *script) asked(reg *testkit.Registry, want []string) {
	got := make(map[string]int)
	for op, n := range reg.Stats().Requests {
		got[strings.ReplaceAll(string(op), " ", "-")] = n
	}
	for _, w := range want {
		op, n, _ := strings.Cut(w, "=")
		if got[op] != s.number(n) {
			s.t.Errorf("%s: %d requests of %s, want %s", s.at, got[op], op, n)
		}
		delete(got, op)
	}
	if len(got) > 0 {
		s.t.Errorf("%s: more requests: %v", s.at, got)
	}
	if leaks := reg.Stats().Leaks; leaks > 0 {
		s.t.Errorf("%s: %d requests brought credentials to the storage server", s.at, leaks)
	}
	reg.ResetStats()
}

// answered is an answer and how its body ended.
type answered struct {
	*http.Response
	body []byte
	err  error
}

// request makes a request and checks its answer.
func (s *script) request(block []string) {
	method, path, _ := strings.Cut(block[0], " ")
	header := make(http.Header)
	i := 1
	for ; i < len(block) && !strings.HasPrefix(block[i], "=>"); i++ {
		k, v, ok := strings.Cut(block[i], ": ")
		if !ok {
			s.fatalf("%q is no header", block[i])
		}
		header.Add(k, v)
	}
	if i == len(block) {
		s.fatalf("request without =>")
	}
	got := s.do(method, s.world.url+path, header)
	if want := strings.TrimSpace(strings.TrimPrefix(block[i], "=>")); want != strconv.Itoa(got.StatusCode) {
		s.t.Errorf("%s: status %d, want %s; body %.300q", s.at, got.StatusCode, want, got.body)
	}
	broken := false
	for _, line := range block[i+1:] {
		broken = broken || line == "broken"
		s.expect(line, got, func() answered {
			u, err := url.Parse(s.upstream.URL() + path)
			if err != nil {
				s.fatalf("%v", err)
			}
			q := u.Query()
			q.Del("ns")
			u.RawQuery = q.Encode()
			return s.do(method, u.String(), header)
		})
	}
	if (got.err != nil) != broken {
		s.t.Errorf("%s: body ended with %v", s.at, got.err)
	}
}

func (s *script) do(method, url string, header http.Header) answered {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		s.fatalf("%v", err)
	}
	req.Header = header.Clone()
	resp, err := s.world.client.Do(req)
	if err != nil {
		s.fatalf("%v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answered{resp, body, err}
}

func (s *script) expect(line string, got answered, direct func() answered) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "broken":
	case "same":
		s.same(got, direct())
	case "no":
		if v := got.Header.Values(rest); len(v) > 0 {
			s.t.Errorf("%s: header %s: %q, want none", s.at, rest, v)
		}
	case "body":
		want := s.slice(rest)
		if !bytes.Equal(got.body, want) {
			s.t.Errorf("%s: body of %d bytes is not the %d expected: %.300q", s.at, len(got.body), len(want), got.body)
		}
	case "text":
		if !strings.Contains(string(got.body), rest) {
			s.t.Errorf("%s: body %.300q, want %q in it", s.at, got.body, rest)
		}
	case "error":
		var doc struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(got.body, &doc); err != nil || len(doc.Errors) != 1 || doc.Errors[0].Code != rest || doc.Errors[0].Message == "" {
			s.t.Errorf("%s: body %.300q, want the error %s: %v", s.at, got.body, rest, err)
		}
	default:
		k, v, ok := strings.Cut(line, ": ")
		if !ok {
			s.fatalf("%q is no expectation", line)
		}
		if have := strings.Join(got.Header.Values(k), ", "); have != v {
			s.t.Errorf("%s: header %s: %q, want %q", s.at, k, have, v)
		}
	}
}

// slice returns what "DIGEST[from:to]" stands for; "nothing" is nothing.
func (s *script) slice(text string) []byte {
	if text == "nothing" {
		return []byte{}
	}
	d, part, cut := strings.Cut(strings.TrimSuffix(text, "]"), "[")
	p, ok := s.content[d]
	if !ok {
		s.fatalf("%q is no content", d)
	}
	if !cut {
		return p
	}
	from, to, _ := strings.Cut(part, ":")
	return p[s.number(from):s.number(to)]
}

// compared are the headers that clients act upon.
var compared = []string{"Www-Authenticate", "Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest", "Retry-After", "Location"}

func (s *script) same(got, want answered) {
	if got.StatusCode != want.StatusCode || !bytes.Equal(got.body, want.body) {
		s.t.Errorf("%s: %d %.300q, the registry says %d %.300q", s.at, got.StatusCode, got.body, want.StatusCode, want.body)
	}
	for _, k := range compared {
		if g, w := fmt.Sprint(got.Header.Values(k)), fmt.Sprint(want.Header.Values(k)); g != w {
			s.t.Errorf("%s: header %s: %s, the registry says %s", s.at, k, g, w)
		}
	}
}
