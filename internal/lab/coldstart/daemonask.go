package coldstart

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"skimmer/internal/image/trace"
)

const (
	// maxAnswer limits what a daemon answers, in bytes.
	maxAnswer = 64 << 20
	// profileLimit is how long a node may take, after a start, to write its
	// profile: reading has to settle first.
	profileLimit = 20 * time.Second
)

// ask asks the node's daemon for what its control socket has at path.
func (n *node) ask(ctx context.Context, path string, out any) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.control)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the node for %s: %w", path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the node for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the node for %s: it answered %s", path, resp.Status)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("ask the node for %s: %w", path, err)
	}
	return nil
}

// phases returns where the time of an image's latest start went; nil where the
// daemon does not say.
func (n *node) phases(ctx context.Context, image Image) *Phases {
	if n.control == "" {
		return nil
	}
	var starts []trace.Start
	if err := n.ask(ctx, "/v1/traces?"+url.Values{"name": {image.Digest.String()}}.Encode(), &starts); err != nil || len(starts) == 0 {
		n.log.Warn("the node has no trace of the start", "image", image.Name, "error", err)
		return nil
	}
	s := starts[len(starts)-1]
	return &Phases{Profile: s.Profile, Read: s.Read, Inflated: s.Inflated, Fetched: s.Fetched, Sums: s.Sums()}
}

// fromPeers returns how many bytes other nodes have sent to this one.
func (n *node) fromPeers(ctx context.Context) (int64, error) {
	if n.control == "" {
		return 0, nil
	}
	var s status
	err := n.ask(ctx, "/v1/status", &s)
	return s.fromPeers(), err
}

// profile waits until the node has written the profile of an image, and returns
// the name of its file.
func (n *node) profile(ctx context.Context, image Image) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, profileLimit)
	defer cancel()
	pattern := filepath.Join(n.data, "profiles", "sha256", image.Digest.Encoded()+"*")
	for {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return found[0], nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return "", fmt.Errorf("wait for the profile of %s: %w: the node has written none after %v", image.Name, err, profileLimit)
		}
	}
}

// giveProfiles puts profiles where the node's daemon finds them.
func (n *node) giveProfiles(from string) error {
	if from == "" {
		return nil
	}
	dir := filepath.Join(n.data, "profiles")
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("give node profiles: %w", err)
	}
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		return fmt.Errorf("give node profiles: %w", err)
	}
	return nil
}
