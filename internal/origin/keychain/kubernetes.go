package keychain

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"skimmer/internal/origin"
)

// KubernetesConfig says where a cluster's secrets are.
type KubernetesConfig struct {
	// Kubeconfig is the file that says where the API server is and what to
	// show it; empty is the service account of the pod this runs in.
	Kubeconfig string
	// Logger is told about failures, and about secrets that cannot be read, by
	// name. Required.
	Logger *slog.Logger
}

// Kubernetes is an origin.Keychain of a cluster's image pull secrets: all of
// type kubernetes.io/dockerconfigjson, in every namespace. The node does not
// know for which pod a byte is read, so every image of a registry may use
// every secret for it. The service account needs get, list and watch on
// secrets.
//
// All methods are safe for concurrent use.
type Kubernetes struct {
	// Constant after NewKubernetes.

	logger             *slog.Logger
	connect            func() (*apiAccess, error)
	minPause, maxPause time.Duration
	changed            func() // called after each change of secrets; for tests

	// tried is closed by Run when it has listed the secrets once, or failed to.
	tried chan struct{}

	mu      sync.Mutex // mu guards secrets
	secrets map[secretName]secret
}

type secretName struct{ namespace, name string }

// secret is what one Secret holds.
type secret struct {
	created time.Time
	entries []entry
}

// NewKubernetes returns a keychain that knows nothing before Run. A kubeconfig
// that is not there yet is waited for by Run: the kubelet writes its own after
// it has joined.
//
// Errors: Invalid for a kubeconfig that cannot be used; those of reading it.
func NewKubernetes(cfg KubernetesConfig) (*Kubernetes, error) {
	connect := func() (*apiAccess, error) { return podAccess(os.Getenv, serviceAccountDir) }
	if cfg.Kubeconfig != "" {
		connect = func() (*apiAccess, error) { return fileAccess(cfg.Kubeconfig) }
	}
	if _, err := connect(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &Kubernetes{
		logger: cfg.Logger, connect: connect,
		minPause: time.Second, maxPause: time.Minute,
		changed: func() {},
		tried:   make(chan struct{}), secrets: make(map[secretName]secret),
	}, nil
}

// firstList is how long a credential is waited for while the secrets are being
// listed for the first time.
const firstList = 5 * time.Second

// Credential returns the credential of the secret whose key says most about
// the repository: a host written out before a glob, then the longest path,
// then the youngest secret. Just after the start it waits for the secrets to
// be listed, at most 5 s. It answers the zero Credential, and no error, while
// the cluster cannot be asked: images that need no secret must not need the
// cluster.
//
// Errors: those of ctx.
func (k *Kubernetes) Credential(ctx context.Context, repository string) (origin.Credential, error) {
	timer := time.NewTimer(firstList)
	defer timer.Stop()
	select {
	case <-k.tried:
	case <-timer.C:
		k.logger.DebugContext(ctx, "secrets of the cluster are not listed yet", "repository", repository)
	case <-ctx.Done():
		return origin.Credential{}, context.Cause(ctx)
	}
	return k.find(canonical(repository)), nil
}

func (k *Kubernetes) find(repository string) origin.Credential {
	type candidate struct {
		entry
		created time.Time
		name    secretName
	}
	better := func(a, b candidate) int {
		return cmp.Or(preferred(a.entry, b.entry), b.created.Compare(a.created),
			cmp.Compare(a.name.namespace, b.name.namespace), cmp.Compare(a.name.name, b.name.name),
			cmp.Compare(a.pattern, b.pattern))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var found []candidate
	for name, s := range k.secrets {
		for _, e := range s.entries {
			if e.matches(repository) {
				found = append(found, candidate{e, s.created, name})
			}
		}
	}
	if len(found) == 0 {
		return origin.Credential{}
	}
	return slices.MinFunc(found, better).credential
}

// Run lists the secrets and follows their changes until ctx ends, and then
// returns nil. It is called once. While the API server cannot be reached what
// is known stays known; tries are further and further apart, up to a minute.
func (k *Kubernetes) Run(ctx context.Context) error {
	tried := sync.OnceFunc(func() { close(k.tried) })
	defer tried()
	s := session{keychain: k}
	defer s.close()
	pause, failing := k.minPause, false
	for {
		progress, err := s.step(ctx)
		tried()
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err != nil && !failing && !errors.Is(err, errGone):
			failing = true
			k.logger.Warn("secrets of the cluster cannot be followed; it is tried again", "error", err)
		case err != nil:
			k.logger.Debug("secrets of the cluster cannot be followed; it is tried again", "error", err)
		case failing:
			failing = false
			k.logger.Info("secrets of the cluster are followed again")
		}
		if progress {
			pause = k.minPause
		}
		if err == nil && progress {
			continue
		}
		// Nodes that lost the same server must not come back all at once.
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, k.maxPause)
	}
}

// session is the conversation of Run with the API server.
type session struct {
	keychain *Kubernetes
	access   *apiAccess
	client   *http.Client
	version  string // what the next watch begins after; empty: list first
}

// step lists the secrets and, once they are listed, watches them until the
// watch ends. progress says that the next step need not wait.
func (s *session) step(ctx context.Context) (progress bool, err error) {
	if s.client == nil {
		if s.access, err = s.keychain.connect(); err != nil {
			return false, err
		}
		s.client = s.access.client()
	}
	if s.version == "" {
		if err := s.list(ctx); err != nil {
			s.close()
			return false, err
		}
		return true, nil
	}
	begun := time.Now()
	events, err := s.watch(ctx)
	switch {
	case errors.Is(err, errGone):
		s.version = ""
	case err != nil:
		s.close()
	}
	// A server that ends each watch at once is asked less and less often.
	return events > 0 || time.Since(begun) > 10*time.Second, err
}

// close drops the connections. The next step reads the kubeconfig again, which
// may have been replaced.
func (s *session) close() {
	if s.client != nil {
		s.client.CloseIdleConnections()
		s.client = nil
	}
}

// replace sets all secrets.
func (k *Kubernetes) replace(secrets map[secretName]secret) {
	k.mu.Lock()
	k.secrets = maps.Clone(secrets)
	k.mu.Unlock()
	k.logger.Debug("secrets of the cluster are listed", "secrets", len(secrets))
	k.changed()
}

// set keeps one secret; without entries it is dropped.
func (k *Kubernetes) set(name secretName, s secret) {
	k.mu.Lock()
	if len(s.entries) > 0 {
		k.secrets[name] = s
	} else {
		delete(k.secrets, name)
	}
	k.mu.Unlock()
	k.changed()
}
