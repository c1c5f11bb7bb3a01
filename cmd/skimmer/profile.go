package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"skimmer/internal/blob"
	"skimmer/internal/image/convert"
	"skimmer/internal/image/optimize"
	"skimmer/internal/image/profile"
	"skimmer/internal/peer"
)

func newProfileCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Show and move what nodes learned of how images start",
		Long: `Show, export, import and remove profiles: which parts of an image a start of it
reads, in order and with timing. By them, nodes fetch these parts before anybody
asks. A profile has no content of files and no names of any; it is learned when an
image starts and is of one image, named by its manifest's digest.

A digest may be cut short to what no other's begins with, with or without the
algorithm. The running peer is asked; where there is none, the files in its data
directory are used.`,
		Example: `  skimmer profile ls
  skimmer profile show 4355a46b19d3
  skimmer profile export 4355a46b19d3 python.profile`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newProfileListCommand(a), newProfileShowCommand(a), newProfileExportCommand(a),
		newProfileImportCommand(a), newProfileRemoveCommand(a), newProfilePushCommand(a),
	)
	return cmd
}

// profiles is where a node's profiles are.
type profiles interface {
	List(ctx context.Context) ([]profile.Info, error)
	Get(ctx context.Context, manifest digest.Digest) (profile.Profile, error)
	Put(ctx context.Context, p profile.Profile) error
	Remove(ctx context.Context, manifest digest.Digest) error
}

// profileFiles are those of a node that is not running.
type profileFiles struct{ dir *profile.Dir }

func (f profileFiles) List(context.Context) ([]profile.Info, error) { return f.dir.List() }

func (f profileFiles) Get(_ context.Context, manifest digest.Digest) (profile.Profile, error) {
	return f.dir.Get(manifest)
}

func (f profileFiles) Put(_ context.Context, p profile.Profile) error { return f.dir.Put(p) }

func (f profileFiles) Remove(_ context.Context, manifest digest.Digest) error {
	return f.dir.Remove(manifest)
}

// profileFlags are the flags by which commands find the node's profiles.
type profileFlags struct{ local localPeer }

func (f *profileFlags) register(cmd *cobra.Command) {
	f.local.socketFlag(cmd)
	cmd.Flags().StringVar(&f.local.dataDir, "data-dir", defaultDataDir, "where a peer that is not running keeps its data")
	_ = cmd.MarkFlagDirname("data-dir")
}

// open returns the node's profiles, with a list of them. Where no peer runs,
// write makes the directory if it is missing.
func (f *profileFlags) open(ctx context.Context, write bool) (profiles, []profile.Info, error) {
	c := peer.NewClient(f.local.socket).Profiles()
	list, err := c.List(ctx)
	if !errors.Is(err, peer.ErrNotRunning) {
		return c, list, err
	}
	path := peer.ProfileDir(f.local.dataDir)
	if _, serr := os.Stat(path); serr != nil && !write {
		return nil, nil, fmt.Errorf("%w, and there are no profiles in %s (--data-dir)", err, f.local.dataDir)
	}
	dir, err := profile.OpenDir(path)
	if err != nil {
		return nil, nil, err
	}
	list, err = dir.List()
	return profileFiles{dir}, list, err
}

// findProfile returns the manifest digest that name is the beginning of.
func findProfile(list []profile.Info, name string) (digest.Digest, error) {
	var found []digest.Digest
	for _, i := range list {
		if beginsWith(i.Manifest, name) {
			found = append(found, i.Manifest)
		}
	}
	switch len(found) {
	case 0:
		return "", blob.Errorf(blob.NotFound, "find profile %q: there is none that begins so", name)
	case 1:
		return found[0], nil
	}
	return "", blob.Errorf(blob.Invalid, "find profile %q: %d begin so: write more of it", name, len(found))
}

// get returns the profile that name is the beginning of the digest of.
func (f *profileFlags) get(ctx context.Context, name string) (profile.Profile, error) {
	kept, list, err := f.open(ctx, false)
	if err != nil {
		return profile.Profile{}, err
	}
	manifest, err := findProfile(list, name)
	if err != nil {
		return profile.Profile{}, err
	}
	return kept.Get(ctx, manifest)
}

