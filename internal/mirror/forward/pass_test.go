package forward

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"testing"

	"skimmer/internal/blob"
)

func TestStatusOfEveryKind(t *testing.T) {
	for _, k := range blob.Kinds() {
		if statuses[k] < 400 {
			t.Errorf("%v has status %d", k, statuses[k])
		}
	}
	if len(statuses) != len(blob.Kinds()) {
		t.Errorf("%d statuses for %d kinds", len(statuses), len(blob.Kinds()))
	}
}

// echo answers with the request as it arrived.
func echo(w http.ResponseWriter, req *http.Request) {
	dump, err := httputil.DumpRequest(req, true)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("X-Answer", "yes")
	w.Header().Set("Connection", "X-Hop")
	w.Header().Set("X-Hop", "1")
	w.Header().Set("Proxy-Authenticate", "Basic")
	_, _ = w.Write(dump)
}

func TestPassesRequestsOn(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(echo))
	defer up.Close()
	w := newWorld(t, Config{})
	conn, r := w.raw("PROPFIND " + up.URL + "/a%2Fb/../c?x=1;2&&y=%zz HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n" +
		"Proxy-Connection: keep-alive\r\nProxy-Foo: 1\r\nProxy: evil\r\nX-Dragonfly-Tag: t\r\nX-Dragonfly-Anything: t\r\nX-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\n" +
		"Via: 1.0 before\r\nAuthorization: Bearer token\r\nContent-Length: 4\r\n\r\nbody")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	got := string(body)
	for _, part := range []string{
		"PROPFIND /a%2Fb/../c?x=1;2&&y=%zz HTTP/1.1\r\n", "Host: " + strings.TrimPrefix(up.URL, "http://") + "\r\n", "X-Forwarded-For: 9.9.9.9\r\n",
		"Forwarded: for=9.9.9.9\r\n", "Via: 1.0 before\r\nVia: 1.1 skimmer-", "Authorization: Bearer token\r\n", "\r\n\r\nbody",
	} {
		contains(t, "request", got, part)
	}
	for _, part := range []string{"Proxy", "X-Mine", "Dragonfly", "User-Agent", "Accept-Encoding", "elsewhere"} {
		if strings.Contains(got, part) {
			t.Errorf("request has %s: %q", part, got)
		}
	}
	for name, want := range map[string]string{"X-Answer": "yes", "X-Hop": "", "Proxy-Authenticate": "", "Proxy-Status": ""} {
		if value := resp.Header.Get(name); value != want {
			t.Errorf("answer has %s: %q, want %q", name, value, want)
		}
	}
	contains(t, "Via of the answer", resp.Header.Get("Via"), "1.1 skimmer-")
}

func TestUserInURL(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(echo))
	defer up.Close()
	w := newWorld(t, Config{})
	_, r := w.raw("GET " + strings.Replace(up.URL, "http://", "http://u:p@", 1) + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, body); err != nil {
		t.Fatal(err)
	}
	contains(t, "request", string(body), "Authorization: Basic dTpw\r\n")
}

// TestBodiesStream has a server that answers while the request arrives.
func TestBodiesStream(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		control := http.NewResponseController(w)
		if err := control.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
		lines := bufio.NewScanner(req.Body)
		for lines.Scan() {
			_, _ = fmt.Fprintf(w, "%s!\n", lines.Text())
			_ = control.Flush()
		}
	}))
	defer up.Close()
	w := newWorld(t, Config{})
	body, write := io.Pipe()
	req := w.request(http.MethodPost, up.URL, body)
	type result struct {
		resp *http.Response
		err  error
	}
	first := make(chan result, 1)
	go func() {
		resp, err := w.client(nil).Do(req)
		first <- result{resp, err}
	}()
	_, _ = io.WriteString(write, "one\n")
	got := <-first
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer func() { _ = got.resp.Body.Close() }()
	lines := bufio.NewReader(got.resp.Body)
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			_, _ = io.WriteString(write, word+"\n")
		}
		if line, err := lines.ReadString('\n'); line != word+"!\n" || err != nil {
			t.Fatalf("got %q, %v, want %s!", line, err, word)
		}
	}
	_ = write.Close()
	if rest, err := io.ReadAll(lines); len(rest) != 0 || err != nil {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestServersAnswersStay(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/redirect":
			http.Redirect(w, req, "http://169.254.169.254/", http.StatusFound)
		case "/denied":
			w.Header().Set("WWW-Authenticate", "Bearer realm=x")
			http.Error(w, "no", http.StatusUnauthorized)
		case "/proxy":
			w.Header().Set("Proxy-Authenticate", "Basic")
			w.WriteHeader(http.StatusProxyAuthRequired)
		case "/short":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "short")
		case "/chunked":
			_, _ = io.WriteString(w, "short")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	defer up.Close()
	w := newWorld(t, Config{})
	if resp, _ := w.get(up.URL + "/redirect"); resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "http://169.254.169.254/" {
		t.Errorf("redirect: %v", resp)
	}
	if resp, body := w.get(up.URL + "/denied"); resp.StatusCode != http.StatusUnauthorized || body != "no\n" || resp.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("denied: %v %q", resp, body)
	}
	if resp, _ := w.get(up.URL + "/proxy"); resp.StatusCode != http.StatusBadGateway || resp.Header.Get("Proxy-Authenticate") != "" {
		t.Errorf("a server that claims to be a proxy: %v", resp)
	}
	for _, path := range []string{"/short", "/chunked"} {
		resp, err := w.client(nil).Get(up.URL + path)
		if err != nil {
			continue // as good
		}
		if body, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %q, %v, want an unexpected end", path, body, err)
		}
		_ = resp.Body.Close()
	}
}

