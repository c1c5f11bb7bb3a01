package keychain

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// apiServer is a small Kubernetes API server that has nothing but secrets.
type apiServer struct {
	*httptest.Server

	mu       sync.Mutex // mu guards what follows
	version  int
	objects  map[string]string // by namespace/name
	events   []serverEvent
	oldest   int           // changes up to it are forgotten
	wake     chan struct{} // closed when something changes
	cut      chan struct{} // closed to cut off the watches there are
	token    string        // what to ask for; empty: anybody may come
	refuse   int           // status of all answers, unless 0
	maxPage  int           // fewer than asked for
	expire   int           // how many continue tokens to call expired
	lateGone bool          // 410 as an event and not as the answer's status
	lists    int
	watches  int
}

type serverEvent struct {
	version int
	line    string
	once    bool // it is sent to one watch only
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{version: 100, oldest: 100, objects: make(map[string]string), wake: make(chan struct{}), cut: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(s)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(func() {
		s.cutWatches()
		s.Close()
	})
	return s
}

// do changes the server's state and tells the watches.
func (s *apiServer) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.wake)
	s.wake = make(chan struct{})
}

func (s *apiServer) cutWatches() {
	s.do(func() {
		close(s.cut)
		s.cut = make(chan struct{})
	})
}

// put makes or changes a secret; data is the object's data as JSON.
func (s *apiServer) put(namespace, name, created, data string) {
	s.do(func() {
		s.version++
		kind, key := "ADDED", namespace+"/"+name
		if _, there := s.objects[key]; there {
			kind = "MODIFIED"
		}
		s.objects[key] = fmt.Sprintf(`{"metadata":{"namespace":%q,"name":%q,"creationTimestamp":%q,"resourceVersion":"%d"},"type":%q,"data":%s}`,
			namespace, name, created, s.version, secretType, data)
		s.event(kind, s.objects[key])
	})
}

// putConfig is put of a docker configuration that is for the patterns.
func (s *apiServer) putConfig(namespace, name, created string, patterns ...string) {
	data, _ := json.Marshal(map[string][]byte{configKey: dockerConfig(patterns...)}) // never fails: strings
	s.put(namespace, name, created, string(data))
}

func (s *apiServer) remove(namespace, name string) {
	s.do(func() {
		s.version++
		key := namespace + "/" + name
		object := strings.Replace(s.objects[key], `"resourceVersion":"`, fmt.Sprintf(`"resourceVersion":"%d","was":"`, s.version), 1)
		delete(s.objects, key)
		s.event("DELETED", object)
	})
}

// raw sends a line to the watch there is, or to the next one.
func (s *apiServer) raw(line string) {
	s.do(func() {
		s.version++
		s.events = append(s.events, serverEvent{s.version, line, true})
	})
}

// event is called with mu held.
func (s *apiServer) event(kind, object string) {
	s.events = append(s.events, serverEvent{s.version, fmt.Sprintf(`{"type":%q,"object":%s}`, kind, object), false})
}

// compact forgets all changes so far.
func (s *apiServer) compact() {
	s.do(func() {
		s.events = nil
		s.oldest = s.version
	})
}

func (s *apiServer) counts() (lists, watches int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists, s.watches
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.mu.Lock()
	token, refuse := s.token, s.refuse
	s.mu.Unlock()
	switch {
	case r.URL.Path != secretsPath || q.Get("fieldSelector") != "type="+secretType:
		http.Error(w, "not here", http.StatusNotFound)
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		http.Error(w, "who is there", http.StatusUnauthorized)
	case refuse != 0:
		http.Error(w, secretWord, refuse)
	case q.Get("watch") != "":
		s.serveWatch(w, r)
	default:
		s.serveList(w, r)
	}
}

func (s *apiServer) serveList(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || limit <= 0 {
		http.Error(w, "no limit", http.StatusBadRequest)
		return
	}
	if s.maxPage > 0 {
		limit = min(limit, s.maxPage)
	}
	after := r.URL.Query().Get("continue")
	if after != "" && s.expire > 0 {
		s.expire--
		http.Error(w, "expired", http.StatusGone)
		return
	}
	var names []string
	for name := range s.objects {
		if name > after {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	next := ""
	if len(names) > limit {
		names = names[:limit]
		next = names[limit-1]
	}
	var items []string
	for _, name := range names {
		items = append(items, s.objects[name])
	}
	fmt.Fprintf(w, `{"kind":"SecretList","metadata":{"resourceVersion":"%d","continue":%q},"items":[%s]}`, s.version, next, strings.Join(items, ","))
}

func (s *apiServer) serveWatch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	at, err := strconv.Atoi(q.Get("resourceVersion"))
	if seconds, terr := strconv.Atoi(q.Get("timeoutSeconds")); err != nil || terr != nil || seconds < 60 || q.Get("allowWatchBookmarks") != "true" {
		http.Error(w, "strange watch", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.watches++
	gone, late, cut := at < s.oldest, s.lateGone, s.cut
	s.mu.Unlock()
	switch {
	case gone && late:
		fmt.Fprintln(w, `{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410,"message":"`+secretWord+`"}}`)
		return
	case gone:
		http.Error(w, "too old", http.StatusGone)
		return
	}
	w.WriteHeader(http.StatusOK)
	for {
		s.mu.Lock()
		wake := s.wake
		var lines []string
		for _, e := range s.events {
			if e.version > at {
				lines, at = append(lines, e.line), e.version
			}
		}
		s.events = slices.DeleteFunc(s.events, func(e serverEvent) bool { return e.once })
		s.mu.Unlock()
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
		w.(http.Flusher).Flush()
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		case <-cut:
			panic(http.ErrAbortHandler) // in the middle of the answer
		}
	}
}

// newTLSServer starts h with a TLS configuration.
func newTLSServer(t *testing.T, h http.Handler, config *tls.Config) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = config
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}
