package transfer

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// handle answers one request.
func (s *Server) handle(w http.ResponseWriter, req *http.Request) {
	s.count.requests.Add(1)
	rc := http.NewResponseController(w)
	// Of the last request on this connection there may be one that is over.
	_ = rc.SetWriteDeadline(time.Now().Add(s.cfg.SendTimeout))
	if !s.gate.TryRLock() {
		s.busy(w, http.StatusServiceUnavailable, busyClosing, nil)
		return
	}
	defer s.gate.RUnlock()
	remote := remoteOf(req.RemoteAddr)
	within := s.requests.take(remote)
	defer s.requests.give(remote)

	d, known := parsePath(req.URL.Path)
	switch {
	case req.ContentLength != 0:
		// Reading it away must not take longer than reading a header.
		_ = rc.SetReadDeadline(time.Now().Add(s.cfg.HeaderTimeout))
		w.Header().Set("Connection", "close")
		s.refuse(w, http.StatusBadRequest, "a request has no body")
	case !req.ProtoAtLeast(1, 1):
		s.refuse(w, http.StatusBadRequest, "HTTP/1.1 is required") // for trailers
	case !known || req.URL.RawPath != "" || req.URL.RawQuery != "":
		s.refuse(w, http.StatusNotFound, "no such path")
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		s.refuse(w, http.StatusMethodNotAllowed, "only GET and HEAD")
	case !within:
		s.busy(w, http.StatusTooManyRequests, busyRemote, s.others(d, blob.Range{}))
	case req.Method == http.MethodHead:
		s.head(w, req, d)
	default:
		s.get(w, req, d)
	}
}

// refuse answers a request that no peer of ours makes.
func (s *Server) refuse(w http.ResponseWriter, status int, reason string) {
	s.count.refused.Add(1)
	http.Error(w, reason, status)
}

// busy answers that others should be asked.
func (s *Server) busy(w http.ResponseWriter, status int, why string, others []string) {
	s.count.busy.Add(1)
	h := w.Header()
	h.Set("Retry-After", "0")
	h.Set(headerBusy, why)
	if len(others) > 0 {
		h.Set(headerPeers, formatPeers(others))
	}
	http.Error(w, "busy: "+why, status)
}

// others returns who else may have r of d.
func (s *Server) others(d digest.Digest, r blob.Range) []string {
	if s.cfg.Others == nil {
		return nil
	}
	return s.cfg.Others(d, r)
}

// fail answers with what err amounts to.
func (s *Server) fail(w http.ResponseWriter, d digest.Digest, err error) {
	s.failed(d, err)
	http.Error(w, reasonOf(err), statusOf[blob.KindOf(err)])
}

// failed counts a request that ends with err, unless it was the client who
// ended it.
func (s *Server) failed(d digest.Digest, err error) {
	kind := blob.KindOf(err)
	if kind == blob.Canceled {
		return
	}
	s.count.failed.Add(1)
	if kind != blob.NotFound {
		s.log.Debug("upload failed", "digest", d, "error", err)
	}
}

// head says how large d is and what is held of it.
func (s *Server) head(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	v, err := s.shelf.get(req.Context(), d)
	if err != nil {
		s.fail(w, d, err)
		return
	}
	defer s.shelf.put(v)
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(v.Size(), 10))
	if holder, ok := v.Blob.(Holder); ok {
		h.Set(headerHeld, formatHeld(holder.Held()))
	}
	w.WriteHeader(http.StatusOK)
}

// get sends the range that is asked for, if there is a slot for it.
func (s *Server) get(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	values := req.Header["Range"]
	if len(values) != 1 {
		s.refuse(w, http.StatusBadRequest, "one range is required")
		return
	}
	r, ok := parseRange(values[0])
	if !ok {
		s.refuse(w, http.StatusBadRequest, "the range is not bytes=first-last")
		return
	}
	if r.Len > s.cfg.MaxRange {
		s.refuse(w, http.StatusRequestedRangeNotSatisfiable, "the range has more than "+strconv.FormatInt(s.cfg.MaxRange, 10)+" bytes")
		return
	}
	if why := s.admit(); why != "" {
		s.busy(w, http.StatusServiceUnavailable, why, s.others(d, r))
		return
	}
	defer s.leave()
	s.upload(originContext(req), w, d, r)
}

// admit takes an upload slot, to be given back with leave, or says why there
// is none.
func (s *Server) admit() (why string) {
	switch {
	case s.closing.Load():
		return busyClosing
	case s.cfg.Rate.backlog() > s.cfg.MaxWait:
		return busyRate
	}
	select {
	case s.slots <- struct{}{}:
		s.count.uploads.Add(1)
		return ""
	default:
		return busySlots
	}
}

func (s *Server) leave() {
	<-s.slots
	s.count.uploads.Add(-1)
}

// upload sends r of d.
func (s *Server) upload(ctx context.Context, w http.ResponseWriter, d digest.Digest, r blob.Range) {
	v, err := s.shelf.get(ctx, d)
	if err != nil {
		s.fail(w, d, err)
		return
	}
	defer s.shelf.put(v)
	if r.Check(v.Size()) != nil {
		w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(v.Size(), 10))
		s.refuse(w, http.StatusRequestedRangeNotSatisfiable, "the range is outside the blob")
		return
	}
	u := &upload{s: s, ctx: ctx, w: w, rc: http.NewResponseController(w), v: v, r: r}
	if err := u.send(); err != nil && u.begun {
		s.failed(d, err)
		// net/http closes a connection whose answer is shorter than announced.
	} else if err != nil {
		s.fail(w, d, err)
	}
}
