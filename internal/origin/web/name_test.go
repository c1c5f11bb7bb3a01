package web

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func TestNormalise(t *testing.T) {
	for in, want := range map[string]string{
		"http://Example.TEST":                "http://example.test/",
		"HTTP://example.test:80/x":           "http://example.test/x",
		"https://example.test:443/x?b=1&a=2": "https://example.test/x?b=1&a=2",
		"https://example.test:80/x#part":     "https://example.test:80/x",
		"http://[::1]:80/x":                  "http://[::1]/x",
		"http://example.test/a%20b/%2e%2e/?": "http://example.test/a%20b/%2e%2e/",
		"https://example.test:/":             "https://example.test/",
	} {
		u, err := normalise(in)
		if err != nil || u.String() != want {
			t.Errorf("%q: %v, %v, want %q", in, u, err, want)
		}
	}
	for _, in := range []string{"", "x", "/x", "ftp://example.test/x", "file:///etc/passwd", "http://", "http://u:secret@example.test/", "http://a b/", "http:///x",
		"http://example.test/\nx", "http://" + strings.Repeat("a", maxURL)} {
		if u, err := normalise(in); !errors.Is(err, blob.Invalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, %v, want invalid", in, u, err)
		}
	}
}

func TestSignaturesAreNoIdentity(t *testing.T) {
	id := func(raw string) string {
		u, err := normalise(raw)
		if err != nil {
			t.Fatal(err)
		}
		return name{url: u}.identity("etag x").String()
	}
	for name, pair := range map[string][2]string{
		"S3":         {"https://b.test/k?versionId=3&X-Amz-Date=1&X-Amz-Signature=a&X-Amz-Credential=me", "https://b.test/k?versionId=3&X-Amz-Date=2&X-Amz-Signature=b&X-Amz-Credential=you"},
		"S3 old":     {"https://b.test/k?AWSAccessKeyId=a&Signature=b&Expires=1", "https://b.test/k?AWSAccessKeyId=a&Signature=c&Expires=2"},
		"Azure":      {"https://b.test/k?sv=2020&sig=a&se=1&sp=r", "https://b.test/k?sv=2021&sig=b&se=2&sp=r"},
		"CloudFront": {"https://b.test/k?Expires=1&Signature=a&Key-Pair-Id=x", "https://b.test/k?Expires=2&Signature=b&Key-Pair-Id=x"},
	} {
		if id(pair[0]) != id(pair[1]) {
			t.Errorf("%s: a new signature is a new identity", name)
		}
	}
	for _, pair := range [][2]string{
		{"https://b.test/k?versionId=3&X-Amz-Date=1", "https://b.test/k?versionId=4&X-Amz-Date=1"},
		{"https://b.test/k?expires=1", "https://b.test/k?expires=2"},
		{"https://b.test/k?sp=1", "https://b.test/k?sp=2"},
		{"https://b.test/k?a=1&b=2", "https://b.test/k?b=2&a=1"},
		{"http://b.test/k", "https://b.test/k"},
	} {
		if id(pair[0]) == id(pair[1]) {
			t.Errorf("%q and %q have the same identity", pair[0], pair[1])
		}
	}
}

func TestSplitUser(t *testing.T) {
	u, h, err := SplitUser("https://alice:a%40b@example.test/x?y")
	if err != nil || u != "https://example.test/x?y" || h.Get("Authorization") != "Basic YWxpY2U6YUBi" {
		t.Errorf("%q, %v, %v", u, h, err)
	}
	if u, h, err := SplitUser("https://example.test/x?y"); err != nil || u != "https://example.test/x?y" || h != nil {
		t.Errorf("%q, %v, %v", u, h, err)
	}
}

func TestParseHeader(t *testing.T) {
	h := make(http.Header)
	for _, line := range []string{"Authorization: Bearer a:b", "x-thing:1", "X-Thing:  2 "} {
		if err := ParseHeader(h, line); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	}
	if h.Get("Authorization") != "Bearer a:b" || len(h["X-Thing"]) != 2 || h["X-Thing"][1] != "2" {
		t.Errorf("read %v", h)
	}
	for _, line := range []string{"", "secret", ": secret", "a b: secret", "Range: bytes=0-1", "host: secret", "X: sec\nret", "accept-encoding: gzip", "If-Range: x"} {
		if err := ParseHeader(make(http.Header), line); !errors.Is(err, blob.Invalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want invalid", line, err)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"http://a/b?c#tag=x", "https://A:443/#tag=%26&unique=1", "http://[::1]:80/%2F?&&a#%zz", "http://a/?#"} {
		f.Add(s, "t")
	}
	f.Fuzz(func(t *testing.T, text, tag string) {
		n, err := parseName(text)
		if err != nil {
			if blob.KindOf(err) != blob.Invalid {
				t.Errorf("%q: kind %v", text, blob.KindOf(err))
			}
			return
		}
		n.tag = tag
		again, err := parseName(n.String())
		if len(n.String()) > maxURL && err != nil {
			return
		}
		if err != nil || again.String() != n.String() || again.tag != tag || again.identity("v") != n.identity("v") {
			t.Errorf("%q is %v, read again %v: %v", text, n, again, err)
		}
		if n.url.User != nil || n.url.Host == "" {
			t.Errorf("%q is accepted", text)
		}
	})
}
