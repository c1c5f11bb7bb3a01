// Command skimmer starts containers before their images have arrived and lets
// a cluster fetch each byte from the registry once.
//
// Every subcommand is a file of this package that turns flags and
// configuration into one of the packages under internal and runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := newRootCommand(newApp()).ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "skimmer: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "skimmer: %v\n", err)
		os.Exit(1)
	}
}