func newProfileListCommand(a *app) *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the profiles of this node",
		Long: `List the profiles this node has, the one recorded last first: the image by its
manifest's digest, from how many starts it was learned, how many reads of how
many chunks it has, its size, and when the last start was.`,
		Example: `  skimmer profile ls
  skimmer profile ls --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, list, err := f.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) error { return printProfiles(w, list) })
		},
	}
	f.register(cmd)
	return cmd
}

func newProfileShowCommand(a *app) *cobra.Command {
	var f profileFlags
	var reads bool
	cmd := &cobra.Command{
		Use:   "show DIGEST",
		Short: "Show what a start of an image reads",
		Long: `Show a profile: its layers, with how many of their chunks a start reads, and how
these reads are spread over time, counted from when the image was asked for.
--reads lists each of them.`,
		Example: `  skimmer profile show 4355a46b19d3
  skimmer profile show --reads 4355a46b19d3
  skimmer profile show --output json 4355a46b19d3 | jq '.reads[0]'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: f.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := f.get(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(p, func(w io.Writer) error { return printProfile(w, p, reads) })
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&reads, "reads", false, "list every read")
	return cmd
}

func newProfileExportCommand(a *app) *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "export DIGEST [FILE]",
		Short: "Write a profile to a file",
		Long: `Write a profile to FILE, or to standard output, in the form in which nodes
exchange it; with --output json as a document for people. Both can be imported.`,
		Example: `  skimmer profile export 4355a46b19d3 python.profile
  skimmer profile export --output json 4355a46b19d3 > python.json`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: f.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := f.get(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			data, err := profile.Encode(p)
			if a.output == "json" {
				data, err = json.MarshalIndent(p, "", "  ")
				data = append(data, '\n')
			}
			if err != nil {
				return err
			}
			if len(args) == 1 || args[1] == "-" {
				_, err = a.stdout.Write(data)
			} else {
				err = os.WriteFile(args[1], data, 0o644)
			}
			if err != nil {
				return fmt.Errorf("export profile: %w", err)
			}
			return nil
		},
	}
	f.register(cmd)
	return cmd
}

func newProfileImportCommand(a *app) *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Keep profiles from files",
		Long: `Keep profiles that skimmer profile export or skimmer image optimize wrote, each in
place of the one its image had. - reads one from standard input. A file that is
damaged, or is no profile, is refused; those before it are kept.

The running peer offers them to the cluster, too, where each is merged with what
others learned; one that was removed there since it was recorded is not taken.`,
		Example: `  skimmer profile import python.profile node.json
  ssh other skimmer profile export 4355a46b19d3 | skimmer profile import -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.importProfiles(cmd.Context(), &f, args)
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) importProfiles(ctx context.Context, f *profileFlags, files []string) error {
	kept, _, err := f.open(ctx, true)
	if err != nil {
		return err
	}
	imported := []digest.Digest{}
	for _, name := range files {
		var p profile.Profile
		if p, err = readProfile(name, a.stdin); err == nil {
			err = kept.Put(ctx, p)
		}
		if err != nil {
			err = fmt.Errorf("import %s: %w", name, err)
			break
		}
		imported = append(imported, p.Manifest)
	}
	return errors.Join(err, a.printDigests("imported", imported))
}

// readProfile reads a profile in either form from a file; - is stdin.
func readProfile(name string, stdin io.Reader) (p profile.Profile, err error) {
	r := stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return p, err
		}
		defer file.Close()
		r = file
	}
	const limit = 4 << 20 // a document is larger than an encoding
	data, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return p, err
	}
	if strings.HasPrefix(strings.TrimSpace(string(data[:min(len(data), 64)])), "{") {
		err = json.Unmarshal(data, &p)
		return p, err
	}
	return profile.Decode(data)
}

// printDigests says what was done to which profiles.
func (a *app) printDigests(done string, all []digest.Digest) error {
	return a.print(map[string][]digest.Digest{done: all}, func(w io.Writer) error {
		for _, d := range all {
			if _, err := fmt.Fprintf(w, "%s %s\n", done, d); err != nil {
				return err
			}
		}
		return nil
	})
}

func newProfileRemoveCommand(a *app) *cobra.Command {
	var f profileFlags
	var all, cluster bool
	cmd := &cobra.Command{
		Use:     "rm DIGEST...",
		Aliases: []string{"remove"},
		Short:   "Remove profiles from this node, or from the cluster",
		Long: `Remove profiles from this node. Those the cluster or a registry has stay there,
and the node is given them at the next start; where they have none, what images
read is learned again when they start.

