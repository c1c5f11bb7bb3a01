package lab

import "fmt"

// StargzMirror returns a configuration of the stock stargz snapshotter that puts
// a mirror of ours, host:port, before a registry, host:port, that speaks plain
// HTTP. It is what users of Dragonfly have but for the http:// before host:
// version 0.18.2 takes that for a part of the name, and asks the registry
// instead.
func StargzMirror(registry, mirror string) string {
	return fmt.Sprintf(`[[resolver.host.%q.mirrors]]
host = %q
insecure = true
[resolver.host.%q.mirrors.header]
X-Dragonfly-Registry = ["http://%s"]
`, registry, mirror, registry, registry)
}
