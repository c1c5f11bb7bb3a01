package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/peer"
)

// keepAll brings files into the store of the running peer, one after the other.
func (a *app) keepAll(cmd *cobra.Command, f *getFlags, urls []string) error {
	if f.digest != "" && len(urls) > 1 {
		return errors.New("read flags: --digest: is that of one file, and there are several")
	}
	for _, url := range urls {
		g, err := a.newDownload(cmd, f, url)
		if err != nil {
			return err
		}
		if err := g.keep(cmd.Context()); err != nil {
			return interrupted(cmd.Context(), err)
		}
	}
	return nil
}

// keep brings the file into the store of the running peer.
func (g *get) keep(ctx context.Context) error {
	begun := time.Now()
	k, err := peer.NewClient(g.f.local.socket).KeepFile(ctx, g.name, g.want)
	if err != nil {
		return err
	}
	n, err := g.follow(k)
	if err2 := k.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	check := g.name.Digest != "" && g.want == peer.Part{}
	if check && !k.Verified {
		return blob.Errorf(blob.Unavailable, "check %s: the peer could not compare it with the digest", g.shown())
	}
	return g.report(&gotten{
		URL: blob.Ref{URL: g.shown()}.Place(), Blob: k.Digest, Size: k.Size, Bytes: n, Verified: check, Peer: true,
		Local: k.Traffic.Local.Load(), Peers: k.Traffic.Peers.Load(), Origin: k.Traffic.Origin.Load(),
		Seconds: time.Since(begun).Seconds(), Stored: k.Kept.Seconds(),
	})
}

// follow waits until all of what is kept is there, shows how it gets on, and returns
// how many bytes it is.
func (g *get) follow(k *peer.Keeping) (n int64, err error) {
	name, err := fileNameOf(g.name.URL)
	if err != nil {
		name = g.shown()
	}
	p := g.progress(name, 0, k.Range.Len)
	defer p.close()
	for {
		off, err := k.Next()
		p.add(int(off - k.Range.Off - n))
		n = off - k.Range.Off
		if err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}
