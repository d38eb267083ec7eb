// Command local runs the whole system on one machine, for make run: the real frontend and signer as separate processes, Azurite in place
// of Blob Storage, and a token issuer in place of Entra ID.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// stopSignals stop the local stack. SIGHUP arrives when the terminal closes. SIGPIPE is not one of them: the kernel sends it for a write
// to any connection that the client has closed.
var stopSignals = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}

func main() {
	signal.Ignore(syscall.SIGPIPE)                                       // a write to a closed stdout returns EPIPE
	ctx, _ := signal.NotifyContext(context.Background(), stopSignals...) // until the process exits
	ctx, stop := context.WithCancel(ctx)
	err := run(ctx, os.Args[1:], os.Environ(), output{os.Stdout, stop})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "local:", err)
		os.Exit(1)
	}
}

// output calls closed when the reader of w has closed its end.
type output struct {
	w      io.Writer
	closed func()
}

func (o output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		o.closed()
	}
	return n, err // as an io.Writer
}
