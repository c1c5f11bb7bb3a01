package scheduler

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"skimmer/internal/blob"
)

func TestEveryKindHasACode(t *testing.T) {
	for _, k := range blob.Kinds() {
		code, ok := statusCodes[k]
		if !ok || code == codes.OK {
			t.Errorf("no code for %v", k)
		}
		if got := status.Convert(statusOf(blob.Errorf(k, "read x: y"))); got.Code() != code || got.Message() != "read x: y" {
			t.Errorf("%v is sent as %v", k, got)
		}
	}
}

func TestReachable(t *testing.T) {
	for _, c := range []struct{ addr, host, want string }{
		{":4000", "10.0.0.1", "10.0.0.1:4000"},
		{"0.0.0.0:4000", "fd00::1", "[fd00::1]:4000"},
		{"[::]:4000", "10.0.0.1", "10.0.0.1:4000"},
		{"node.test:4000", "10.0.0.1", "node.test:4000"},
		{"10.0.0.2:4000", "10.0.0.1", "10.0.0.2:4000"},
		{":4000", "", ":4000"},
		{"nonsense", "10.0.0.1", "nonsense"},
	} {
		if got := reachable(c.addr, c.host); got != c.want {
			t.Errorf("address %q seen from %q is %q, want %q", c.addr, c.host, got, c.want)
		}
	}
}
