// Command cats stores, fetches, links and deletes pictures by the public API.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// grace is how long a command has to end by itself, after a signal. What waits for a
// pipe that nobody writes to, or reads from, does not.
const grace = time.Second

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	caught, by := make(chan os.Signal, 1), make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as nohup has it
			signal.Notify(caught, s)
		}
	}
	go func() {
		s := <-caught
		by <- s
		signal.Reset() // another one ends it at once
		cancel()
		time.Sleep(grace)
		fmt.Fprintln(os.Stderr, "cats: interrupted")
		endBy(s)
	}()
	code := run(ctx, os.Args[1:])
	if ctx.Err() != nil && code != 0 {
		endBy(<-by)
	}
	os.Exit(code)
}

// endBy ends the process by a signal, so that whoever started it, such as a shell in a
// loop, sees that it did not end by itself.
func endBy(s os.Signal) {
	if self, err := os.FindProcess(os.Getpid()); err == nil && self.Signal(s) == nil {
		time.Sleep(time.Second)
	}
}
