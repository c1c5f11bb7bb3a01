// Command liar is a peer that says it has all of a blob and sends wrong bytes,
// with right checksums of them.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/transfer"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "liar:", err)
		os.Exit(1)
	}
}

func run() error {
	scheduler := flag.String("scheduler", "", "host:port of the scheduler")
	listen := flag.String("listen", "", "host:port where peers ask")
	name := flag.String("digest", "", "digest of the blob")
	size := flag.Int64("size", 0, "size of the blob")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()

	d := digest.Digest(*name)
	server, err := transfer.NewServer(transfer.ServerConfig{Source: lies{d, *size}})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close(context.Background())
	wg.Go(func() { _ = server.Serve(ln) })

	up := make(chan struct{}, 1)
	session, err := remote.Dial(remote.Config{
		Addr: *scheduler, Handler: handler{up},
		Hello: remote.Hello{ID: "liar", Hostname: "liar", Addr: *listen, Slots: 64},
	})
	if err != nil {
		return err
	}
	defer session.Close()
	for {
		select {
		case <-up:
		case <-ctx.Done():
			return nil
		}
		const piece = 16 << 10
		pieces := int((*size + piece - 1) / piece)
		session.Send(schedule.Announce{
			Blob: d.String(), Shape: schedule.Shape{Size: *size, PieceSize: piece},
			Have: []schedule.Run{{First: 0, Count: pieces}},
		})
		if err := ready(); err != nil {
			return err
		}
	}
}

// handler hears that the scheduler is there, and nothing else.
type handler struct{ up chan struct{} }

func (handler) Act(schedule.Action) {}
func (handler) Down(err error)      { fmt.Println("down", err) }
func (h handler) Up()               { h.up <- struct{}{} }

// ready says that the peer has joined (sd_notify(3)).
func ready() error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return nil // it was said before
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}

// lies is a blob of which every byte is wrong.
type lies struct {
	digest digest.Digest
	size   int64
}

// Open implements blob.Source.
func (l lies) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	if ref.Digest != l.digest {
		return nil, blob.Errorf(blob.NotFound, "open %v: this peer has one blob only", ref.Digest)
	}
	return l, nil
}

// Size implements blob.Blob.
func (l lies) Size() int64 { return l.size }

// Close implements blob.Blob.
func (l lies) Close() error { return nil }

// ReadRange implements blob.Blob.
func (l lies) ReadRange(_ context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(l.size); err != nil {
		return nil, err
	}
	fmt.Println("lied", r)
	return io.NopCloser(bytes.NewReader(bytes.Repeat([]byte("lie"), int(r.Len)/3+1)[:r.Len])), nil
}