--cluster removes them from the schedulers, too, that this node's peer is
connected to; a whole digest may be of a profile that this node does not have.
Other nodes keep and use theirs. They offer them again only when they or a
scheduler begin anew. A scheduler remembers for a week what was removed, and takes
only what was recorded later: that is what a start read then, or, from a node that
begins anew, all it has learned until then. A scheduler that begins anew, or was
not connected, knows of no removal and takes what nodes have. What a registry has
stays there.`,
		Example: `  skimmer profile rm 4355a46b19d3
  skimmer profile rm --cluster 4355a46b19d3
  skimmer profile rm --all`,
		Args: func(_ *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("read arguments: name profiles by digest, or all with --all")
			}
			return nil
		},
		ValidArgsFunction: f.complete(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := f.named(cmd.Context(), args, all, cluster)
			if err != nil {
				return err
			}
			return a.removeProfiles(cmd.Context(), names)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "remove all that this node has")
	cmd.Flags().BoolVar(&cluster, "cluster", false, "remove them from the schedulers, too")
	return cmd
}

// toRemove is profiles, and how they are removed.
type toRemove struct {
	manifests []digest.Digest
	remove    func(ctx context.Context, manifest digest.Digest) error
}

// named returns the profiles that names are the beginnings of, or all.
func (f *profileFlags) named(ctx context.Context, names []string, all, cluster bool) (r toRemove, err error) {
	kept, list, err := f.open(ctx, false)
	if err != nil {
		return r, err
	}
	r.remove = kept.Remove
	if cluster {
		running, ok := kept.(peer.ProfileClient)
		if !ok {
			return r, fmt.Errorf("remove profiles from the cluster: %w at %s", peer.ErrNotRunning, f.local.socket)
		}
		r.remove = running.RemoveFromCluster
	}
	for _, name := range names {
		d, err := findProfile(list, name)
		if whole, werr := digest.Parse(name); cluster && werr == nil && blob.KindOf(err) == blob.NotFound {
			d, err = whole, nil
		}
		if err != nil {
			return r, err
		}
		r.manifests = append(r.manifests, d)
	}
	for _, i := range list {
		if all {
			r.manifests = append(r.manifests, i.Manifest)
		}
	}
	return r, nil
}

func (a *app) removeProfiles(ctx context.Context, r toRemove) (err error) {
	removed := []digest.Digest{}
	for _, d := range r.manifests {
		if err = r.remove(ctx, d); err != nil {
			break
		}
		removed = append(removed, d)
	}
	return errors.Join(err, a.printDigests("removed", removed))
}

func newProfilePushCommand(a *app) *cobra.Command {
	var f profileFlags
	var access imageFlags
	cmd := &cobra.Command{
		Use:   "push DIGEST IMAGE",
		Short: "Store a profile beside its image in a registry",
		Long: `Store a profile in the repository of IMAGE, as an OCI referrer of the manifest it
is of, so that a fresh cluster has it. The repository has to have that manifest;
it stays as it is. IMAGE's tag does not matter.`,
		Example:           `  skimmer profile push 4355a46b19d3 registry.example/python:3.12-esgz`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: f.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pushProfile(cmd.Context(), &f, args[0], args[1], access.access())
		},
	}
	f.register(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&access.plainHTTP, "plain-http", false, "speak plain HTTP to registries on other machines, too")
	fs.StringVar(&access.caFile, "ca-file", "", "trust the PEM certificates in `FILE` beside the system's")
	_ = cmd.MarkFlagFilename("ca-file")
	return cmd
}

func (a *app) pushProfile(ctx context.Context, f *profileFlags, name, image string, access convert.Access) error {
	n, err := convert.ParseRegistry(image)
	if err != nil {
		return err
	}
	p, err := f.get(ctx, name)
	if err != nil {
		return err
	}
	d, err := optimize.Attach(ctx, n, p, access)
	if err != nil {
		return err
	}
	result := map[string]digest.Digest{"manifest": p.Manifest, "attached": d}
	return a.print(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "profile of %s stored in %s: %s\n", p.Manifest, n.Repository(), d)
		return err
	})
}

// complete completes digests of profiles as the first n arguments, -1 for all.
func (f *profileFlags) complete(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		_, list, err := f.open(cmd.Context(), false)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []cobra.Completion
		for _, i := range list {
			if toComplete == "" || beginsWith(i.Manifest, toComplete) {
				names = append(names, cobra.CompletionWithDesc(i.Manifest.String(), i.Platform))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
