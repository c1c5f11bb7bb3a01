package keychain

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"skimmer/internal/blob"
)

// maxKubeconfig bounds each file that is read to reach the API server.
const maxKubeconfig = 4 << 20

// apiAccess is how to reach the API server and what to show it. It is
// constant; files it names are read when they are needed, for they are
// replaced while we run.
type apiAccess struct {
	server     *url.URL
	proxy      *url.URL // nil: from the environment
	roots      *x509.CertPool
	serverName string
	insecure   bool
	token      string
	tokenFile  string // goes before token while it can be read
	cert       func() (*tls.Certificate, error)
}

// serviceAccountDir is where a pod finds its service account.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// podAccess is the access of a pod with its service account in dir.
func podAccess(getenv func(string) string, dir string) (*apiAccess, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, blob.Errorf(blob.Invalid, "find API server: no kubeconfig is set, and this is not a pod of a cluster")
	}
	a := &apiAccess{
		server:    &url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)},
		tokenFile: filepath.Join(dir, "token"),
	}
	ca, err := readLimited(filepath.Join(dir, "ca.crt"), maxKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority of service account: %w", err)
	}
	if a.roots, err = certPool(ca); err != nil {
		return nil, err
	}
	return a, nil
}

// kubeconfig is what we need of the file; it says more to kubectl.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Clusters       []struct {
		Name    string      `yaml:"name"`
		Cluster kubeCluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Contexts []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
	Users []struct {
		Name string   `yaml:"name"`
		User kubeUser `yaml:"user"`
	} `yaml:"users"`
}

type kubeCluster struct {
	Server        string `yaml:"server"`
	Authority     string `yaml:"certificate-authority"`
	AuthorityData string `yaml:"certificate-authority-data"`
	ServerName    string `yaml:"tls-server-name"`
	Insecure      bool   `yaml:"insecure-skip-tls-verify"`
	Proxy         string `yaml:"proxy-url"`
}

type kubeUser struct {
	Certificate     string `yaml:"client-certificate"`
	CertificateData string `yaml:"client-certificate-data"`
	Key             string `yaml:"client-key"`
	KeyData         string `yaml:"client-key-data"`
	Token           string `yaml:"token"`
	TokenFile       string `yaml:"tokenFile"`
	Username        string `yaml:"username"`
	Impersonate     string `yaml:"as"`
	Exec            any    `yaml:"exec"`
	Provider        any    `yaml:"auth-provider"`
}

// fileAccess is the access a kubeconfig file describes. Paths in it are
// relative to its folder.
func fileAccess(path string) (*apiAccess, error) {
	data, err := readLimited(path, maxKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	a, err := parseKubeconfig(data, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	return a, nil
}

func parseKubeconfig(data []byte, dir string) (*apiAccess, error) {
	var config kubeconfig
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, blob.Errorf(blob.Invalid, "parse: not the YAML of a kubeconfig%s", lineOf(err))
	}
	cluster, user, err := config.current()
	if err != nil {
		return nil, err
	}
	a := &apiAccess{}
	if err := a.setCluster(cluster, dir); err != nil {
		return nil, err
	}
	if err := a.setUser(user, dir); err != nil {
		return nil, err
	}
	return a, a.check()
}

// lineOf says where the YAML is wrong. The parser's own text quotes the lines,
// which may be those of a key.
func lineOf(err error) string {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
		return fmt.Sprintf(" at line %d", at.GetToken().Position.Line)
	}
	return ""
}

// current returns cluster and user of the current context.
func (k *kubeconfig) current() (kubeCluster, kubeUser, error) {
	var none kubeUser
	for _, context := range k.Contexts {
		if context.Name != k.CurrentContext {
			continue
		}
		user := none
		found := context.Context.User == ""
		for _, u := range k.Users {
			if u.Name == context.Context.User {
				user, found = u.User, true
			}
		}
		if !found {
			return kubeCluster{}, none, blob.Errorf(blob.Invalid, "find user %q: there is no such user", context.Context.User)
		}
		for _, c := range k.Clusters {
			if c.Name == context.Context.Cluster {
				return c.Cluster, user, nil
			}
		}
		return kubeCluster{}, none, blob.Errorf(blob.Invalid, "find cluster %q: there is no such cluster", context.Context.Cluster)
	}
	return kubeCluster{}, none, blob.Errorf(blob.Invalid, "find current context %q: there is no such context", k.CurrentContext)
}

