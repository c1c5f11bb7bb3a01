package web

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// maxURL is how long a URL may be, in bytes; servers refuse longer ones.
const maxURL = 8 << 10

// name is what a blob's URL says. As text, tag and unique are its fragment,
// which no server is ever sent:
//
//	https://host/path?query#tag=…&unique=…
type name struct {
	url    *url.URL // normalised, without user and fragment
	tag    string
	unique string   // not empty where the identity is that of one download
	ignore []string // parameters of the query that do not tell files apart
}

// normalise reads a URL that a user gave, and writes its scheme, host and port
// in one of the ways they can be written. Its fragment is dropped.
func normalise(raw string) (*url.URL, error) {
	// Errors do not quote the URL, which may have secrets anywhere.
	if len(raw) > maxURL {
		return nil, blob.Errorf(blob.Invalid, "read URL: it has more than %d bytes", maxURL)
	}
	raw, _, _ = strings.Cut(raw, "#")
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, blob.Errorf(blob.Invalid, "read URL: it is malformed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, blob.Errorf(blob.Invalid, "read URL: its scheme is %.20q, not http or https", u.Scheme)
	case u.User != nil:
		return nil, blob.Errorf(blob.Invalid, "read URL: it has a user name: send credentials in a header")
	case u.Hostname() == "":
		return nil, blob.Errorf(blob.Invalid, "read URL: it has no host")
	}
	u.Host = strings.ToLower(u.Host)
	if host, port, err := net.SplitHostPort(u.Host); err == nil &&
		(port == "" || u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443") {
		u.Host = host
		if strings.Contains(host, ":") {
			u.Host = "[" + host + "]"
		}
	}
	if u.Path == "" {
		u.Path = "/"
	}
	u.ForceQuery = false
	return u, nil
}

// SplitUser takes user and password out of a URL, as people write them for
// curl, and returns them as the header to send instead; nil if there are none.
// Errors: Invalid.
func SplitUser(raw string) (string, http.Header, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", nil, blob.Errorf(blob.Invalid, "read URL: it is malformed")
	}
	if u.User == nil {
		return raw, nil, nil
	}
	req := &http.Request{Header: make(http.Header)}
	password, _ := u.User.Password()
	req.SetBasicAuth(u.User.Username(), password)
	u.User = nil
	return u.String(), req.Header, nil
}

// parseName reads what String writes.
func parseName(text string) (name, error) {
	text, fragment, _ := strings.Cut(text, "#")
	u, err := normalise(text)
	if err != nil {
		return name{}, err
	}
	q, err := url.ParseQuery(fragment)
	if err != nil {
		return name{}, blob.Errorf(blob.Invalid, "read URL: its fragment is not one of ours")
	}
	return name{url: u, tag: q.Get("tag"), unique: q.Get("unique"), ignore: q["ignore"]}, nil
}

// String writes the name as the URL of a blob.Ref.
func (n name) String() string {
	q := make(url.Values)
	if n.tag != "" {
		q.Set("tag", n.tag)
	}
	if n.unique != "" {
		q.Set("unique", n.unique)
	}
	if len(n.ignore) > 0 {
		q["ignore"] = n.ignore
	}
	text := n.url.String()
	if len(q) > 0 {
		text += "#" + q.Encode()
	}
	return text
}

// place returns the name as it may be shown.
func (n name) place() string { return blob.Ref{URL: n.url.String()}.Place() }

// identity returns the digest of the blob that has the given version.
func (n name) identity(version string) digest.Digest {
	h := sha256.New()
	for _, field := range []string{"skimmer url 1", unsigned(n.url, n.ignore), n.tag, n.unique, version} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(field)))
		h.Write(length[:])
		h.Write([]byte(field))
	}
	return digest.NewDigestFromBytes(blob.AlgorithmURL, h.Sum(nil))
}

// unsigned returns u without the parameters of its query that only sign it, and
// without those to be ignored.
func unsigned(u *url.URL, ignore []string) string {
	clean := *u
	parts := strings.Split(u.RawQuery, "&")
	clean.RawQuery = strings.Join(slices.DeleteFunc(parts, func(part string) bool {
		key, _, _ := strings.Cut(part, "=")
		if name, err := url.QueryUnescape(key); err == nil && slices.Contains(ignore, name) {
			return true
		}
		return signs(strings.ToLower(key), u.Query())
	}), "&")
	return clean.String()
}

// signs reports whether a parameter, in lower case, is part of a signature:
// AWS Signature Version 4 and those of Google, Alibaba and Huawei made after
// it, older ones of S3 and CloudFront, and Azure's shared access signatures.
func signs(key string, q url.Values) bool {
	for _, vendor := range []string{"x-amz-", "x-goog-", "x-oss-", "x-obs-", "x-cos-"} {
		rest, ok := strings.CutPrefix(key, vendor)
		if ok && slices.Contains([]string{"algorithm", "credential", "date", "expires", "signature", "signature-version", "signedheaders", "security-token"}, rest) {
			return true
		}
	}
	switch key {
	case "signature", "expires", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "key-pair-id", "policy":
		return q.Has("Signature") && (q.Has("AWSAccessKeyId") || q.Has("GoogleAccessId") || q.Has("OSSAccessKeyId") || q.Has("Key-Pair-Id"))
	case "sv", "ss", "srt", "sp", "se", "st", "spr", "sig", "sip", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv":
		return q.Has("sig") && q.Has("sv")
	}
	return false
}

// version returns what a server calls a version of a file of size bytes; empty
// if it names none. A weak ETag and a time may be the same for two versions, so
// more counts with them.
func version(etag, modified string, size int64) string {
	strong := etag != "" && !strings.HasPrefix(etag, "W/")
	switch {
	case strong:
		return "etag " + etag
	case size == blob.SizeUnknown:
		return ""
	case etag != "":
		return "weak " + digest.FromString(etag).Encoded() + digest.FromString(modified).Encoded() + " " + formatSize(size)
	case modified != "":
		return "modified " + modified + " " + formatSize(size)
	}
	return ""
}
