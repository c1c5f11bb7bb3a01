// Package cri stands between the kubelet and containerd's CRI image service,
// passes every call on as it is, and learns from PullImage the credentials
// with which the node will read the image lazily: the kubelet sends them there
// and nowhere else.
package cri

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
)

// Config is what a Proxy needs. All fields are required.
type Config struct {
	// Backend is the unix socket of containerd, with or without unix://.
	Backend string
	// Credentials is told the credentials of each PullImage that has some,
	// before the call is passed on: the image's layers are read during the
	// call. The repository is as in blob.Ref.Repository. It is called from many
	// goroutines at once, and the pull waits for it.
	Credentials func(repository string, c origin.Credential)
	// Logger is told, at level debug, about calls and about credentials that
	// cannot be used; never a secret.
	Logger *slog.Logger
}

// Proxy passes CRI image service calls on to a backend. Its methods are safe
// for concurrent use.
type Proxy struct {
	cfg    Config
	socket string
	conn   *grpc.ClientConn
}

// maxMessage bounds a message in bytes, as the kubelet and containerd do. A
// list of images is the largest.
const maxMessage = 16 << 20

// services are the prefixes of the methods passed on. containerd 1.6 has
// v1alpha2 beside v1; the messages we look into are the same in both.
var services = []string{"/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/"}

// New returns a Proxy. It connects when the first call comes, and again
// whenever the connection is lost; Close releases it.
//
// Errors: Invalid.
func New(cfg Config) (*Proxy, error) {
	socket := strings.TrimPrefix(cfg.Backend, "unix://")
	if !strings.HasPrefix(socket, "/") {
		return nil, blob.Errorf(blob.Invalid, "use image service at %q: not the path of a unix socket", cfg.Backend)
	}
	if cfg.Credentials == nil || cfg.Logger == nil {
		return nil, blob.Errorf(blob.Invalid, "use image service at %s: Credentials and Logger are required", socket)
	}
	retry := backoff.DefaultConfig
	retry.MaxDelay = 3 * time.Second // a containerd that restarts is back soon
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "use image service at %s: %w", socket, err)
	}
	return &Proxy{cfg: cfg, socket: socket, conn: conn}, nil
}

// Close drops the connection to the backend; calls under way fail.
func (p *Proxy) Close() error { return p.conn.Close() }

// ServerOptions makes a grpc.Server pass calls of the image service on. What
// else is registered with the server is served as ever; all other services and
// methods are Unimplemented. (The options also set how large a request may be,
// for all services of the server.)
func (p *Proxy) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnknownServiceHandler(p.handle),
		grpc.MaxRecvMsgSize(maxMessage),
	}
}

// handle passes a call on. It knows no methods: each has one request, and one
// or more answers. The Empty messages carry whatever comes as fields they do
// not know, byte for byte, so that no codec has to be forced upon the server.
func (p *Proxy) handle(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	if !passedOn(method) {
		return status.Errorf(codes.Unimplemented, "method %s is not served here", method)
	}
	request := new(emptypb.Empty)
	if err := in.RecvMsg(request); err != nil {
		if errors.Is(err, io.EOF) {
			return status.Error(codes.Internal, "call has no request")
		}
		return err
	}
	if strings.HasSuffix(method, "/PullImage") {
		p.learn(in.Context(), request.ProtoReflect().GetUnknown())
	}
	err := p.forward(in, method, request)
	p.cfg.Logger.DebugContext(in.Context(), "image service call", "method", method, "code", status.Code(err).String())
	return err
}

func passedOn(method string) bool {
	for _, s := range services {
		if strings.HasPrefix(method, s) {
			return true
		}
	}
	return false
}

// forward makes the call and copies the answers.
func (p *Proxy) forward(in grpc.ServerStream, method string, request *emptypb.Empty) error {
	// Deadline and cancellation are those of the caller's context. The cancel
	// ends the call where an answer cannot be delivered.
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md.Copy()) // grpc leaves out what is reserved
	}
	out, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return p.away(err)
	}
	// A send that fails with EOF is explained by the receive.
	if err := out.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return p.away(err)
	}
	if err := out.CloseSend(); err != nil {
		return p.away(err)
	}
	answered := false
	for {
		answer := new(emptypb.Empty)
		err := out.RecvMsg(answer)
		if header, herr := out.Header(); herr == nil && len(header) > 0 && !answered {
			answered = true
			if err := in.SetHeader(header); err != nil {
				return err
			}
		}
		if err != nil {
			in.SetTrailer(out.Trailer())
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case answered || len(out.Trailer()) > 0:
				return err // the backend's own
			}
			return p.away(err)
		}
		if err := in.SendMsg(answer); err != nil {
			return err
		}
	}
}

// away explains the failure of a call that the backend did not answer. Code
// and details stay.
func (p *Proxy) away(err error) error {
	s := status.Convert(err)
	if s.Code() != codes.Unavailable {
		return err
	}
	explained := s.Proto()
	explained.Message = "image service at " + p.socket + " cannot be reached: " + s.Message()
	return status.ErrorProto(explained)
}
