package cats

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A read or write of an idle pipe does not keep a signal from ending the command. nohup starts it with SIGHUP ignored.
func TestCatsEndsBySignal(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	arrived := make(chan struct{}, 1)
	s := newShell(t, harness.FaultProxy(t, sys.URL, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Method == http.MethodPut {
			begin := make([]byte, 4<<10)
			_, _ = io.ReadFull(r.Body, begin)
			arrived <- struct{}{}
			if r.ContentLength > 0 {
				_, _ = io.Copy(io.Discard, r.Body) // until the client closes the connection
				panic(http.ErrAbortHandler)
			}
			r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(begin), r.Body))
		}
		healthy.ServeHTTP(w, r)
	}))
	s.write("new.png", harness.Picture(8<<20, 'n'))
	other := append(bytes.Clone(harness.Cat), 1)
	for _, c := range []struct {
		args   string
		signal syscall.Signal
		code   int
		part   string
	}{
		{"put mia new.png", syscall.SIGINT, bySignal, "starts from the beginning"},
		{"put mia -", syscall.SIGINT, bySignal, "interrupted"},
		{"get mia -", syscall.SIGTERM, bySignal, "interrupted"}, // 64 of 235 KB fit in the pipe
		{"put mia -", syscall.SIGHUP, 0, ""},
	} {
		stdin, in := pipe(t)
		out, stdout := pipe(t)
		cmd := s.command(strings.Fields(c.args)...)
		cmd.Args, cmd.Path = append([]string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...), "/bin/sh"
		if cmd.Stdin = stdin; c.args == "get mia -" {
			cmd.Stdout = stdout
		}
		s.run(cmd, func(p *os.Process) {
			if c.args == "get mia -" {
				_, _ = out.Read(make([]byte, 1))
			} else {
				_, _ = in.Write(other[:5<<10])
				<-arrived
			}
			if _ = p.Signal(c.signal); c.code == 0 {
				_, _ = in.Write(other[5<<10:])
				_ = in.Close()
			}
		}).want(t, c.code, c.part)
		if c.code == 0 {
			harness.WantPicture(t, sys, "mia", other)
		} else {
			harness.WantPicture(t, sys, "mia", harness.Cat)
		}
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// A terminal shows the progress, and never a picture.
func TestCatsOnTerminal(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL)
	s.write("cat.png", harness.Picture(4<<20, 'a'))
	if got := s.cats("put", "mia", "cat.png").want(t, 0); got.stderr != "" {
		t.Errorf("without a terminal: %q", got.stderr)
	}
	for args, code := range map[string]int{
		"put mia cat.png": 0, "get mia --force": 0, "put mia cat.png --json": 0, "get mia --force --quiet": 0,
		"get mia -": 2, "get mia /dev/stdout": 2, "get mia TERMINAL": 2,
	} {
		master, terminal, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		cmd := s.command(strings.Fields(strings.Replace(args, "TERMINAL", terminal.Name(), 1))...)
		if code == 0 {
			cmd.Stderr = terminal
		} else {
			cmd.Stdout = terminal
		}
		shown := make(chan string)
		go func() {
			text, _ := io.ReadAll(master) // at its end Linux returns an error
			shown <- string(text)
		}()
		got := s.run(cmd, nil).want(t, code)
		_ = terminal.Close()
		progress := code == 0 && !strings.Contains(args, "--json") && !strings.Contains(args, "--quiet")
		text := <-shown
		if strings.Contains(text, "mia") != progress || !progress && text != "" || strings.Contains(got.stderr, "terminal") != (code == 2) {
			t.Errorf("%s: the terminal gets %q, stderr %q", args, text, got.stderr)
		}
		master.Close()
	}
}
