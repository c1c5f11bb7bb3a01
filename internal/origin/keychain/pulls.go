package keychain

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"sync"

	"skimmer/internal/origin"
)

// Pulls is the origin.Keychain of credentials that arrived with pulls: the
// kubelet sends them with each PullImage and never again, so a node that
// restarts has to have kept them to read what is still missing. They are kept
// encrypted in a file beside its key: that protects copies and backups of the
// file, not against who can read the directory.
//
// A credential is found for exactly the repository it arrived with, and for no
// other of the same registry: a pull secret of one tenant must not open
// another's repositories.
//
// All methods are safe for concurrent use.
type Pulls struct {
	// Constant after OpenPulls.

	vault  *vault
	logger *slog.Logger

	// saving guards the file and is taken before mu; lookups do not wait for
	// the disk.
	saving sync.Mutex

	mu    sync.RWMutex // mu guards known
	known map[string]origin.Credential
}

// savedCredential is origin.Credential with names that stay as they are.
type savedCredential struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
	RegistryToken string `json:"registryToken,omitempty"`
}

// OpenPulls opens the credentials kept in dir, which is made if it is not
// there; one process uses it at a time. Files that are damaged or not ours are
// logged and dropped: their credentials arrive again with the next pulls.
//
// Errors: those of making dir or the key in it.
func OpenPulls(dir string, logger *slog.Logger) (*Pulls, error) {
	v, err := openVault(dir, logger)
	if err != nil {
		return nil, err
	}
	p := &Pulls{vault: v, logger: logger, known: make(map[string]origin.Credential)}
	saved := make(map[string]savedCredential)
	if plain := v.load(); plain != nil {
		if json.Unmarshal(plain, &saved) != nil {
			v.drop("what is in it is not a list of credentials")
			return p, nil
		}
	}
	for repository, c := range saved {
		p.known[repository] = origin.Credential(c)
	}
	return p, nil
}

// Credential returns what the last pull of the repository brought, or the zero
// Credential. It never fails.
func (p *Pulls) Credential(_ context.Context, repository string) (origin.Credential, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.known[canonical(repository)], nil
}

// Put keeps c for the repository in place of what was kept before; the zero
// Credential changes nothing. It is on disk when Put returns; where that
// fails it is logged, and c is used until the process ends.
func (p *Pulls) Put(repository string, c origin.Credential) {
	repository = canonical(repository)
	if (c == origin.Credential{}) {
		return
	}
	p.change(func() bool {
		if p.known[repository] == c {
			return false
		}
		p.known[repository] = c
		return true
	})
}

// Forget drops the repository's credential. The owner calls it when no image
// of the repository misses data any more.
func (p *Pulls) Forget(repository string) {
	repository = canonical(repository)
	p.change(func() bool {
		_, had := p.known[repository]
		delete(p.known, repository)
		return had
	})
}

// Keep drops the credentials of all repositories for which needed is false.
// needed must not call methods of p.
func (p *Pulls) Keep(needed func(repository string) bool) {
	p.change(func() bool {
		before := len(p.known)
		maps.DeleteFunc(p.known, func(repository string, _ origin.Credential) bool { return !needed(repository) })
		return len(p.known) != before
	})
}

// change calls f with known locked and saves if f says that it changed it.
func (p *Pulls) change(f func() bool) {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	changed := f()
	saved := make(map[string]savedCredential, len(p.known))
	for repository, c := range p.known {
		saved[repository] = savedCredential(c)
	}
	p.mu.Unlock()
	if !changed {
		return
	}
	plain, err := json.Marshal(saved)
	if err == nil {
		err = p.vault.save(plain)
	}
	if err != nil {
		p.logger.Error("credentials of pulls are not saved; a restart will lose them", "error", err)
	}
}
