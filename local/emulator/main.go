// Command emulator replaces Azure in a Kubernetes cluster. It runs in a pod beside Azurite and has three parts: a token issuer in place of
// Entra ID, which exchanges the cluster's service account tokens; the TLS certificate of both; and a plain HTTP listener that serves signed
// URLs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "emulator:", err)
		os.Exit(1)
	}
}
