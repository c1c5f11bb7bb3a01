package cri

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skimmer/internal/origin"
)

// secretWord is in all secrets of these tests, and so must not be in a log.
const secretWord = "hunter2"

// imageService is a small CRI image service that tells what it was asked.
// PullImage of "fail", "away" and "bare" fails, that of "slow", once, does not end.
type imageService struct {
	runtimeapi.UnimplementedImageServiceServer

	mu       sync.Mutex
	metadata metadata.MD
	deadline time.Time
	pulled   *runtimeapi.PullImageRequest
	entered  chan struct{} // closed when a "slow" pull arrives
	ended    chan struct{} // closed when its caller goes away
}

func (s *imageService) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	image := &runtimeapi.Image{Id: r.GetFilter().GetImage().GetImage()}
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{image}}, nil
}

func (s *imageService) StreamImages(r *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	for range 3 {
		if err := out.Send(&runtimeapi.StreamImagesResponse{Images: []*runtimeapi.Image{{Id: r.GetFilter().GetImage().GetImage()}}}); err != nil {
			return err
		}
	}
	return status.Error(codes.DataLoss, "after three")
}

func (s *imageService) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	s.mu.Lock()
	s.metadata, _ = metadata.FromIncomingContext(ctx)
	s.deadline, _ = ctx.Deadline()
	s.pulled = r
	s.mu.Unlock()
	if r.GetImage().GetImage() == "bare" {
		return nil, status.Error(codes.Unavailable, "the backend's own words") // with no header and no trailer
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-header", "h")); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t")); err != nil {
		return nil, err
	}
	switch r.GetImage().GetImage() {
	case "fail":
		st, err := status.New(codes.ResourceExhausted, "no room").WithDetails(&runtimeapi.ImageSpec{Image: "detail"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	case "away":
		return nil, status.Error(codes.Unavailable, "the backend's own words")
	case "slow":
		close(s.entered)
		<-ctx.Done()
		close(s.ended)
		return nil, ctx.Err()
	}
	return &runtimeapi.PullImageResponse{ImageRef: r.GetImage().GetImage()}, nil
}

// world is a backend, a proxy in front of it, and a client of the proxy.
type world struct {
	socket  string // of the backend
	backend *imageService
	proxy   *Proxy
	client  *grpc.ClientConn
	log     *lockedBuffer

	mu  sync.Mutex
	got []learned
}

type learned struct {
	repository string
	credential origin.Credential
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve serves on a unix socket until stopped, at the latest when the test
// ends.
func serve(t *testing.T, socket string, s *grpc.Server) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		s.Stop()
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// newWorld starts a proxy and no backend.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{socket: filepath.Join(dir, "backend.sock"), backend: &imageService{entered: make(chan struct{}), ended: make(chan struct{})}, log: &lockedBuffer{}}
	var err error
	w.proxy, err = New(Config{
		Backend: "unix://" + w.socket,
		Credentials: func(repository string, c origin.Credential) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.got = append(w.got, learned{repository, c})
		},
		Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.proxy.Close() })
	s := grpc.NewServer(w.proxy.ServerOptions()...)
	// Something else on the same socket, as the snapshots service will be.
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	front := filepath.Join(dir, "front.sock")
	serve(t, front, s)
	w.client, err = grpc.NewClient("unix://"+front, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.client.Close()
		if strings.Contains(w.log.String(), secretWord) {
			t.Errorf("a secret is in the log:\n%s", w.log)
		}
	})
	return w
}

func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	s := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(s, w.backend)
	old := runtimeapi.ImageService_ServiceDesc
	old.ServiceName, old.Metadata = "runtime.v1alpha2.ImageService", nil
	s.RegisterService(&old, w.backend)
	return serve(t, w.socket, s)
}

func (w *world) learned() []learned {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.got
	w.got = nil
	return got
}

// TestEveryMethod calls all methods cri-api knows through the proxy and
// directly, and wants the same answers.
func TestEveryMethod(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	direct, err := grpc.NewClient("unix://"+w.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	service := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().ByName("ImageService")
	if n := service.Methods().Len(); n != len(runtimeapi.ImageService_ServiceDesc.Methods)+len(runtimeapi.ImageService_ServiceDesc.Streams) {
		t.Fatalf("the descriptor has %d methods, the service another number", n)
	}
	for _, s := range runtimeapi.ImageService_ServiceDesc.Streams {
		if s.ClientStreams {
			t.Errorf("%s: requests are streamed, and the proxy passes one on", s.StreamName)
		}
	}
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		for _, prefix := range services {
			method := prefix + string(m.Name())
			got, gotErr := call(t, w.client, method, m)
			want, wantErr := call(t, direct, method, m)
			if len(got) != len(want) || status.Code(gotErr) != status.Code(wantErr) || status.Convert(gotErr).Message() != status.Convert(wantErr).Message() {
				t.Errorf("%s: %d answers, %v; directly %d, %v", method, len(got), gotErr, len(want), wantErr)
				continue
			}
			for i := range got {
				if !proto.Equal(got[i], want[i]) {
					t.Errorf("%s: answer %v, directly %v", method, got[i], want[i])
				}
			}
		}
	}
}

