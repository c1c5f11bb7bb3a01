package testkit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// Ports that are asked for by number lie below those that the kernel gives to
// whoever does not care, 32768 and up.
const firstPort, lastPort = 12_000, 31_999

// FreePort returns a TCP port at which nobody listens, for a program that has to
// be told one. Until the test ends no other test gets it, in this process or
// another, nor does anybody who takes any port.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		// The name is nobody else's while this is open. It leaves no file.
		claim, err := net.Listen("unix", fmt.Sprintf("@skimmer-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			claim.Close() // somebody's who does not know of claims
			continue
		}
		t.Cleanup(func() { claim.Close() })
		if err := l.Close(); err != nil {
			t.Fatalf("free port %d: %v", port, err)
		}
		return port
	}
	t.Fatal("find a free port: there is none")
	return 0
}
