package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/origin"
	"skimmer/internal/origin/web"
	"skimmer/internal/peer"
)

// getFlags are the flags of get.
type getFlags struct {
	local        localPeer
	output       string
	digest, tag  string
	headers      []string
	ranges       string
	resume       bool
	noPeer, keep bool
	force, quiet bool
	json         bool
}

func newGetCommand(a *app) *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:   "get URL...",
		Short: "Download a file, or a blob of a registry, through the running peer",
		Long: `Download a file over HTTP or HTTPS, or a blob from a registry, as
  https://example.org/dir/file.tar.gz
  oci://registry.example/library/python@sha256:...

The running peer does the work, so what it or another peer has is not fetched
again from the origin. Where none runs, the file comes straight from there.

With --keep, files are brought into the store of this node and nowhere else: what
asks the node for them later, or another node, finds them there. It ends when all
of them are in the store, or with an error where it cannot keep them. Only then
may there be several URLs.

What is downloaded is a version of the file, told by its ETag, or Last-Modified
and length: a file that changed at the origin is never served as the old one,
and no two versions are mixed. Where a server names no version, the download is
not shared with others and cannot be resumed.

While it is incomplete, the file is FILE.part, and FILE.part.id says what it is;
another get continues it if that version is still there. It gets its name when
all is there and --digest, if given, was right. A file that exists is not
overwritten without --force. What is no regular file, as /dev/null or a pipe, is
written to as it is.

Credentials of web servers are given with --header, or in the URL as
https://USER:PASSWORD@HOST/...; those of registries are those of docker login.
Headers are not sent to other hosts the server redirects to, except Accept,
Accept-Language and User-Agent.`,
		Example: `  skimmer get https://example.org/model.bin
  skimmer get --digest sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865 -o model https://example.org/model.bin
  skimmer get -H 'Authorization: Bearer TOKEN' -o - https://example.org/data.tar.gz | tar xz
  skimmer get --range 0-1023 -o head https://example.org/model.bin
  skimmer get -o layer.tar.gz oci://registry.example/app@sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865
  skimmer get --keep https://example.org/model.bin https://example.org/vocabulary.json`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeURLs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.keep {
				return a.keepAll(cmd, &f, args)
			}
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return err
			}
			g, err := a.newGet(cmd, &f, args[0])
			if err != nil {
				return err
			}
			return g.run(cmd.Context())
		},
	}
	f.local.socketFlag(cmd)
	fs := cmd.Flags()
	// Takes the place of the flag of all commands, as users of curl expect it.
	fs.StringVarP(&f.output, "output", "o", "", "write to `FILE`, or into it if it is a directory; - is standard output (default the last element of the URL's path)")
	fs.StringVar(&f.digest, "digest", "", "what the content must be, as sha256:`HEX`; it is shared with all who have the same content, wherever from")
	fs.StringVar(&f.tag, "tag", "", "keep the download apart from those of the same URL with another `TAG`")
	fs.StringArrayVarP(&f.headers, "header", "H", nil, "send `'NAME: VALUE'` to the server; repeat it for several")
	fs.StringVar(&f.ranges, "range", "", "download only the bytes `FIRST-LAST`, counted from 0; without LAST to the end")
	fs.BoolVar(&f.resume, "resume", true, "continue an incomplete download; --resume=false begins anew")
	fs.BoolVar(&f.noPeer, "no-peer", false, "download straight from the origin, even if a peer runs")
	fs.BoolVar(&f.keep, "keep", false, "bring files into the store of the running peer and write none")
	fs.BoolVarP(&f.force, "force", "f", false, "replace a file that exists")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "show neither progress nor what came of it")
	fs.BoolVar(&f.json, "json", false, "print what came of it as JSON")
	cmd.MarkFlagsMutuallyExclusive("no-peer", "socket")
	for _, name := range []string{"no-peer", "output", "force", "resume"} {
		cmd.MarkFlagsMutuallyExclusive("keep", name)
	}
	_ = cmd.MarkFlagFilename("output")
	for _, name := range []string{"digest", "tag", "header", "range"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// completeURLs completes how URLs begin.
func completeURLs(_ *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var starts []cobra.Completion
	for _, s := range []string{"https://", "http://", "oci://"} {
		if strings.HasPrefix(s, toComplete) {
			starts = append(starts, s)
		}
	}
	return starts, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// opener fetches a part of a file: from a peer, or without one.
type opener func(ctx context.Context, name peer.FileName, part peer.Part) (*peer.File, error)

// get is one run of the command.
type get struct {
	a      *app
	f      *getFlags
	name   peer.FileName
	want   peer.Part // what --range says
	out    output
	open   opener
	alone  bool
	socket bool // it was chosen
}

func (a *app) newGet(cmd *cobra.Command, f *getFlags, url string) (*get, error) {
	g, err := a.newDownload(cmd, f, url)
	if err != nil {
		return nil, err
	}
	if g.out, err = newOutput(f.output, url, f.force, a.stdout); err != nil {
		return nil, err
	}
	if f.json && f.output == "-" {
		return nil, errors.New("read flags: --json: cannot go to standard output together with the file")
	}
	return g, nil
}

// newDownload reads the flags that say what is wanted.
func (a *app) newDownload(cmd *cobra.Command, f *getFlags, url string) (*get, error) {
	g := &get{a: a, f: f, socket: cmd.Flags().Changed("socket")}
	g.name = peer.FileName{URL: url, Tag: f.tag, Digest: digest.Digest(f.digest), Header: make(http.Header)}
	if f.digest != "" && g.name.Digest.Validate() != nil {
		return nil, fmt.Errorf("read flags: --digest %q: must be like sha256:HEX", f.digest)
	}
	for _, line := range f.headers {
		if err := web.ParseHeader(g.name.Header, line); err != nil {
			return nil, fmt.Errorf("read flags: --header: %w", err)
		}
	}
	var err error
	if g.want, err = parsePart(f.ranges); err != nil {
		return nil, fmt.Errorf("read flags: --range %q: %w", f.ranges, err)
	}
	return g, nil
}

// parsePart reads FIRST-LAST or FIRST-; nothing is everything.
func parsePart(s string) (peer.Part, error) {
	if s == "" {
		return peer.Part{}, nil
	}
	first, last, ok := strings.Cut(s, "-")
	from, err := strconv.ParseUint(first, 10, 62)
	if !ok || err != nil {
		return peer.Part{}, errors.New("must be FIRST-LAST or FIRST-")
	}
	if last == "" {
		return peer.Part{Off: int64(from)}, nil
	}
	to, err := strconv.ParseUint(last, 10, 62)
	if err != nil || to < from {
		return peer.Part{}, errors.New("must be FIRST-LAST or FIRST-, and LAST not less than FIRST")
	}
	return peer.Part{Off: int64(from), Len: int64(to-from) + 1}, nil
}

// gotten is what came of a get.
type gotten struct {
	URL    string `json:"url"`
	Output string `json:"output"`
	// Blob is the identity the file has among peers.
	Blob digest.Digest `json:"blob"`
	// Size is the length of the whole file in bytes, Bytes of what was asked
	// for, of which Resumed were there before.
	Size    int64 `json:"size"`
	Bytes   int64 `json:"bytes"`
	Resumed int64 `json:"resumed"`
	// Verified is whether the bytes were compared with a digest.
	Verified bool `json:"verified"`
	// Peer is whether a peer did the work. Local, Peers and Origin are where it
	// had the bytes from; with downloads by others at the same time they may be
	// less than Bytes.
	Peer    bool    `json:"peer"`
	Local   int64   `json:"local"`
	Peers   int64   `json:"peers"`
	Origin  int64   `json:"origin"`
	Seconds float64 `json:"seconds"`
	// Stored is after how many seconds all of it was in the peer's store; 0 where
	// that is not known.
	Stored float64 `json:"stored"`
}

func (g *get) run(ctx context.Context) error {
	begun := time.Now()
	o, err := origin.New(origin.Config{Logger: g.a.logger()})
	if err != nil {
		return err
	}
	defer func() { _ = o.Close() }() // it has only idle connections
	direct := peer.NewFiles(o, "", g.a.logger()).OpenFile
	g.open, g.alone = direct, g.f.noPeer
	if !g.alone {
		g.open = peer.NewClient(g.f.local.socket).OpenFile
	}
	file, part, err := g.begin(ctx)
	if errors.Is(err, peer.ErrNotRunning) && !g.socket {
		g.alone, g.open = true, direct
		g.say("%v; downloading without one", err)
		file, part, err = g.begin(ctx)
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	resumed := part.n
	err = g.receive(ctx, file, part)
	if err2 := file.Close(); err == nil {
		err = err2
	}
	if err != nil {
		// Of what is not what it should be nothing can be trusted.
		part.useless = part.useless || blob.KindOf(err) == blob.Corrupt
		g.giveUp(ctx, part)
		return interrupted(ctx, err)
	}
	if err := part.finish(); err != nil {
		return err
	}
	return g.report(&gotten{
		URL: blob.Ref{URL: g.shown()}.Place(), Output: g.out.path, Blob: file.Digest, Size: file.Size, Bytes: part.n, Resumed: resumed,
		Verified: g.name.Digest != "" && g.want == peer.Part{}, Peer: !g.alone,
		Local: file.Traffic.Local.Load(), Peers: file.Traffic.Peers.Load(), Origin: file.Traffic.Origin.Load(),
		Seconds: time.Since(begun).Seconds(), Stored: file.Kept.Seconds(),
	})
}

// shown returns the URL without credentials.
func (g *get) shown() string {
	if url, _, err := web.SplitUser(g.name.URL); err == nil {
		return url
	}
	return ""
}

// begin opens the file and where it goes, continuing what is there of it.
func (g *get) begin(ctx context.Context) (*peer.File, *partFile, error) {
	part, err := g.out.openPart(g.want)
	if err != nil {
		return nil, nil, err
	}
	ask := g.want
	if g.f.resume && part.n > 0 {
		// Its last byte is asked for again, for there may be no more.
		part.n--
		ask.Off, ask.IfDigest = ask.Off+part.n, part.id.Digest
		if ask.Len > 0 {
			ask.Len -= part.n
		}
	} else {
		part.n = 0
	}
	file, err := g.open(ctx, g.name, ask)
	if err == nil && ask.IfDigest != "" && file.Digest != ask.IfDigest {
		g.say("the file has changed: what is there of it is of no use")
		part.n = 0
		if g.want.Off > 0 || g.want.Len > 0 {
			_ = file.Close() // the whole of it is not wanted
			file, err = g.open(ctx, g.name, g.want)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, part.close())
	}
	if err := part.begin(file, g.want); err != nil {
		return nil, nil, errors.Join(err, file.Close(), part.close())
	}
	return file, part, nil
}

// receive brings the file to where it goes and compares its digest.
func (g *get) receive(ctx context.Context, file *peer.File, part *partFile) error {
	resumed, total := part.n, part.n+file.Range.Len
	p := g.progress(g.out.name(), part.n, total)
	defer p.close()
	check := g.name.Digest != "" && g.want == peer.Part{}
	right := !check
	var err error
	if file.Handed() && part.f != nil {
		err = g.copy(ctx, file, part, p)
		// The peer has compared what was copied, not what was there before.
		right = right || resumed == 0 && file.Verified
	} else {
		right, err = g.stream(ctx, file, part, p, check)
	}
	switch {
	case err != nil:
		return err
	case part.n != total:
		return blob.Errorf(blob.Unavailable, "read %s: %d of %d bytes came", g.out.name(), part.n, total)
	case !right && file.Handed() && part.f != nil:
		if right, err = part.has(g.name.Digest); err != nil {
			return err
		}
	}
	if !right {
		part.useless = true
		return blob.Errorf(blob.Corrupt, "check %s: what came does not have the digest %s", g.out.name(), g.name.Digest)
	}
	return nil
}

// copy has what the peer has copied to where it goes.
func (g *get) copy(ctx context.Context, file *peer.File, part *partFile, p *fileProgress) error {
	for {
		n, err := part.take(file)
		p.add(int(n))
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// stream writes what comes to where it goes and reports whether it has the digest it
// should, if that is to be checked.
func (g *get) stream(ctx context.Context, file *peer.File, part *partFile, p *fileProgress, check bool) (bool, error) {
	var w io.Writer = part
	var verifier digest.Verifier
	if check {
		verifier = g.name.Digest.Verifier()
		if err := part.copyTo(verifier); err != nil {
			return false, err
		}
		w = io.MultiWriter(part, verifier)
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := file.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return false, fmt.Errorf("write %s: %w", g.out.name(), err)
			}
			p.add(n)
		}
		switch {
		case err == io.EOF:
			return !check || verifier.Verified(), nil
		case err != nil:
			return false, err
		case ctx.Err() != nil:
			return false, ctx.Err()
		}
	}
}

// progress shows how what is called name gets on, if anybody looks.
func (g *get) progress(name string, done, total int64) *fileProgress {
	if g.f.quiet || g.f.json {
		return nil
	}
	return newFileProgress(g.a.stderr, name, done, total)
}

// giveUp leaves behind what another get can continue, and says how.
func (g *get) giveUp(ctx context.Context, part *partFile) {
	kept, err := part.abandon()
	if err != nil {
		g.say("%v", err)
	}
	if kept {
		what := "the same command"
		if ctx.Err() == nil {
			what = "the same command, once what failed is over,"
		}
		g.say("%s is kept in %s: %s continues it", formatBytes(part.n), part.path, what)
	}
}

// say tells the user something beside the result.
func (g *get) say(format string, args ...any) {
	if !g.f.quiet {
		fmt.Fprintf(g.a.stderr, "skimmer: "+format+"\n", args...)
	}
}

// interrupted makes sure that an error after the user's interrupt looks like
// one, whatever it was that noticed.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

func (g *get) report(r *gotten) error {
	if g.f.json {
		json := *g.a
		json.output = "json"
		return json.print(r, nil)
	}
	if g.f.quiet {
		return nil
	}
	to := g.a.stdout
	if g.f.output == "-" {
		to = g.a.stderr
	}
	what := g.out.name()
	if g.f.keep {
		what = "kept " + r.URL
	}
	_, err := fmt.Fprintf(to, "%s: %s in %s, %s/s\n", what, formatBytes(r.Bytes-r.Resumed),
		millis(time.Duration(r.Seconds*float64(time.Second))), formatBytes(int64(float64(r.Bytes-r.Resumed)/max(r.Seconds, 1e-9))))
	if err == nil && r.Peer {
		_, err = fmt.Fprintf(to, "from here %s, from peers %s, from the origin %s\n", formatBytes(r.Local), formatBytes(r.Peers), formatBytes(r.Origin))
	}
	if err == nil && r.Verified {
		_, err = fmt.Fprintf(to, "digest is right: %s\n", g.name.Digest)
	}
	return err
}
