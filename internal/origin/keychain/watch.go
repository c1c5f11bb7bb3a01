package keychain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"skimmer/internal/blob"
)

// How the API is asked (Kubernetes API concepts, "Efficient detection of
// changes" and "Retrieving large results sets in chunks").
const (
	secretsPath = "/api/v1/secrets"
	secretType  = "kubernetes.io/dockerconfigjson"
	configKey   = ".dockerconfigjson"

	// pageSize secrets of at most about 1.4 MB as JSON fit into maxPage bytes.
	pageSize = 50
	maxPage  = 96 << 20
	maxEvent = 4 << 20

	listTimeout = time.Minute
	// A watch is ended by the server after watchTime and up to a half more, and
	// by us a little later: one that lost its server in silence must end too.
	watchTime  = 4 * time.Minute
	watchGrace = 30 * time.Second
)

// errGone means that the API server does not know what changed since our
// version any more.
var errGone = errors.New("version is gone")

// meta is the metadata of an object or a list.
type meta struct {
	Name              string `json:"name"`
	Namespace         string `json:"namespace"`
	CreationTimestamp string `json:"creationTimestamp"`
	ResourceVersion   string `json:"resourceVersion"`
	Continue          string `json:"continue"`
}

// secretObject is a Secret. Values of data are decoded one by one, so that a
// strange one does no harm to others.
type secretObject struct {
	Metadata meta                       `json:"metadata"`
	Type     string                     `json:"type"`
	Data     map[string]json.RawMessage `json:"data"`
}

// read returns the object's credentials.
func (o *secretObject) read() (secretName, secret, error) {
	name := secretName{o.Metadata.Namespace, o.Metadata.Name}
	var s secret
	// A time that cannot be read is that of the oldest.
	s.created, _ = time.Parse(time.RFC3339, o.Metadata.CreationTimestamp)
	if o.Type != secretType {
		return name, s, nil
	}
	var config []byte
	if json.Unmarshal(o.Data[configKey], &config) != nil {
		return name, s, errDockerConfig
	}
	var err error
	s.entries, err = parseDockerConfig(config)
	return name, s, err
}

// read returns what o holds, without entries and with a line in the log where
// that cannot be read.
func (k *Kubernetes) read(o *secretObject) (secretName, secret) {
	name, s, err := o.read()
	if err != nil {
		k.logger.Warn("image pull secret is not used", "namespace", name.namespace, "secret", name.name, "error", err)
	}
	return name, s
}

// get asks for secrets and returns the answer's body. what says what for, in
// errors.
func (s *session) get(ctx context.Context, what string, query url.Values) (io.ReadCloser, error) {
	query.Set("fieldSelector", "type="+secretType)
	req, err := s.access.request(secretsPath, query)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req.WithContext(ctx))
	if err != nil {
		return nil, blob.Errorf(blob.Unavailable, "%s secrets: %w", what, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	resp.Body.Close()
	return nil, statusError(what, resp.StatusCode)
}

// statusError translates an HTTP status, of an answer or within an event.
func statusError(what string, code int) error {
	switch code {
	case http.StatusGone:
		return fmt.Errorf("%s secrets: %w", what, errGone)
	case http.StatusUnauthorized:
		return blob.Errorf(blob.Unauthorized, "%s secrets: API server refuses token or client certificate", what)
	case http.StatusForbidden:
		return blob.Errorf(blob.Forbidden, "%s secrets: not allowed, get, list and watch of secrets in all namespaces are needed", what)
	}
	return blob.Errorf(blob.Unavailable, "%s secrets: API server answers %d", what, code)
}

// list reads all secrets, page by page, and replaces what is known once they
// are complete.
func (s *session) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	all := make(map[secretName]secret)
	next := ""
	for {
		query := url.Values{"limit": {strconv.Itoa(pageSize)}}
		if next != "" {
			query.Set("continue", next)
		}
		page, err := s.page(ctx, query)
		if err != nil {
			return err
		}
		for i := range page.Items {
			if name, secret := s.keychain.read(&page.Items[i]); len(secret.entries) > 0 {
				all[name] = secret
			}
		}
		if next = page.Metadata.Continue; next == "" {
			if page.Metadata.ResourceVersion == "" {
				return blob.Errorf(blob.Unavailable, "list secrets: answer has no version")
			}
			s.keychain.replace(all)
			s.version = page.Metadata.ResourceVersion
			return nil
		}
	}
}

