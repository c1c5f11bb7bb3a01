package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/store"
)

// A file that the store keeps need not pass through the socket. A request for
// /v1/file that says "Upgrade: skimmer-file" may be answered with 101, the headers
// of an answer that brings the file (its status in headerStatus), and with them,
// as SCM_RIGHTS, a descriptor of the file in the store, for reading alone. Messages
// follow, a line each:
//
//	have OFFSET    the file is there up to this byte of it
//	data LENGTH    so many bytes of it, which the store could not keep, come next
//	end JSON       an ending; nothing comes after it
//
// Where that cannot be, the answer is the usual one. With keep=true in the query
// only these lines are sent, no descriptor and no bytes, and what cannot be kept
// is a failure.
const (
	upgradeFile = "skimmer-file"

	headerStatus = "X-Skimmer-Status"
)

// ending is the last that is said of a file.
type ending struct {
	Local  int64 `json:"local"`
	Peers  int64 `json:"peers"`
	Origin int64 `json:"origin"`
	// Verified is whether the store has all of the blob and its digest was right.
	Verified bool `json:"verified,omitempty"`
	// Kept is how long after the request all of it was in the store, in
	// nanoseconds; 0 if it is not.
	Kept time.Duration `json:"kept,omitempty"`
	// Kind and Message say why it is not all.
	Kind    string `json:"kind,omitempty"`
	Message string `json:"message,omitempty"`
}

// err returns what e says went wrong, or nil.
func (e ending) err() error {
	if e.Message == "" {
		return nil
	}
	for _, k := range blob.Kinds() {
		if k.Error() == e.Kind {
			return blob.Errorf(k, "%s", e.Message)
		}
	}
	return errors.New(e.Message)
}

// handing is a download whose bytes stay where they are.
type handing struct {
	*download
	b    blob.Blob
	x    store.Exposer // b
	r    blob.Range
	file *os.File // what is handed out; nil where the file is only to be kept
	conn *net.UnixConn
}

// handing returns how d is answered with a descriptor, or nil if it cannot be.
func (d *download) handing(req *http.Request, b blob.Blob, r blob.Range) *handing {
	x, ok := b.(store.Exposer)
	if !ok || d.meta.Unique || req.Method != http.MethodGet || req.Header.Get("Upgrade") != upgradeFile {
		return nil
	}
	h := &handing{download: d, b: b, x: x, r: r}
	if d.keep {
		return h
	}
	if r.Len == 0 || d.p.store.Stats().Full {
		return nil
	}
	var err error
	if h.file, err = x.Expose(); err != nil {
		d.p.log.Debug("cannot hand a file out: sending it", "blob", d.ref.Digest, "error", err)
		return nil
	}
	return h
}

// serve takes the connection and answers; the header of w is that of an answer that
// brings the file.
func (h *handing) serve(ctx context.Context, w http.ResponseWriter) {
	d := h.download
	defer h.file.Close() // the receiver has its own
	d.p.handing.Add(1)   // the server does not wait for what it gave away
	defer d.p.handing.Done()
	head := w.Header().Clone()
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		d.p.answer(w, nil, fmt.Errorf("hand out %v: %w", d.ref, err))
		return
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close() // nobody can be given a descriptor there
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Who goes away is noticed, and who does not listen keeps nothing from ending.
	defer context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now().Add(time.Second)) })()
	var watch sync.WaitGroup
	defer watch.Wait()
	defer conn.Close()
	watch.Go(func() {
		_, _ = io.Copy(io.Discard, conn) // it says nothing more
		cancel()
	})
	h.conn = conn
	head.Set("Connection", "Upgrade")
	head.Set("Upgrade", upgradeFile)
	if err := h.begin(head); err != nil {
		d.log(0, blob.Errorf(blob.Canceled, "send: %w", err))
		return
	}
	off, err := h.run(ctx)
	d.log(off-h.r.Off, err)
	h.end(off, err)
}

