package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// TestOpenOfKnownSizeAsksNothing opens blobs before anything can answer.
func TestOpenOfKnownSizeAsksNothing(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth, Redirect: true})
	o := newOrigin(t)
	for i := range uint64(3) {
		b, err := o.Open(t.Context(), reg.AddBlob("some/repo", blobtest.Bytes(i, 1000)))
		if err != nil {
			t.Fatal(err)
		}
		if b.Size() != 1000 {
			t.Errorf("size %d, want 1000", b.Size())
		}
		b.Close()
	}
	if n := reg.Stats().Total(); n != 0 {
		t.Errorf("opening made %d requests", n)
	}
}

func TestSeveralRangesConform(t *testing.T) {
	for _, do := range []testkit.Action{
		testkit.FirstRange, testkit.RefuseRanges, testkit.WholeForRanges, testkit.ReversedRanges, testkit.MergedRanges,
	} {
		t.Run(fmt.Sprint(do), func(t *testing.T) {
			blobtest.RunSeveral(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				reg := testkit.NewRegistry(t, testkit.Options{
					Redirect: true, Auth: testkit.TokenAuth,
					Faults: []testkit.Fault{{On: testkit.StorageGet, Do: do}},
				})
				var refs []blob.Ref
				for _, p := range contents {
					refs = append(refs, reg.AddBlob("some/repo", p))
				}
				return newOrigin(t), refs
			})
		})
	}
}

// apart returns n ranges of 1000 bytes, 10,000 apart.
func apart(n int) (rs []blob.Range) {
	for i := range int64(n) {
		rs = append(rs, blob.Range{Off: 500 + i*10_000, Len: 1000})
	}
	return rs
}

func TestSeveralRangesRequests(t *testing.T) {
	const size = 4 << 20
	content := blobtest.Bytes(1, size)
	for _, c := range []struct {
		name         string
		fault        testkit.Fault
		n            int
		first, again int   // requests of the first and of a second call
		most         int64 // bytes of bodies, both together; 0 for those wanted and 200 a part
	}{
		{"well", testkit.Fault{}, 60, 1, 1, 0},
		{"more than one request may have", testkit.Fault{}, 150, 3, 3, 0},
		{"reversed", testkit.Fault{Do: testkit.ReversedRanges}, 60, 1, 1, 0},
		{"merged in pairs", testkit.Fault{Do: testkit.MergedRanges}, 60, 1, 1, 2 * 30 * 11_300},
		{"merged into one", testkit.Fault{Do: testkit.MergedRanges}, 2, 1, 1, 2 * 11_000},
		{"first alone", testkit.Fault{Do: testkit.FirstRange}, 20, 20, 20, 0},
		{"refused", testkit.Fault{Do: testkit.RefuseRanges}, 20, 21, 20, 0},
		// The second call knows better than to ask for all at once.
		{"whole and near", testkit.Fault{Do: testkit.WholeForRanges}, 20, 1, 20, size + 20_000},
		{"breaks off", testkit.Fault{Do: testkit.ShortBody, After: 30_000, Times: 1}, 60, 2, 1, 2*60*1200 + 40_000},
		{"fails once", testkit.Fault{Do: testkit.Status, Status: 503, Times: 1}, 60, 2, 1, 0},
		{"resets once", testkit.Fault{Do: testkit.Reset, Times: 1}, 60, 2, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := testkit.NewRegistry(t, testkit.Options{})
			ref := reg.AddBlob("some/repo", content)
			o := newOrigin(t)
			b, err := o.Open(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if c.fault.Do != 0 {
				c.fault.On = testkit.BlobGet
				reg.Inject(c.fault)
			}
			rs := apart(c.n)
			for _, want := range []int{c.first, c.again} {
				before := reg.Stats().Total()
				l := blobtest.NewLanding(rs)
				if err := blob.ReadRanges(t.Context(), b, rs, l.Land); err != nil {
					t.Fatal(err)
				}
				if err := l.Check(content, true); err != nil {
					t.Error(err)
				}
				if got := reg.Stats().Total() - before; got != want {
					t.Errorf("%d ranges took %d requests, want %d", c.n, got, want)
				}
			}
			most := c.most
			if most == 0 {
				most = 2 * int64(c.n) * 1200
			}
			if got := reg.Stats().TotalBytes(); got > most {
				t.Errorf("%d bytes were sent, want at most %d", got, most)
			}
		})
	}
}

