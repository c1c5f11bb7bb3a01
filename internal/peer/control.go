package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"skimmer/internal/blob"
)

// The control API is HTTP with JSON bodies on a unix socket that only root
// may open:
//
//	POST   /v1/mounts            mountRequest  -> Mounted
//	DELETE /v1/mounts?target=…&lazily=true
//	GET    /v1/status                          -> Status
//	GET    /v1/file?url=…&tag=…&digest=…       -> the file, or a Range of it; see serveFile and upgradeFile
//	GET    /v1/blobs                           -> []BlobStatus
//	GET    /v1/blobs/{digest}                  -> BlobStatus
//	DELETE /v1/blobs/{digest}
//	GET    /v1/profiles                        -> []profile.Info
//	POST   /v1/profiles          profile.Profile
//	GET    /v1/profiles/{digest}               -> profile.Profile
//	DELETE /v1/profiles/{digest}?cluster=
//	GET    /v1/traces?name=…                   -> []trace.Start
//	GET    /v1/peers                           -> SwarmPeers
//	GET    /v1/swarm/blobs                     -> SwarmBlobs
//	GET    /v1/swarm/blobs/{digest}            -> SwarmBlobs
//
// A failure has a status from statusOf and an errorBody.

// maxControlBody limits a request or answer, in bytes.
const maxControlBody = 16 << 20

type mountRequest struct {
	Image  string `json:"image"`
	Target string `json:"target"`
}

type errorBody struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// statusOf is the HTTP status a failure of each kind is answered with.
var statusOf = map[blob.Kind]int{
	blob.Internal:     http.StatusInternalServerError,
	blob.Invalid:      http.StatusBadRequest,
	blob.NotFound:     http.StatusNotFound,
	blob.Unauthorized: http.StatusUnauthorized,
	blob.Forbidden:    http.StatusForbidden,
	blob.Corrupt:      http.StatusBadGateway,
	blob.Unavailable:  http.StatusServiceUnavailable,
	blob.Busy:         http.StatusTooManyRequests,
	blob.Timeout:      http.StatusGatewayTimeout,
	blob.Full:         http.StatusInsufficientStorage,
	blob.Canceled:     499, // the caller went away; nobody reads this
}

func (p *Peer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/mounts", func(w http.ResponseWriter, r *http.Request) {
		var req mountRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBody)).Decode(&req); err != nil {
			p.answer(w, nil, blob.Errorf(blob.Invalid, "decode mount request: %w", err))
			return
		}
		m, err := p.Mount(r.Context(), req.Image, req.Target)
		p.answer(w, m, err)
	})
	mux.HandleFunc("DELETE /v1/mounts", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		err := p.Unmount(r.Context(), q.Get("target"), q.Get("lazily") == "true")
		p.answer(w, struct{}{}, err)
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := p.Status(r.Context())
		p.answer(w, s, err)
	})
	p.handleBlobs(mux)
	p.handleSwarm(mux)
	p.handleStarts(mux)
	p.handleProfiles(mux)
	return mux
}

// answer writes v, or err where there is one.
func (p *Peer) answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		p.answerWith(w, statusOf[blob.KindOf(err)], err)
		return
	}
	p.answerJSON(w, http.StatusOK, v)
}

// answerWith answers with err, and with a status of its own.
func (p *Peer) answerWith(w http.ResponseWriter, status int, err error) {
	p.answerJSON(w, status, errorBody{blob.KindOf(err).Error(), err.Error()})
}

func (p *Peer) answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		p.log.Debug("cannot answer on the control socket", "error", err)
	}
}

// Client talks to a running peer. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client for the peer whose control socket is at path. It
// does not connect.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// ErrNotRunning is what a Client's methods fail with when no peer answers.
var ErrNotRunning = errors.New("no peer is running")

// Mount is Peer.Mount on the running peer.
func (c *Client) Mount(ctx context.Context, name, target string) (Mounted, error) {
	var m Mounted
	err := c.call(ctx, http.MethodPost, "/v1/mounts", mountRequest{name, target}, &m)
	return m, err
}

// Unmount is Peer.Unmount on the running peer.
func (c *Client) Unmount(ctx context.Context, target string, lazily bool) error {
	q := url.Values{"target": {target}}
	if lazily {
		q.Set("lazily", "true")
	}
	return c.call(ctx, http.MethodDelete, "/v1/mounts?"+q.Encode(), nil, nil)
}

// Status is Peer.Status on the running peer.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://peer"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w on %s: start one with: skimmer up", ErrNotRunning, c.socket)
	}
	if err != nil {
		return fmt.Errorf("ask the peer on %s: %w", c.socket, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxControlBody))
	if err != nil {
		return fmt.Errorf("read the answer of the peer on %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		return remoteError(resp.StatusCode, data)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decode the answer of the peer on %s: %w", c.socket, err)
	}
	return nil
}

// remoteError makes a peer's failure one of ours, of the same kind.
func remoteError(status int, data []byte) error {
	var body errorBody
	if err := json.Unmarshal(data, &body); err != nil || body.Message == "" {
		return fmt.Errorf("the peer answered with status %d", status)
	}
	for _, k := range blob.Kinds() {
		if k.Error() == body.Kind {
			return blob.Errorf(k, "%s", body.Message)
		}
	}
	return errors.New(body.Message)
}