func TestFailuresAreTold(t *testing.T) {
	closed := listen(t, func(conn *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			t.Error(err)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	address, _ := secure(t, "127.0.0.1", http.NotFoundHandler())
	g := newGuard(t, GuardConfig{Allow: []string{"127.0.0.1"}, Resolver: names(t, nil)})
	w := newWorld(t, Config{Guard: g})
	for _, c := range []struct {
		url    string
		status int
		word   string
	}{
		{"http://" + l.Addr().String() + "/", http.StatusBadGateway, "connection_refused"},
		{"http://" + closed + "/", http.StatusBadGateway, "connection_terminated"},
		{"http://unknown.example.test/", http.StatusBadGateway, "dns_error"},
		{"http://169.254.169.254/latest", http.StatusForbidden, "destination_ip_prohibited"},
		{"ftp://127.0.0.1/", http.StatusBadRequest, "http_request_error"},
		{"https://" + address + "/", http.StatusBadGateway, "tls_certificate_error"},
	} {
		_, r := w.raw("GET " + c.url + " HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != c.status || !strings.HasSuffix(resp.Header.Get("Proxy-Status"), "error="+c.word) {
			t.Errorf("%s: %s %q, want %d %s", c.url, resp.Status, resp.Header.Get("Proxy-Status"), c.status, c.word)
		}
	}
}

func TestUpgrades(t *testing.T) {
	ended := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") != "shout" {
			http.Error(w, "no upgrade", http.StatusBadRequest)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer close(ended)
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, strings.ToUpper(line))
		}
	}))
	defer up.Close()
	w := newWorld(t, Config{})
	conn, r := w.raw("GET " + up.URL + "/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
	if resp := w.answer(r); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	for range 3 {
		_, _ = io.WriteString(conn, "hello\n")
		if line, err := r.ReadString('\n'); line != "HELLO\n" || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	// An idle one does not hold up Close.
	if err := w.proxy.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection is there after Close")
	}
	within(t, "the server's connection", ended)
	if resp, _ := w.get(up.URL); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("after Close: %s", resp.Status)
	}
}

func TestLoops(t *testing.T) {
	up := httptest.NewServer(http.NotFoundHandler())
	defer up.Close()
	w := newWorld(t, Config{})
	resp, _ := w.get(up.URL, "Via", "1.1 a, 1.1 "+w.proxy.name)
	if resp.StatusCode != http.StatusLoopDetected {
		t.Error(resp.Status)
	}
}

func TestHandlerTellsMirrorFromProxy(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the server") }))
	defer up.Close()
	w := newWorld(t, Config{})
	for target, want := range map[string]string{
		"/v2/a?b":               "the mirror: /v2/a?b",
		"*":                     "the mirror: *",
		w.server.URL + "/v2/?a": "the mirror: /v2/?a",
		"http://localhost:" + w.url.Port() + "/v2/": "the mirror: /v2/",
		up.URL + "/v2/": "the server",
	} {
		method := "GET "
		if target == "*" {
			method = "OPTIONS "
		}
		_, r := w.raw(method + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if target == "*" && resp.StatusCode == http.StatusOK && len(body) == 0 {
			continue // net/http answered it
		}
		if string(body) != want || err != nil {
			t.Errorf("%s: %s %q, %v, want %q", target, resp.Status, body, err, want)
		}
	}
}

func TestPassword(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(echo))
	defer up.Close()
	w := newWorld(t, Config{Username: "u", Password: "p"})
	basic := func(user, password string) string {
		req := http.Request{Header: make(http.Header)}
		req.SetBasicAuth(user, password)
		return req.Header.Get("Authorization")
	}
	for _, c := range []struct {
		shown string
		want  int
	}{
		{"", 407}, {basic("u", "p"), 200}, {basic("u", ""), 407}, {basic("", "p"), 407}, {basic("", ""), 407}, {basic("u", "pp"), 407},
		{basic("up", ""), 407}, {"Bearer dTpw", 407}, {"Basic !", 407}, {"basic dTpw", 200},
	} {
		for _, line := range []string{"GET " + up.URL + "/", "CONNECT " + up.Listener.Addr().String()} {
			header := ""
			if c.shown != "" {
				header = "Proxy-Authorization: " + c.shown + "\r\n"
			}
			_, r := w.raw(line + " HTTP/1.1\r\nHost: x\r\nAuthorization: " + basic("u", "p") + "\r\n" + header + "\r\n")
			resp := w.answer(r)
			if resp.StatusCode != c.want || (resp.Header.Get("Proxy-Authenticate") != "") != (c.want == 407) {
				t.Errorf("%.8s with %q: %v, want %d", line, c.shown, resp, c.want)
			}
		}
	}
	if resp, body := w.get(w.server.URL + "/v2/"); resp.StatusCode != http.StatusOK {
		t.Errorf("the mirror demands it, too: %v %s", resp, body)
	}
	if n := w.proxy.Stats().Refused.Load(); n != 16 {
		t.Errorf("%d refused, want 16", n)
	}
}
