// Command local runs the whole system on one machine, for make run: a token
// issuer in place of Entra ID, Azurite in place of Blob Storage, and the real
// signer and frontend as separate processes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// stopSignals end the stand in good order; the last two come when the terminal
// or the reader of the output has gone.
var stopSignals = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE}

func main() {
	ctx, _ := signal.NotifyContext(context.Background(), stopSignals...) // caught to the very end
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "local:", err)
		os.Exit(1)
	}
}