func (a *apiAccess) setCluster(c kubeCluster, dir string) error {
	var err error
	if a.server, err = url.Parse(c.Server); err != nil || a.server.Host == "" || a.server.User != nil ||
		a.server.Scheme != "https" && a.server.Scheme != "http" {
		return blob.Errorf(blob.Invalid, "parse server of cluster: not an http or https URL")
	}
	if c.Proxy != "" {
		if a.proxy, err = url.Parse(c.Proxy); err != nil || a.proxy.Host == "" {
			return blob.Errorf(blob.Invalid, "parse proxy-url of cluster: not a URL")
		}
	}
	a.serverName, a.insecure = c.ServerName, c.Insecure
	ca, err := inlineOrFile(c.AuthorityData, c.Authority, dir)
	if err != nil {
		return fmt.Errorf("read certificate authority: %w", err)
	}
	if ca != nil {
		a.roots, err = certPool(ca)
	}
	return err
}

func (a *apiAccess) setUser(u kubeUser, dir string) error {
	switch {
	case u.Exec != nil:
		return blob.Errorf(blob.Invalid, "use exec plugin of kubeconfig: they are not supported, use a token, a token file or a client certificate")
	case u.Provider != nil:
		return blob.Errorf(blob.Invalid, "use auth-provider of kubeconfig: they are not supported, use a token, a token file or a client certificate")
	case u.Username != "" && u.Token == "" && u.TokenFile == "":
		return blob.Errorf(blob.Invalid, "use username of kubeconfig: passwords are not supported, use a token, a token file or a client certificate")
	case u.Impersonate != "":
		return blob.Errorf(blob.Invalid, "use \"as\" of kubeconfig: impersonation is not supported")
	}
	a.token = u.Token
	if u.TokenFile != "" {
		a.tokenFile = within(dir, u.TokenFile)
	}
	if u.Certificate == "" && u.CertificateData == "" {
		return nil
	}
	// Read at each handshake: the kubelet replaces its certificate.
	a.cert = func() (*tls.Certificate, error) {
		cert, err := inlineOrFile(u.CertificateData, u.Certificate, dir)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		key, err := inlineOrFile(u.KeyData, u.Key, dir)
		if err != nil {
			return nil, fmt.Errorf("read client key: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "read client certificate: certificate and key are not a pair of PEM files")
		}
		return &pair, nil
	}
	_, err := a.cert()
	return err
}

// check refuses to send a token where everybody can read it.
func (a *apiAccess) check() error {
	if a.server.Scheme == "https" || a.token == "" && a.tokenFile == "" {
		return nil
	}
	ip, err := netip.ParseAddr(a.server.Hostname())
	if a.server.Hostname() == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return blob.Errorf(blob.Invalid, "use token of kubeconfig: server is http, and a token goes only over https")
}

// inlineOrFile returns what a kubeconfig has in base64 or else in a file; nil
// where it has neither.
func inlineOrFile(inline, file, dir string) ([]byte, error) {
	switch {
	case inline != "":
		data, err := base64.StdEncoding.DecodeString(inline)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "decode inline data: not base64")
		}
		return data, nil
	case file != "":
		return readLimited(within(dir, file), maxKubeconfig)
	}
	return nil, nil
}

func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func certPool(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, blob.Errorf(blob.Invalid, "read certificate authority: no certificate in it")
	}
	return pool, nil
}

// bearer returns the token to show now, if any.
func (a *apiAccess) bearer() (string, error) {
	if a.tokenFile == "" {
		return a.token, nil
	}
	data, err := readLimited(a.tokenFile, maxKubeconfig)
	token := string(bytes.TrimSpace(data))
	switch {
	case err == nil && token != "":
		return token, nil
	case a.token != "":
		return a.token, nil
	case err != nil:
		return "", fmt.Errorf("read token: %w", err)
	}
	return "", fmt.Errorf("read token: %s is empty", a.tokenFile)
}

// request makes a request for a path of the API.
func (a *apiAccess) request(path string, query url.Values) (*http.Request, error) {
	u := *a.server
	u.Path = strings.TrimSuffix(u.Path, "/") + path
	u.RawQuery = query.Encode()
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	token, err := a.bearer()
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Accept", "application/json")
	return req, nil
}

// client returns a client for the API server. It follows no redirects: the
// API has none, and what follows one would take the token along.
func (a *apiAccess) client() *http.Client {
	proxy := http.ProxyFromEnvironment
	if a.proxy != nil {
		proxy = http.ProxyURL(a.proxy)
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: a.roots, ServerName: a.serverName,
		InsecureSkipVerify: a.insecure, // only where the kubeconfig asks for it
	}
	if a.cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.cert() }
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 proxy,
			TLSClientConfig:       config,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			ForceAttemptHTTP2:     true,
			// A watch is silent for long; pings find out that its server is gone.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
