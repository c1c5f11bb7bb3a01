package keychain

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
)

const kubeconfigHead = `
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
`

func TestKubeconfigRefused(t *testing.T) {
	const cluster = "clusters: [{name: k, cluster: {server: \"https://api.example\"}}]\n"
	user := func(s string) string { return kubeconfigHead + cluster + "users: [{name: u, user: " + s + "}]\n" }
	for _, c := range []struct{ config, want string }{
		{user("{exec: {command: aws, args: [hunter2]}}"), "exec plugin"},
		{user("{auth-provider: {name: gcp}}"), "auth-provider"},
		{user("{username: a, password: hunter2}"), "passwords"},
		{user("{as: admin, token: hunter2}"), "impersonation"},
		{user("{client-certificate-data: hunter2!, client-key-data: hunter2!}"), "base64"},
		{user("{client-certificate-data: aHVudGVyMg==, client-key-data: aHVudGVyMg==}"), "not a pair"},
		{user("{client-certificate: none.pem}"), "none.pem"},
		{kubeconfigHead + cluster, `user "u"`},
		{kubeconfigHead + "users: [{name: u}]", `cluster "k"`},
		{"current-context: hm", `context "hm"`},
		{"", "context"},
		{kubeconfigHead + "users: [{name: u}]\nclusters: [{name: k, cluster: {server: \"api.example\"}}]", "server"},
		{kubeconfigHead + "users: [{name: u, user: {token: hunter2}}]\nclusters: [{name: k, cluster: {server: \"http://api.example\"}}]", "https"},
		{kubeconfigHead + "users: [{name: u}]\nclusters: [{name: k, cluster: {server: \"https://a\", certificate-authority-data: aHVudGVyMg==}}]", "no certificate"},
		{"users:\n- name: u\n  user: {token: hunter2\nclusters: [}", "YAML"},
		{"users: hunter2", "YAML"},
	} {
		a, err := parseKubeconfig([]byte(c.config), t.TempDir())
		if err == nil {
			t.Errorf("accepted as %v: %s", a.server, c.config)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secretWord) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want one with %q, of one line, without secrets", err, c.want)
		}
	}
	path := writeFile(t, filepath.Join(t.TempDir(), "config"), user("{exec: {command: aws}}"))
	if _, err := NewKubernetes(KubernetesConfig{Kubeconfig: path}); !errors.Is(err, blob.Invalid) || !strings.Contains(err.Error(), path) {
		t.Errorf("new with an exec plugin: %v", err)
	}
}

func TestKubeconfigLoopbackMayBePlain(t *testing.T) {
	for _, server := range []string{"http://127.0.0.1:8001", "http://localhost:8001", "http://[::1]:1/prefix/"} {
		a, err := parseKubeconfig([]byte(kubeconfigHead+"users: [{name: u, user: {token: t}}]\nclusters: [{name: k, cluster: {server: \""+server+"\"}}]"), "")
		if err != nil {
			t.Errorf("%s: %v", server, err)
			continue
		}
		req, err := a.request("/api", nil)
		if err != nil || req.URL.String() != strings.TrimSuffix(server, "/")+"/api" || req.Header.Get("Authorization") != "Bearer t" {
			t.Errorf("%s: request %v, %v", server, req, err)
		}
	}
}

// certificate returns a self-signed client certificate and its key as PEM.
func certificate(t *testing.T) (cert, key string, parsed *x509.Certificate) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system:node:a"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), parsed
}

// TestClientCertificate shows the kubelet's certificate, whose file is
// replaced while we run.
func TestClientCertificate(t *testing.T) {
	cert, key, parsed := certificate(t)
	clients := x509.NewCertPool()
	clients.AddCert(parsed)
	s := &apiServer{version: 1, objects: make(map[string]string), wake: make(chan struct{}), cut: make(chan struct{})}
	s.Server = newTLSServer(t, s, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})
	s.putConfig("a", "x", "", "r.example")

	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "ca.pem"), string(s.authority()))
	both := writeFile(t, filepath.Join(dir, "client.pem"), cert+key)
	config := kubeconfigHead + "users: [{name: u, user: {client-certificate: client.pem, client-key: " + both + "}}]\n" +
		"clusters: [{name: k, cluster: {server: \"" + s.URL + "\", certificate-authority: ca.pem}}]\n"
	path := writeFile(t, filepath.Join(dir, "config"), config)
	r := run(t, path)
	r.becomes("r.example/a", "r.example")

	a, err := fileAccess(path)
	if err != nil {
		t.Fatal(err)
	}
	client := a.client()
	defer client.CloseIdleConnections()
	otherCert, otherKey, _ := certificate(t)
	writeFile(t, both, otherCert+otherKey)
	req, err := a.request(secretsPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := client.Do(req.WithContext(t.Context())); err == nil {
		resp.Body.Close()
		t.Error("the certificate was not read again: the server accepts one it does not know")
	}
	writeFile(t, both, cert+key)
	resp, err := client.Do(req.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", resp.StatusCode)
	}
}
