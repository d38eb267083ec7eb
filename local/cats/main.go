// Command cats stores, fetches, links and deletes pictures by the public API.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // another one ends it at once
	os.Exit(run(ctx, os.Args[1:]))
}
