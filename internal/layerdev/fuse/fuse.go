// Package fuse is the part of the FUSE kernel protocol that a fixed set of
// read-only files needs: it takes requests apart and puts replies together,
// and does no I/O of its own.
//
// The protocol is Linux's include/uapi/linux/fuse.h, version 7.31 and later,
// in the byte order of the machine. What the kernel sends is parsed like any
// foreign bytes: a request that is cut short is an error, never a panic.
package fuse

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The protocol version that is answered to INIT: 7.40 is the first that knows
// HasResend, 7.31 the oldest that has all else.
const (
	Major    = 7
	Minor    = 40
	MinMinor = 31
)

// Root is the node of the file system's root directory.
const Root = 1

// MinBuffer is the least size of the buffer requests are read into, in bytes,
// for a file system that takes no writes longer than MaxWrite.
const (
	MinBuffer = 8192
	MaxWrite  = 4096
)

// ResendBit is set in the Unique of a request the kernel sends again.
const ResendBit = 1 << 63

// Op is what a request asks for.
type Op uint32

// The operations a read-only file system meets.
const (
	Lookup      Op = 1
	Forget      Op = 2
	GetAttr     Op = 3
	SetAttr     Op = 4
	SymLink     Op = 6
	MkNod       Op = 8
	MkDir       Op = 9
	Unlink      Op = 10
	RmDir       Op = 11
	Rename      Op = 12
	Link        Op = 13
	Open        Op = 14
	Read        Op = 15
	Write       Op = 16
	StatFS      Op = 17
	Release     Op = 18
	SetXattr    Op = 21
	RemoveXattr Op = 24
	Flush       Op = 25
	Init        Op = 26
	OpenDir     Op = 27
	ReadDir     Op = 28
	ReleaseDir  Op = 29
	Access      Op = 34
	Create      Op = 35
	Interrupt   Op = 36
	Destroy     Op = 38
	BatchForget Op = 42
	Fallocate   Op = 43
	Rename2     Op = 45
	TmpFile     Op = 51
)

// Changes reports whether the operation would change a file system.
func (op Op) Changes() bool {
	switch op {
	case SetAttr, SymLink, MkNod, MkDir, Unlink, RmDir, Rename, Link, Write,
		SetXattr, RemoveXattr, Create, Fallocate, Rename2, TmpFile:
		return true
	}
	return false
}

// Flags of INIT, in both directions. The upper half travels in a field of its
// own.
const (
	AsyncRead       uint64 = 1 << 0
	BigWrites       uint64 = 1 << 5
	AsyncDirect     uint64 = 1 << 15
	ParallelDirOps  uint64 = 1 << 18
	AbortError      uint64 = 1 << 21
	MaxPages        uint64 = 1 << 22
	NoOpenDir       uint64 = 1 << 24
	ExplicitInval   uint64 = 1 << 25
	InitExt         uint64 = 1 << 30
	HasResend       uint64 = 1 << 39
	initExtPosition        = 32
)

// Flags of an OPEN reply.
const (
	KeepCache uint32 = 1 << 1
	NoFlush   uint32 = 1 << 5
)

// NotifyResend is the notification that makes the kernel send again what a
// vanished server had read and not answered.
const NotifyResend = 7

var native = binary.NativeEndian

const headerSize = 40

// Request is one request of the kernel. Its body is only valid until the
// buffer it was parsed from is used again.
type Request struct {
	Op     Op
	Unique uint64
	Node   uint64
	// Pid is the task that waits for the reply, or in whose name the kernel
	// works, as numbered where the mount was made; 0 if it has no number there.
	Pid  uint32
	body []byte
}

// Parse takes a request apart. p is all that one read of the device returned.
func Parse(p []byte) (Request, error) {
	if len(p) < headerSize {
		return Request{}, fmt.Errorf("parse request: %d bytes are less than a header", len(p))
	}
	if n := native.Uint32(p); int64(n) != int64(len(p)) {
		return Request{}, fmt.Errorf("parse request: %d bytes came, its header says %d", len(p), n)
	}
	return Request{
		Op:     Op(native.Uint32(p[4:])),
		Unique: native.Uint64(p[8:]),
		Node:   native.Uint64(p[16:]),
		Pid:    native.Uint32(p[32:]),
		body:   p[headerSize:],
	}, nil
}

func (r Request) need(n int) error {
	if len(r.body) < n {
		return fmt.Errorf("parse request %d: body of %d bytes, need %d", r.Op, len(r.body), n)
	}
	return nil
}

// Name returns the name a LOOKUP asks for.
func (r Request) Name() (string, error) {
	name, _, ok := bytes.Cut(r.body, []byte{0})
	if !ok {
		return "", fmt.Errorf("parse request %d: name has no end", r.Op)
	}
	return string(name), nil
}

// Span returns the offset and length, in bytes, that a READ or READDIR asks
// for. The offset of a READDIR is where the entry before said the next is.
func (r Request) Span() (off int64, size int, err error) {
	if err := r.need(40); err != nil {
		return 0, 0, err
	}
	off, n := int64(native.Uint64(r.body[8:])), native.Uint32(r.body[16:])
	if off < 0 || n > 1<<30 {
		return 0, 0, fmt.Errorf("parse request %d: span %d+%d is out of range", r.Op, off, n)
	}
	return off, int(n), nil
}