// call makes a call whose request is all strings "x", as deep as it goes, and
// returns all answers.
func call(t *testing.T, conn *grpc.ClientConn, method string, m protoreflect.MethodDescriptor) ([]proto.Message, error) {
	t.Helper()
	request := dynamicpb.NewMessage(m.Input())
	fill(request, 3)
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(request); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var answers []proto.Message
	for {
		answer := dynamicpb.NewMessage(m.Output())
		if err := stream.RecvMsg(answer); err != nil {
			return answers, err
		}
		answers = append(answers, answer)
	}
}

func fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() || f.IsMap():
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString("x"))
		case f.Kind() == protoreflect.MessageKind && depth > 0:
			fill(m.Mutable(f).Message(), depth-1)
		}
	}
}

func (w *world) pull(ctx context.Context, image string, auth *runtimeapi.AuthConfig, opts ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	return runtimeapi.NewImageServiceClient(w.client).PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: image}, Auth: auth,
	}, opts...)
}

func TestCredentials(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	user := origin.Credential{Username: "u", Password: secretWord}
	basic := base64.StdEncoding.EncodeToString([]byte("u:" + secretWord))
	for _, c := range []struct {
		image string
		auth  *runtimeapi.AuthConfig
		want  *learned
	}{
		{"r.example/a/b:v1", &runtimeapi.AuthConfig{Username: "u", Password: secretWord}, &learned{"r.example/a/b", user}},
		{"r.example:5000/a@sha256:" + strings.Repeat("0", 64), &runtimeapi.AuthConfig{Auth: basic}, &learned{"r.example:5000/a", user}},
		{"nginx", &runtimeapi.AuthConfig{Auth: strings.TrimRight(basic, "=")}, &learned{"docker.io/library/nginx", user}},
		{"localhost/a", &runtimeapi.AuthConfig{Auth: basic}, &learned{"localhost/a", user}},
		{"index.docker.io/me/app", &runtimeapi.AuthConfig{IdentityToken: secretWord}, &learned{"docker.io/me/app", origin.Credential{IdentityToken: secretWord}}},
		{"r.example/a", &runtimeapi.AuthConfig{RegistryToken: secretWord}, &learned{"r.example/a", origin.Credential{RegistryToken: secretWord}}},
		{"r.example/a", &runtimeapi.AuthConfig{Username: "u", Password: secretWord, IdentityToken: "no", Auth: "no"}, &learned{"r.example/a", user}},
		{"r.example/a", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "r.example"}, &learned{"r.example/a", user}},
		{"r.example/a", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "https://R.example/v2/"}, &learned{"r.example/a", user}},
		{"nginx", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "https://index.docker.io/v1/"}, &learned{"docker.io/library/nginx", user}},

		{"r.example/a", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "other.example"}, nil},
		{"r.example:5000/a", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "r.example"}, nil},
		{"r.example/a", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "https://index.docker.io/v1/"}, nil},
		{"r.example/a", &runtimeapi.AuthConfig{Auth: basic, ServerAddress: "https://[" + secretWord}, nil},
		{"r.example/a", &runtimeapi.AuthConfig{Auth: secretWord + "!"}, nil},
		{"r.example/a", &runtimeapi.AuthConfig{}, nil},
		{"r.example/a", nil, nil},
		{"Not a Name", &runtimeapi.AuthConfig{Auth: basic}, nil},
		{"fail", &runtimeapi.AuthConfig{Auth: basic}, &learned{"docker.io/library/fail", user}},
	} {
		if _, err := w.pull(t.Context(), c.image, c.auth); err != nil && c.image != "fail" {
			t.Errorf("pull %s: %v", c.image, err)
		}
		got := w.learned()
		switch {
		case c.want == nil && len(got) > 0:
			t.Errorf("%s, %v: learned %v, want nothing", c.image, c.auth, got)
		case c.want != nil && (len(got) != 1 || got[0] != *c.want):
			t.Errorf("%s, %v: learned %v, want %v", c.image, c.auth, got, *c.want)
		}
		if w.backend.pulled.GetImage().GetImage() != c.image || !proto.Equal(w.backend.pulled.GetAuth(), c.auth) {
			t.Errorf("%s: the backend got %v", c.image, w.backend.pulled)
		}
	}
	err := w.client.Invoke(t.Context(), "/runtime.v1alpha2.ImageService/PullImage", &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "r.example/old"}, Auth: &runtimeapi.AuthConfig{Auth: basic},
	}, &runtimeapi.PullImageResponse{})
	if got := w.learned(); err != nil || len(got) != 1 || got[0] != (learned{"r.example/old", user}) {
		t.Errorf("v1alpha2: learned %v, %v", got, err)
	}
}

