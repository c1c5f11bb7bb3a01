package origin

import (
	"context"
	"log/slog"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"skimmer/internal/blob"
)

// Credential is what a client shows a registry. The zero Credential is
// anonymous. It prints as the user's name at most, in fmt and in logs.
type Credential struct {
	// Username and Password go to the registry (basic authentication) or to
	// its token service.
	Username, Password string
	// IdentityToken is an OAuth2 refresh token for the token service.
	IdentityToken string
	// RegistryToken is a bearer token to be sent to the registry as it is.
	RegistryToken string
}

// String names the credential's kind and user, never its secret.
func (c Credential) String() string {
	switch {
	case c.RegistryToken != "":
		return "registry token"
	case c.IdentityToken != "":
		return "identity token"
	case c.Username != "" || c.Password != "":
		return "user " + c.Username
	}
	return "anonymous"
}

// GoString is String; it keeps %#v from printing the secret.
func (c Credential) GoString() string { return c.String() }

// LogValue is String for slog.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Keychain finds credentials. Implementations are safe for concurrent use.
type Keychain interface {
	// Credential returns what to show for a repository, given as in
	// blob.Ref.Repository; the zero Credential where there is nothing. It is
	// asked each time a registry demands authentication or a token is renewed,
	// so what it returns may change over time.
	Credential(ctx context.Context, repository string) (Credential, error)
}

// DockerKeychain returns the Keychain of docker's configuration:
// ~/.docker/config.json or that in $DOCKER_CONFIG, else podman's auth.json,
// with credential helpers and stores. The files are read at every call; a
// helper runs until it ends, whatever becomes of the context.
func DockerKeychain() Keychain { return dockerKeychain{} }

type dockerKeychain struct{}

func (dockerKeychain) Credential(ctx context.Context, repository string) (Credential, error) {
	resource, err := name.NewRepository(repository)
	if err != nil {
		return Credential{}, blob.Errorf(blob.Invalid, "parse repository %q: %w", repository, err)
	}
	authenticator, err := authn.Resolve(ctx, authn.DefaultKeychain, resource)
	if err != nil {
		return Credential{}, err
	}
	c, err := authn.Authorization(ctx, authenticator)
	if err != nil {
		return Credential{}, err
	}
	return Credential{c.Username, c.Password, c.IdentityToken, c.RegistryToken}, nil
}

type credentialKey struct{}

// WithCredential returns a context whose Open, Resolve and Manifest calls use
// c in place of the keychain, the zero Credential meaning anonymously. A blob
// opened with it reads with c for as long as it is open, whatever the context
// of the read says.
func WithCredential(ctx context.Context, c Credential) context.Context {
	return context.WithValue(ctx, credentialKey{}, c)
}

// credentialOf returns the credential the context brings, if it does.
func credentialOf(ctx context.Context) (Credential, bool) {
	c, ok := ctx.Value(credentialKey{}).(Credential)
	return c, ok
}

// given is the Authorization header of somebody who is asked for by others.
// It prints as nothing that is secret.
type given string

// String keeps the header out of logs.
func (given) String() string { return "a client's authorization" }

// GoString is String, for %#v.
func (g given) GoString() string { return g.String() }

type givenKey struct{}

// WithAuthorization returns a context whose calls act for somebody else, who
// sent header as the Authorization of a request for this registry. It goes
// there with every request, as it is, and to nobody else; what the registry
// makes of it is final. Empty, the registry is asked without any: not even an
// anonymous token is fetched. It goes before WithCredential, and lasts as that.
func WithAuthorization(ctx context.Context, header string) context.Context {
	return context.WithValue(ctx, givenKey{}, given(header))
}