func TestSeveralRangesOfStorage(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Redirect: true})
	content := blobtest.Bytes(1, 1<<20)
	ref := reg.AddBlob("some/repo", content)
	b, err := newOrigin(t).Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		l := blobtest.NewLanding(apart(30))
		if err := blob.ReadRanges(t.Context(), b, apart(30), l.Land); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(content, true); err != nil {
			t.Error(err)
		}
	}
	if s := reg.Stats(); s.Requests[testkit.BlobGet] != 1 || s.Requests[testkit.StorageGet] != 5 || s.Conns != 2 {
		t.Errorf("requests %v, %d connections; want one redirect and one connection each", s.Requests, s.Conns)
	}
}

// TestSeveralRangesKeepWhatCame breaks the answer off; a call that fails has
// delivered what there was.
func TestSeveralRangesKeepWhatCame(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	content := blobtest.Bytes(1, 4<<20)
	o := newOrigin(t, func(cfg *Config) { cfg.Retries = -1 })
	b, err := o.Open(t.Context(), reg.AddBlob("some/repo", content))
	if err != nil {
		t.Fatal(err)
	}
	reg.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.ShortBody, After: 20_000})
	l := blobtest.NewLanding(apart(60))
	var n int
	err = blob.ReadRanges(t.Context(), b, apart(60), func(i int, off int64, p []byte) error {
		n += len(p)
		return l.Land(i, off, p)
	})
	if !errors.Is(err, blob.Unavailable) {
		t.Errorf("read: %v, want unavailable", err)
	}
	if err := l.Check(content, false); err != nil || n < 10_000 {
		t.Errorf("%d bytes were delivered before the end, %v", n, err)
	}
}

func TestSeveralRangesFaults(t *testing.T) {
	content := blobtest.Bytes(1, 4<<20)
	for _, c := range []struct {
		fault testkit.Fault
		want  error
	}{
		{testkit.Fault{Do: testkit.Status, Status: 404}, blob.NotFound},
		{testkit.Fault{Do: testkit.Status, Status: 403}, blob.Forbidden},
		{testkit.Fault{Do: testkit.Status, Status: 429, RetryAfter: "0"}, blob.Busy},
		{testkit.Fault{Do: testkit.Multipart}, blob.Corrupt}, // other ranges than asked for
	} {
		reg := testkit.NewRegistry(t, testkit.Options{})
		ref := reg.AddBlob("some/repo", content)
		b, err := newOrigin(t).Open(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		c.fault.On = testkit.BlobGet
		reg.Inject(c.fault)
		err = blob.ReadRanges(t.Context(), b, apart(10), blobtest.NewLanding(apart(10)).Land)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.fault, err, c.want)
		}
	}
}

func TestSeveralRangesCanceledWhileHanging(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Faults: []testkit.Fault{{On: testkit.BlobGet, Do: testkit.HangBody, After: 20_000}}})
	content := blobtest.Bytes(1, 4<<20)
	b, err := newOrigin(t).Open(t.Context(), reg.AddBlob("some/repo", content))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var once sync.Once
	l := blobtest.NewLanding(apart(60))
	err = blob.ReadRanges(ctx, b, apart(60), func(i int, off int64, p []byte) error {
		if i > 10 {
			once.Do(cancel)
		}
		return l.Land(i, off, p)
	})
	if blob.KindOf(err) != blob.Canceled {
		t.Errorf("read: %v, want canceled", err)
	}
}

func partsBody(boundary string, parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "\r\n--%s\r\n%s", boundary, p)
	}
	return b.String() + "\r\n--" + boundary + "--\r\n"
}