func TestErrorsPassThrough(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	var header, trailer metadata.MD
	_, err := w.pull(t.Context(), "fail", nil, grpc.Header(&header), grpc.Trailer(&trailer))
	s := status.Convert(err)
	if s.Code() != codes.ResourceExhausted || s.Message() != "no room" || len(s.Details()) != 1 || s.Details()[0].(*runtimeapi.ImageSpec).GetImage() != "detail" {
		t.Errorf("error %v with details %v", err, s.Details())
	}
	if trailer.Get("x-trailer") == nil {
		t.Errorf("trailer %v", trailer)
	}
	for _, image := range []string{"away", "bare"} {
		if _, err := w.pull(t.Context(), image, nil); status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "the backend's own words" {
			t.Errorf("%s, unavailable by its own words: %v", image, err)
		}
	}
	if _, err := w.pull(t.Context(), "fine", nil, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || header.Get("x-header") == nil || trailer.Get("x-trailer") == nil {
		t.Errorf("header %v, trailer %v, %v", header, trailer, err)
	}
}

func TestContextPassesThrough(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	deadline := time.Now().Add(time.Hour)
	ctx, cancel := context.WithDeadline(metadata.AppendToOutgoingContext(t.Context(), "x-trace", "1", "x-bin", "\x00\xff"), deadline)
	defer cancel()
	if _, err := w.pull(ctx, "fine", nil); err != nil {
		t.Fatal(err)
	}
	md := w.backend.metadata
	if len(md.Get("x-trace")) != 1 || len(md.Get("x-bin")) != 1 {
		t.Errorf("metadata %v", md)
	}
	if d := w.backend.deadline; d.Before(deadline.Add(-10*time.Minute)) || d.After(deadline.Add(10*time.Minute)) {
		t.Errorf("deadline %v, want about %v", d, deadline)
	}
	// The backend hears that the caller went away.
	ctx, cancel = context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		<-w.backend.entered
		cancel()
	})
	if _, err := w.pull(ctx, "slow", nil); status.Code(err) != codes.Canceled {
		t.Errorf("slow pull: %v", err)
	}
	wg.Wait()
	<-w.backend.ended
}

// TestBackendRestarts asks while there is no backend, then with one, then
// while it is taken away in the middle of a call, and with its successor.
func TestBackendRestarts(t *testing.T) {
	w := newWorld(t)
	away := func(err error) {
		t.Helper()
		if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), w.socket) {
			t.Errorf("without a backend: %v", err)
		}
	}
	_, err := w.pull(t.Context(), "r.example/a", &runtimeapi.AuthConfig{Username: "u", Password: secretWord})
	away(err)
	comesBack := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			_, err := w.pull(ctx, "fine", nil)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("the proxy does not find the backend again: %v", err)
			}
			if state := w.proxy.conn.GetState(); !w.proxy.conn.WaitForStateChange(ctx, state) {
				t.Fatalf("the connection stays %v", state)
			}
		}
	}
	stop := w.start(t)
	comesBack()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := w.pull(t.Context(), "slow", nil)
		away(err)
	})
	<-w.backend.entered
	stop()
	wg.Wait()
	w.start(t)
	comesBack()
}

func TestOnlyTheImageService(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	for _, method := range []string{
		"/runtime.v1.RuntimeService/Version", "/runtime.v1.ImageServiceX/ListImages", "/containerd.services.content.v1.Content/Info",
		"/grpc.health.v1.Health/NoSuchMethod",
	} {
		err := w.client.Invoke(t.Context(), method, &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
		if s := status.Convert(err); s.Code() != codes.Unimplemented || !strings.Contains(s.Message(), "not served here") {
			t.Errorf("%s: %v", method, err)
		}
	}
	if _, err := grpc_health_v1.NewHealthClient(w.client).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("what else the server has: %v", err)
	}
}

func TestLargeMessages(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	large := strings.Repeat("x", 3<<20)
	list, err := runtimeapi.NewImageServiceClient(w.client).ListImages(t.Context(), &runtimeapi.ListImagesRequest{
		Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: large}},
	})
	if err != nil || list.GetImages()[0].GetId() != large {
		t.Errorf("list: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	sink, logger := func(string, origin.Credential) {}, slog.New(slog.DiscardHandler)
	for _, cfg := range []Config{
		{Backend: "", Credentials: sink, Logger: logger}, {Backend: "tcp://127.0.0.1:1", Credentials: sink, Logger: logger},
		{Backend: "/run/x.sock", Logger: logger}, {Backend: "/run/x.sock", Credentials: sink},
	} {
		if p, err := New(cfg); err == nil {
			p.Close()
			t.Errorf("accepted %+v", cfg)
		}
	}
}

func FuzzPullCredential(f *testing.F) {
	for _, r := range []*runtimeapi.PullImageRequest{
		{Image: &runtimeapi.ImageSpec{Image: "r.example/a"}, Auth: &runtimeapi.AuthConfig{Auth: "dTpw", ServerAddress: "r.example"}},
		{Image: &runtimeapi.ImageSpec{Image: "nginx"}, Auth: &runtimeapi.AuthConfig{Username: "u", Password: "p"}},
		{},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{0x12, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		repository, c, reason := pullCredential(raw)
		if (c != origin.Credential{}) && (repository == "" || reason != "") {
			t.Errorf("a credential for %q, of which is said %q", repository, reason)
		}
	})
}
