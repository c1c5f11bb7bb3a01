// Package keychain finds the credentials a node shows registries beyond those
// in docker's configuration: what the kubelet sent with its pulls, kept
// encrypted over restarts, and the image pull secrets of a cluster.
//
// Nothing here writes a secret into a log or an error. That is why failures to
// parse say what could not be parsed and never quote the parser, whose message
// may hold a part of the input.
package keychain

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"

	"skimmer/internal/origin"
)

// Chain is an origin.Keychain that asks others in order; make it with
// NewChain. It is safe for concurrent use.
type Chain struct {
	logger    *slog.Logger
	keychains []origin.Keychain
}

// NewChain returns the Chain over keychains, the first one asked first.
func NewChain(logger *slog.Logger, keychains ...origin.Keychain) Chain {
	return Chain{logger, keychains}
}

// Credential returns the first credential that is not anonymous. A keychain
// that fails is logged and the next one asked; its error is returned only
// where none of them has anything, for the answer may then be wrong.
func (c Chain) Credential(ctx context.Context, repository string) (origin.Credential, error) {
	var failures []error
	for _, k := range c.keychains {
		cred, err := k.Credential(ctx, repository)
		switch {
		case err != nil:
			c.logger.WarnContext(ctx, "a keychain failed", "repository", repository, "error", err)
			failures = append(failures, err)
		case cred != origin.Credential{}:
			return cred, nil
		}
	}
	return origin.Credential{}, errors.Join(failures...)
}

// DecodeBasic reads the "auth" of docker's configuration and of CRI: user and
// password, a colon between them, in base64 with or without padding. ok is
// false where it is not that.
func DecodeBasic(auth string) (c origin.Credential, ok bool) {
	auth = strings.TrimRight(strings.TrimSpace(auth), "=")
	plain, err := base64.RawStdEncoding.DecodeString(auth)
	if err != nil {
		return origin.Credential{}, false
	}
	user, password, ok := strings.Cut(string(plain), ":")
	if !ok {
		return origin.Credential{}, false
	}
	// Some clients pad what they encode with zero bytes.
	return origin.Credential{Username: user, Password: strings.Trim(password, "\x00")}, true
}

// canonical returns a repository as blob.Ref.Repository has it, so that what
// was put under one spelling is found under another.
func canonical(repository string) string {
	if r, err := origin.ParseReference(repository); err == nil {
		return r.Repository
	}
	return repository
}
