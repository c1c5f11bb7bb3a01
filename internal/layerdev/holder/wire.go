package holder

import (
	"bytes"

	"skimmer/internal/blob"
)

// Both packets begin with the magic and the version of the protocol. A
// request goes on with one byte of operation and the name, a reply with one
// byte of status and text for people. The descriptor of a put and of what get
// answers travels beside the packet (SCM_RIGHTS).
const (
	magic     = "SKH"
	version   = 1
	head      = len(magic) + 2
	maxName   = 64
	maxPacket = 512
)

// op is what a request asks for.
type op byte

const (
	opPing op = 1 + iota
	opPut
	opGet
	opDrop
	opStop
)

// status is how a request went.
type status byte

const (
	statusDone status = iota
	statusNone        // there is no descriptor of that name
	statusRefused
	statusVersion // the holder speaks another version
)

type request struct {
	op   op
	name string
}

func (r request) bytes() []byte {
	return append(append([]byte(magic), version, byte(r.op)), r.name...)
}

// parseRequest takes a request apart; anything odd is an Invalid error.
func parseRequest(p []byte) (request, error) {
	code, text, err := parse(p)
	if err != nil {
		return request{}, err
	}
	r := request{op(code), string(text)}
	switch r.op {
	case opPing, opStop:
		if r.name != "" {
			return request{}, blob.Errorf(blob.Invalid, "parse request %d: it takes no name", code)
		}
	case opPut, opGet, opDrop:
		if err := checkName(r.name); err != nil {
			return request{}, err
		}
	default:
		return request{}, blob.Errorf(blob.Invalid, "parse request: unknown operation %d", code)
	}
	return r, nil
}

// checkName allows names that need no quoting anywhere.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return blob.Errorf(blob.Invalid, "check descriptor name %q: must have 1 to %d bytes", name, maxName)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return blob.Errorf(blob.Invalid, "check descriptor name %q: only letters, digits, '.', '-' and '_' are allowed", name)
		}
	}
	return nil
}

type reply struct {
	status status
	text   string
}

func (r reply) bytes() []byte {
	return append(append([]byte(magic), version, byte(r.status)), r.text[:min(len(r.text), maxPacket-head)]...)
}

// parseReply takes a reply apart.
func parseReply(p []byte) (reply, error) {
	code, text, err := parse(p)
	return reply{status(code), string(text)}, err
}

// errVersion is the Unavailable error about a peer of another version.
func errVersion(v byte) error {
	return blob.Errorf(blob.Unavailable, "parse packet: peer speaks version %d of the protocol, this is version %d", v, version)
}

func parse(p []byte) (code byte, text []byte, err error) {
	rest, ok := bytes.CutPrefix(p, []byte(magic))
	if !ok || len(rest) < 2 || len(p) > maxPacket {
		return 0, nil, blob.Errorf(blob.Invalid, "parse packet: %d bytes that are not of this protocol", len(p))
	}
	if rest[0] != version {
		return 0, nil, errVersion(rest[0])
	}
	return rest[1], rest[2:], nil
}
