// Command cats stores, fetches, links and deletes pictures by the public API.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	caught, by := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		by <- <-caught
		signal.Reset() // another one ends it at once
		cancel()
	}()
	code := run(ctx, os.Args[1:])
	if ctx.Err() != nil && code != 0 {
		endBy(<-by)
	}
	os.Exit(code)
}

// endBy ends the process by a signal, where there are any, so that whoever started it,
// such as a shell in a loop, sees that it did not end by itself.
func endBy(s os.Signal) {
	if self, err := os.FindProcess(os.Getpid()); err == nil && self.Signal(s) == nil {
		time.Sleep(time.Second)
	}
}