// begin sends the head of the answer, and the descriptor.
func (h *handing) begin(head http.Header) error {
	var text bytes.Buffer
	text.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := head.Write(&text); err != nil {
		return err
	}
	text.WriteString("\r\n")
	var rights []byte
	if h.file != nil {
		rights = unix.UnixRights(int(h.file.Fd()))
	}
	n, _, err := h.conn.WriteMsgUnix(text.Bytes(), rights, nil)
	if err == nil && n < text.Len() {
		err = io.ErrShortWrite
	}
	return err
}

// run says how the file gets on, and returns up to where it came.
func (h *handing) run(ctx context.Context) (int64, error) {
	f, err := h.x.Follow(ctx, h.r)
	if err != nil {
		return h.r.Off, err
	}
	off := h.r.Off
	for {
		next, err := f.Next()
		if err == io.EOF {
			h.kept = time.Since(h.begun)
			return off, f.Close()
		}
		if err == nil {
			off = next
			_, err = fmt.Fprintf(h.conn, "have %d\n", off)
			if err != nil {
				err = blob.Errorf(blob.Canceled, "send: %w", err)
			}
		}
		if err != nil {
			_ = f.Close() // it failed
			if blob.KindOf(err) == blob.Full && !h.keep {
				return h.send(ctx, off)
			}
			return off, err
		}
	}
}

// send sends what the store cannot keep, from an offset on.
func (h *handing) send(ctx context.Context, off int64) (int64, error) {
	rc, err := h.b.ReadRange(ctx, blob.Range{Off: off, Len: h.r.End() - off})
	if err != nil {
		return off, err
	}
	defer rc.Close()
	buf := make([]byte, 256<<10)
	for off < h.r.End() {
		n, err := rc.Read(buf)
		if n > 0 {
			line := fmt.Appendf(nil, "data %d\n", n)
			bufs := net.Buffers{line, buf[:n]}
			if _, err := bufs.WriteTo(h.conn); err != nil {
				return off, blob.Errorf(blob.Canceled, "send: %w", err)
			}
			off += int64(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return off, err
		}
	}
	return off, nil
}

// end says that it is over, and how.
func (h *handing) end(off int64, err error) {
	_ = h.b.Close() // who hears of the end may remove it
	t := h.traffic
	e := ending{Local: t.Local.Load(), Peers: t.Peers.Load(), Origin: t.Origin.Load(), Kept: h.kept}
	if err != nil {
		e.Kind, e.Message = blob.KindOf(err).Error(), err.Error()
	} else if h.kept > 0 && h.r.Len == h.ref.Size && off == h.r.End() && blob.Verifiable(h.ref.Digest) {
		held, err := h.p.store.Stat(h.ref.Digest)
		e.Verified = err == nil && held.Complete
	}
	text, err := json.Marshal(e)
	if err != nil {
		return // it is made of numbers and strings
	}
	_, _ = fmt.Fprintf(h.conn, "end %s\n", text) // who went away does not mind
}

// message is a line of an answer with a descriptor.
type message struct {
	kind string // "have", "data" or "end"
	n    int64  // of the first two
	end  ending // of the last
}

// maxMessage limits a line, in bytes.
const maxMessage = 64 << 10

// readMessage reads the next line. Errors: io.EOF where there is none.
func readMessage(r *bufio.Reader) (m message, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		if err == io.EOF && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	kind, value, ok := bytes.Cut(line[:len(line)-1], []byte(" "))
	m.kind = string(kind)
	switch {
	case ok && m.kind == "end":
		err = json.Unmarshal(value, &m.end)
	case ok && (m.kind == "have" || m.kind == "data"):
		m.n, ok = digits(string(value))
	default:
		ok = false
	}
	if err != nil || !ok {
		return m, fmt.Errorf("decode message %.40q: it is none of a peer of this version", line)
	}
	return m, nil
}
