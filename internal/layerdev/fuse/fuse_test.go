package fuse

import (
	"testing"
)

// request builds what the kernel would send.
func request(op Op, node uint64, body []byte) []byte {
	p := put32(nil, uint32(headerSize+len(body)), uint32(op))
	p = put64(p, 42, node)
	p = put32(p, 0, 0, 77, 0)
	return append(p, body...)
}

func TestParseRead(t *testing.T) {
	body := put64(nil, 0, 1<<30)
	body = put32(body, 131072, 0)
	body = append(body, make([]byte, 16)...)
	r, err := Parse(request(Read, 77, body))
	if err != nil {
		t.Fatal(err)
	}
	if r.Op != Read || r.Unique != 42 || r.Node != 77 || r.Pid != 77 {
		t.Errorf("request = %+v", r)
	}
	if off, size, err := r.Span(); off != 1<<30 || size != 131072 || err != nil {
		t.Errorf("span = %d+%d, %v", off, size, err)
	}
}

func TestParseHello(t *testing.T) {
	want := AsyncRead | InitExt | HasResend
	body := put32(nil, 7, 45, 65536, uint32(want&0xffffffff), uint32(want>>32))
	r, err := Parse(request(Init, 0, append(body, make([]byte, 44)...)))
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.Hello()
	if err != nil || h.Major != 7 || h.Minor != 45 || h.Flags != want || h.MaxReadahead != 65536 {
		t.Errorf("hello = %+v, %v", h, err)
	}
}

// The kernel checks the length of every reply.
func TestReplySizes(t *testing.T) {
	for name, c := range map[string]struct{ got, want int }{
		"entry":  {len(AppendEntry(nil, Attr{})), 128},
		"attr":   {len(AppendAttr(nil, Attr{})), 104},
		"open":   {len(AppendOpen(nil, 0)), 16},
		"init":   {len(AppendHello(nil, Hello{})), 64},
		"statfs": {len(AppendStatFS(nil, 0, 0)), 80},
		"notify": {len(Notification(NotifyResend)), 16},
	} {
		if c.got != c.want {
			t.Errorf("%s reply has %d bytes, the kernel wants %d", name, c.got, c.want)
		}
	}
}

func TestDirentsFit(t *testing.T) {
	var p []byte
	n := 0
	for ok := true; ok; n++ {
		p, ok = AppendDirent(p, 100, Dirent{Node: 5, Next: uint64(n + 1), Type: 8, Name: "name"})
	}
	if len(p) != 96 || n != 4 {
		t.Errorf("%d entries in %d bytes, want 3 in 96", n-1, len(p))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(request(Lookup, Root, []byte("name\x00")))
	f.Add(request(Lookup, Root, []byte("endless")))
	f.Add(request(Read, 5, make([]byte, 40)))
	f.Add(request(Read, 5, make([]byte, 39)))
	f.Add(request(Interrupt, 0, put64(nil, 42)))
	f.Add(request(Init, 0, put32(nil, 7, 45, 0, uint32(InitExt), 0xffff)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := Parse(p)
		if err != nil {
			return
		}
		if name, err := r.Name(); err == nil && len(name) >= len(p) {
			t.Errorf("name of %d bytes in a request of %d", len(name), len(p))
		}
		if off, size, err := r.Span(); err == nil && (off < 0 || size < 0) {
			t.Errorf("span %d+%d", off, size)
		}
		_, _ = r.Target()
		_, _ = r.Hello()
	})
}
