package cri

import (
	"context"
	"net/url"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skimmer/internal/origin"
	"skimmer/internal/origin/keychain"
)

// learn tells the owner the credentials in a PullImageRequest. What is wrong
// with the request is for the backend to say.
func (p *Proxy) learn(ctx context.Context, request []byte) {
	repository, c, reason := pullCredential(request)
	switch {
	case reason != "":
		p.cfg.Logger.DebugContext(ctx, "credentials of a pull are not used", "repository", repository, "reason", reason)
	case c != origin.Credential{}:
		p.cfg.Logger.DebugContext(ctx, "a pull brought credentials", "repository", repository, "credential", c.String())
		p.cfg.Credentials(repository, c)
	}
}

// pullCredential returns what a PullImageRequest says is for the image's
// repository; the zero Credential where it says nothing, or where reason tells
// why it is of no use. No reason holds anything of the credentials.
func pullCredential(raw []byte) (repository string, c origin.Credential, reason string) {
	var request runtimeapi.PullImageRequest
	if proto.Unmarshal(raw, &request) != nil {
		return "", c, "request cannot be decoded"
	}
	auth := request.GetAuth()
	if auth == nil {
		return "", c, ""
	}
	ref, err := origin.ParseReference(request.GetImage().GetImage())
	if err != nil {
		return "", c, "image has no valid name"
	}
	if !fits(auth.GetServerAddress(), ref.Repository) {
		return ref.Repository, c, "they are for another registry"
	}
	if c, ok := credential(auth); ok {
		return ref.Repository, c, ""
	}
	return ref.Repository, origin.Credential{}, "auth is not user:password in base64"
}

// credential picks from an AuthConfig as containerd does, which knows no
// registry token: that comes last. ok is false where auth cannot be decoded.
func credential(auth *runtimeapi.AuthConfig) (c origin.Credential, ok bool) {
	switch {
	case auth.GetUsername() != "":
		return origin.Credential{Username: auth.GetUsername(), Password: auth.GetPassword()}, true
	case auth.GetIdentityToken() != "":
		return origin.Credential{IdentityToken: auth.GetIdentityToken()}, true
	case auth.GetAuth() != "":
		return keychain.DecodeBasic(auth.GetAuth())
	}
	return origin.Credential{RegistryToken: auth.GetRegistryToken()}, true
}

// fits reports whether credentials for the server, which is a host or a URL,
// are for the repository's registry. No server fits all.
func fits(server, repository string) bool {
	if server == "" {
		return true
	}
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	host, _, _ := strings.Cut(repository, "/")
	return strings.EqualFold(u.Host, host) || keychain.IsHub(strings.ToLower(u.Host)) && keychain.IsHub(host)
}
