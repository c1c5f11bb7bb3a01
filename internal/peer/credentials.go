package peer

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"skimmer/internal/origin"
	"skimmer/internal/origin/keychain"
)

// pullGrace is how long a credential is kept after it arrived though nothing
// of its repository is here yet: the pull that brought it has only begun.
const pullGrace = 15 * time.Minute

// pulls are the credentials the kubelet sent, kept as long as something of
// their repositories is still missing.
type pulls struct {
	*keychain.Pulls

	// mu guards arrived: when the last credential of a repository came.
	mu      sync.Mutex
	arrived map[string]time.Time
}

// openCredentials opens all the node's keychains.
func (p *Peer) openCredentials() error {
	kept, err := keychain.OpenPulls(filepath.Join(p.cfg.DataDir, "credentials"), p.log)
	if err != nil {
		return fmt.Errorf("open credentials: %w", err)
	}
	p.pulls = &pulls{Pulls: kept, arrived: make(map[string]time.Time)}
	chain := []origin.Keychain{p.pulls}
	if p.cfg.Kubernetes != nil {
		cfg := *p.cfg.Kubernetes
		cfg.Logger = p.log
		if p.kubernetes, err = keychain.NewKubernetes(cfg); err != nil {
			return fmt.Errorf("open credentials: %w", err)
		}
		chain = append(chain, p.kubernetes)
	}
	p.cfg.Origin.Keychain = keychain.NewChain(p.log, append(chain, origin.DockerKeychain())...)
	return nil
}

// put keeps what came with a pull.
func (p *pulls) put(repository string, c origin.Credential) {
	p.mu.Lock()
	p.arrived[repository] = time.Now()
	p.mu.Unlock()
	p.Put(repository, c)
}

// keep drops the credentials of all repositories but those from which
// something is still missing, and those that came a moment ago.
func (p *pulls) keep(missing map[string]bool) {
	p.mu.Lock()
	fresh := make(map[string]bool)
	for repository, at := range p.arrived {
		if time.Since(at) < pullGrace {
			fresh[repository] = true
		} else {
			delete(p.arrived, repository)
		}
	}
	p.mu.Unlock()
	p.Keep(func(repository string) bool { return missing[repository] || fresh[repository] })
}