// Target returns the Unique of the request that an INTERRUPT is about.
func (r Request) Target() (uint64, error) {
	if err := r.need(8); err != nil {
		return 0, err
	}
	return native.Uint64(r.body), nil
}

// Hello is what the kernel offers in INIT, and what the server answers.
type Hello struct {
	Major, Minor uint32
	// MaxReadahead limits readahead of buffered files, in bytes.
	MaxReadahead uint32
	Flags        uint64
	// MaxBackground and Congestion limit requests nobody waits for directly,
	// which is where readahead goes. Replies only.
	MaxBackground, Congestion uint16
	// MaxPages limits one request, in pages. Replies only.
	MaxPages uint16
}

// Hello returns the body of an INIT.
func (r Request) Hello() (Hello, error) {
	if err := r.need(16); err != nil {
		return Hello{}, err
	}
	h := Hello{
		Major:        native.Uint32(r.body),
		Minor:        native.Uint32(r.body[4:]),
		MaxReadahead: native.Uint32(r.body[8:]),
		Flags:        uint64(native.Uint32(r.body[12:])),
	}
	if h.Flags&InitExt != 0 && len(r.body) >= 20 {
		h.Flags |= uint64(native.Uint32(r.body[16:])) << initExtPosition
	}
	return h, nil
}

// Forever is how long, in seconds, what cannot change may be cached.
const Forever = 1 << 40

// Attr is what stat shows of a node.
type Attr struct {
	Node  uint64
	Size  int64 // in bytes
	Mode  uint32
	Links uint32
	// Valid is how long the kernel may believe it, in seconds.
	Valid uint64
}

func appendAttr(p []byte, a Attr) []byte {
	p = put64(p, a.Node, uint64(a.Size), uint64(a.Size+511)/512, 0, 0, 0) // ino size blocks, three times
	p = put32(p, 0, 0, 0, a.Mode, a.Links, 0, 0, 0)                       // their nanoseconds, mode nlink uid gid rdev
	return put32(p, 4096, 0)                                              // blksize flags
}

// AppendEntry appends the reply to a LOOKUP.
func AppendEntry(p []byte, a Attr) []byte {
	p = put64(p, a.Node, 0, a.Valid, a.Valid)
	p = put32(p, 0, 0)
	return appendAttr(p, a)
}

// AppendAttr appends the reply to a GETATTR.
func AppendAttr(p []byte, a Attr) []byte {
	p = put64(p, a.Valid)
	p = put32(p, 0, 0)
	return appendAttr(p, a)
}

// AppendOpen appends the reply to an OPEN or OPENDIR, with handle 0.
func AppendOpen(p []byte, flags uint32) []byte {
	p = put64(p, 0)
	return put32(p, flags, 0)
}

// AppendHello appends the reply to an INIT.
func AppendHello(p []byte, h Hello) []byte {
	p = put32(p, h.Major, h.Minor, h.MaxReadahead, uint32(h.Flags))
	p = put16(p, h.MaxBackground, h.Congestion)
	p = put32(p, MaxWrite, 1)
	p = put16(p, h.MaxPages, 0)
	p = put32(p, uint32(h.Flags>>initExtPosition))
	return append(p, make([]byte, 7*4)...)
}

// AppendStatFS appends the reply to a STATFS about a file system of that many
// files and that many blocks of 4096 bytes, all in use.
func AppendStatFS(p []byte, blocks, files uint64) []byte {
	p = put64(p, blocks, 0, 0, files, 0)
	p = put32(p, 4096, 255, 4096, 0)
	return append(p, make([]byte, 6*4)...)
}

// direntFixed is the size of a directory entry without its name.
const direntFixed = 24

// Dirent is an entry of a READDIR reply.
type Dirent struct {
	Node uint64
	Next uint64 // the offset a READDIR continues at
	Type uint32 // a DT_ constant
	Name string
}

// AppendDirent appends an entry of a READDIR reply of at most limit bytes and
// reports whether it fitted.
func AppendDirent(p []byte, limit int, d Dirent) ([]byte, bool) {
	size := (direntFixed + len(d.Name) + 7) &^ 7
	if len(p)+size > limit {
		return p, false
	}
	end := len(p) + size
	p = put64(p, d.Node, d.Next)
	p = put32(p, uint32(len(d.Name)), d.Type)
	p = append(p, d.Name...)
	return append(p, make([]byte, end-len(p))...), true
}

// ReplySize is the size of the header every reply begins with.
const ReplySize = 16

// PutReply fills in the header of the reply p: errno is 0 or the positive
// number of what went wrong.
func PutReply(p []byte, unique uint64, errno int32) {
	native.PutUint32(p, uint32(len(p)))
	native.PutUint32(p[4:], uint32(-errno))
	native.PutUint64(p[8:], unique)
}

// Notification returns a notification without a body.
func Notification(code int32) []byte {
	p := make([]byte, ReplySize)
	PutReply(p, 0, -code)
	return p
}

func put16(p []byte, vs ...uint16) []byte {
	for _, v := range vs {
		p = native.AppendUint16(p, v)
	}
	return p
}

func put32(p []byte, vs ...uint32) []byte {
	for _, v := range vs {
		p = native.AppendUint32(p, v)
	}
	return p
}

func put64(p []byte, vs ...uint64) []byte {
	for _, v := range vs {
		p = native.AppendUint64(p, v)
	}
	return p
}