// secretList is a page of a list.
type secretList struct {
	Metadata meta           `json:"metadata"`
	Items    []secretObject `json:"items"`
}

func (s *session) page(ctx context.Context, query url.Values) (*secretList, error) {
	body, err := s.get(ctx, "list", query)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var page secretList
	if json.NewDecoder(io.LimitReader(body, maxPage)).Decode(&page) != nil {
		return nil, blob.Errorf(blob.Unavailable, "list secrets: answer is cut short or not a list")
	}
	return &page, nil
}

// watch follows changes after s.version until the server ends it, which is no
// error. It returns how many events came.
func (s *session) watch(ctx context.Context) (events int, err error) {
	limit := watchTime + rand.N(watchTime/2)
	ctx, cancel := context.WithTimeout(ctx, limit+watchGrace)
	defer cancel()
	body, err := s.get(ctx, "watch", url.Values{
		"watch": {"1"}, "resourceVersion": {s.version}, "allowWatchBookmarks": {"true"},
		"timeoutSeconds": {strconv.Itoa(int(limit.Seconds()))},
	})
	if err != nil {
		return 0, err
	}
	defer body.Close()
	bounded := &io.LimitedReader{R: body, N: maxEvent}
	decoder := json.NewDecoder(bounded)
	for {
		bounded.N = maxEvent // for each event, beside what is buffered
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) && bounded.N > 0 {
			return events, nil
		}
		if err != nil {
			return events, blob.Errorf(blob.Unavailable, "watch secrets: connection is lost or carries something else")
		}
		if err := s.apply(raw); err != nil {
			s.version = "" // what the event said is only found by listing
			return events, err
		}
		events++
	}
}

// event is a line of a watch.
type event struct {
	kind    string // ADDED, MODIFIED, DELETED, BOOKMARK
	object  secretObject
	version string
}

// parseEvent reads a line of a watch. An event of kind ERROR becomes an error.
func parseEvent(raw []byte) (event, error) {
	var line struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if json.Unmarshal(raw, &line) != nil {
		return event{}, blob.Errorf(blob.Unavailable, "watch secrets: event cannot be read")
	}
	switch line.Type {
	case "ADDED", "MODIFIED", "DELETED", "BOOKMARK":
		e := event{kind: line.Type}
		if json.Unmarshal(line.Object, &e.object) != nil || e.object.Metadata.ResourceVersion == "" {
			return event{}, blob.Errorf(blob.Unavailable, "watch secrets: event cannot be read")
		}
		e.version = e.object.Metadata.ResourceVersion
		return e, nil
	case "ERROR":
		var status struct {
			Code   int    `json:"code"`
			Reason string `json:"reason"`
		}
		if json.Unmarshal(line.Object, &status) != nil {
			return event{}, blob.Errorf(blob.Unavailable, "watch secrets: event cannot be read")
		}
		if status.Reason == "Expired" || status.Reason == "Gone" {
			status.Code = http.StatusGone
		}
		return event{}, statusError("watch", status.Code)
	}
	return event{}, blob.Errorf(blob.Unavailable, "watch secrets: unknown kind of event")
}

// apply makes the change that a line of the watch tells of.
func (s *session) apply(raw []byte) error {
	e, err := parseEvent(raw)
	if err != nil {
		return err
	}
	switch e.kind {
	case "ADDED", "MODIFIED":
		s.keychain.set(s.keychain.read(&e.object))
	case "DELETED":
		s.keychain.set(secretName{e.object.Metadata.Namespace, e.object.Metadata.Name}, secret{})
	}
	s.version = e.version
	return nil
}
