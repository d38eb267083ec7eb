// Command emulator stands for Azure in a Kubernetes cluster that has none. Beside
// Azurite, in one pod, it is the Entra ID that exchanges the cluster's own
// service-account tokens, the authority behind the TLS certificates of both, and
// a plain-HTTP front of the storage account for signed links.
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
