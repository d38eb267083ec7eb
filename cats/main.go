// Command cats stores, downloads, links and deletes pictures through the public API of a cats-api.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// gracePeriod is the time that a command has to end after a signal. A read or write of an idle pipe does not end by then.
const gracePeriod = time.Second

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	caught, ending := make(chan os.Signal, 1), make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // nohup ignores SIGHUP
			signal.Notify(caught, s)
		}
	}
	go func() {
		s := <-caught
		ending <- s
		signal.Reset() // a second signal ends the process at once
		cancel()
		time.Sleep(gracePeriod)
		fmt.Fprintln(os.Stderr, "cats: interrupted")
		endBy(s)
	}()
	code := run(ctx, os.Args[1:])
	if ctx.Err() != nil && code != 0 {
		endBy(<-ending)
	}
	os.Exit(code)
}

// endBy ends the process by a signal, so that its parent, such as a loop in a shell, can end too.
func endBy(s os.Signal) {
	_ = syscall.Kill(os.Getpid(), s.(syscall.Signal)) // a process may always signal itself
	time.Sleep(time.Second)
}
