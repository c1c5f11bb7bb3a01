package daemon

import (
	"fmt"
	"net"
	"os"
)

// notify tells the service manager that started this process its state, as
// sd_notify(3) describes: a datagram to the socket in $NOTIFY_SOCKET, of which
// a leading @ stands for the abstract namespace. Without the variable nobody
// wants to know. That it fails is logged, and no reason to stop.
func (g *Group) notify(state string) {
	if err := notify(os.Getenv("NOTIFY_SOCKET"), state); err != nil {
		g.log.Debug("could not tell the service manager", "state", state, "error", err)
	}
}

func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify %s: %w", socket, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify %s: %w", socket, err)
	}
	return nil
}