func readParts(contentType, text string) (got string, err error) {
	p, err := newParts(contentType, strings.NewReader(text))
	if err != nil {
		return "", err
	}
	for {
		c, err := p.next()
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		data := make([]byte, c.Range.Len)
		if _, err := io.ReadFull(p.r, data); err != nil {
			return got, err
		}
		got += fmt.Sprintf("%v/%d=%s;", c.Range, c.Total, data)
	}
}

func TestParts(t *testing.T) {
	const ct = "multipart/byteranges; boundary=B"
	part := "Content-Range: bytes 0-4/100\r\n\r\nhello"
	for _, c := range []struct {
		contentType, text, want string
		err                     error
	}{
		{ct, partsBody("B", part, "content-type: x/y\r\ncontent-range: bytes 7-8/*\r\n\r\nhi"), "0-4/100=hello;7-8/-1=hi;", nil},
		{`multipart/byteranges; boundary="B"`, partsBody("B", part), "0-4/100=hello;", nil},
		{ct, strings.TrimPrefix(partsBody("B", part), "\r\n"), "0-4/100=hello;", nil},
		{ct, strings.ReplaceAll(partsBody("B", part), "\r\n", "\n"), "0-4/100=hello;", nil},
		// What looks like a delimiter is not one inside a part.
		{ct, partsBody("B", "Content-Range: bytes 0-4/9\r\n\r\n\r\n--B"), "0-4/9=\r\n--B;", nil},
		{ct, partsBody("B", part)[:40], "", io.ErrUnexpectedEOF},
		{ct, partsBody("B", part, part)[:70], "0-4/100=hello;", io.ErrUnexpectedEOF},
		{ct, "", "", io.ErrUnexpectedEOF},
		{ct, partsBody("C", part), "", errFormat},
		{ct, partsBody("BB", part), "", errFormat},
		{ct, partsBody("B", part+"!"), "0-4/100=hello;", errFormat},
		{ct, partsBody("B", "Content-Type: x/y\r\n\r\nhello"), "", errFormat},
		{ct, partsBody("B", "Content-Range: bytes */9\r\n\r\nhello"), "", errFormat},
		{ct, partsBody("B", "Content-Range: bytes 0-1/9\r\nContent-Range: bytes 0-1/9\r\n\r\nhi"), "", errFormat},
		{ct, partsBody("B", "no colon\r\n"+part), "", errFormat},
		{ct, partsBody("B", strings.Repeat("A: b\r\n", 20)+part), "", errFormat},
		{ct, partsBody("B", "A: "+strings.Repeat("b", 2000)+"\r\n"+part), "", errFormat},
		{"multipart/mixed; boundary=B", partsBody("B", part), "", errFormat},
		{"multipart/byteranges", partsBody("B", part), "", errFormat},
		{"multipart/byteranges; boundary=" + strings.Repeat("B", 71), "", "", errFormat},
	} {
		got, err := readParts(c.contentType, c.text)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q, %q: got %q, %v; want %q, %v", c.contentType, c.text, got, err, c.want, c.err)
		}
	}
}

func FuzzParts(f *testing.F) {
	part := "Content-Range: bytes 0-4/100\r\n\r\nhello"
	f.Add("multipart/byteranges; boundary=B", partsBody("B", part, part))
	f.Add(`multipart/byteranges; boundary="B C"`, partsBody("B C", part))
	f.Add("multipart/byteranges; boundary=B", "--B\nContent-Range: bytes 9-9/10\n\nx\n--B--")
	f.Add("text/plain", "")
	f.Fuzz(func(t *testing.T, contentType, text string) {
		p, err := newParts(contentType, strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, errFormat) {
				t.Fatalf("content type %q: %v is no format error", contentType, err)
			}
			return
		}
		left := int64(len(text))
		for {
			c, err := p.next()
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, errFormat) {
					t.Fatalf("unexpected error %v", err)
				}
				return
			}
			if c.Range.Len <= 0 || c.Range.Off < 0 || c.Total != blob.SizeUnknown && c.Range.End() > c.Total {
				t.Fatalf("accepted %+v", c)
			}
			n, _ := io.CopyN(io.Discard, p.r, c.Range.Len)
			if left -= n; left < 0 {
				t.Fatal("parts have more bytes than there are")
			}
		}
	})
}
