package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cats.example/e2e/harness"
	"cats.example/local/issuer"
	"cats.example/local/stack"
)

// lowestFree is the number that the next file descriptor of a process gets.
func lowestFree(t *testing.T, pid int) uint64 {
	t.Helper()
	for n := uint64(0); ; n++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", pid, n)); errors.Is(err, os.ErrNotExist) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// open is how many file descriptors a process has.
func open(t *testing.T, pid int) uint64 {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return uint64(len(files))
}

// limitFiles has a process get no file descriptor of that number or above, until more
// is called. What it has stays.
func limitFiles(t *testing.T, pid int, number uint64) (more func()) {
	t.Helper()
	var had unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &had); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: number, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &had, nil); err != nil {
			t.Error(err)
		}
	}
}

// roomForNone is the number of the first descriptor that is not standard input,
// output or error: whatever a process closes, it gets no other.
const roomForNone = 3

func TestFaultsOfFileDescriptors(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	w := newWay(t, harness.Stack(t).Storage.URL)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: w.url(harness.Stack(t).Storage.URL)})
	kept := harness.Stack(t).Client()
	kept.Transport.(*http.Transport).IdleConnTimeout = time.Minute
	var more func()
	incident{
		name: "no file descriptors are left in the signer", sys: sys, inTurn: true, lone: true,
		begin: func() {
			w.down() // it needs new connections then
			w.up()
			more = limitFiles(t, sys.Signer.Pid(), roomForNone)
		},
		end:  func() { more() },
		says: []string{"storage_unavailable", "too many open files"},
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	mark := sys.Frontend.Log.Mark() // the listener says it once in a while, and may try just when the limit is set
	incident{
		name: "no file descriptors are left in the frontend", sys: sys, inTurn: true, lone: true, deletes: true,
		log: sys.Frontend.Log, asker: kept,
		begin: func() {
			if _, err := harness.TryWith(t.Context(), kept, http.MethodGet, sys.URL+"/service", "", nil); err != nil {
				t.Error(err)
			}
			more = limitFiles(t, sys.Frontend.Pid(), roomForNone)
		},
		end:  func() { more() },
		says: []string{"signer_unavailable", "too many open files"},
		told: 10 * time.Second, within: 20 * time.Second,
		meanwhile: func() { // new connections take the place of those at rest
			more()
			time.Sleep(2500 * time.Millisecond) // until ours are closed
			// No number below the limit is free, and none of a connection is above it.
			harness.Eventually(t, func() error {
				lowest, all := lowestFree(t, sys.Frontend.Pid()), open(t, sys.Frontend.Pid())
				if lowest != all {
					harness.Dial(t, sys)
					return fmt.Errorf("descriptor %d of %d is free", lowest, all)
				}
				return nil
			})
			harness.Dial(t, sys)
			time.Sleep(100 * time.Millisecond)
			more = limitFiles(t, sys.Frontend.Pid(), open(t, sys.Frontend.Pid()))
			defer harness.WaitForLog(t, sys.Frontend.Log, mark, `"level":"ERROR"`, "no file descriptor for a connection", `"fix":"raise the limit of open files`)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					a := harness.Do(t, http.MethodGet, sys.URL+"/cat/nobody", "", nil)
					if a.StatusCode != http.StatusNotFound {
						a.WantProblem(t, http.StatusServiceUnavailable, "signer_unavailable")
					}
				})
			}
			wg.Wait()
		},
	}.run(t)
}

// TestAStandWhoseLogsHaveNoRoomSaysSo has a full disk where the signer's log should be.
func TestAStandWhoseLogsHaveNoRoomSaysSo(t *testing.T) {
	harness.NeedStack(t)
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "logs", "signer.log")
	if err := errors.Join(os.Mkdir(filepath.Dir(log), 0o700), os.Symlink("/dev/full", log)); err != nil {
		t.Fatal(err)
	}
	opts := stack.SystemOptions{Dir: dir, Container: "e2e-full-disk", Frontend: filepath.Join(harness.BinDir(t), "frontend"), Signer: filepath.Join(harness.BinDir(t), "signer")}
	_, err := harness.Stack(t).StartSystem(t.Context(), opts)
	says := []string{"starting signer", "writing the log of signer", "no space left on device"}
	for _, part := range says {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Fatalf("it ended with %v, without %q", err, part)
		}
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	sys, err := harness.Stack(t).StartSystem(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	seen(t, "the disk is full: the local stand cannot keep a log", faultRow{"nothing: it does not start", "its end: " + strings.Join(says, " … "), rounded(took) + ", a new start"})
}

// rotating is the variable that has the test binary keep a federated token fresh in
// the folder that it names, as the stand does.
const rotating = "CATS_ROTATE_TOKEN"

func rotate(dir string) int {
	signal.Ignore(unix.SIGXFSZ)
	cluster, err := issuer.NewCluster("https://cluster.example.com")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	token, err := issuer.NewTokenFile(filepath.Join(dir, "token"), cluster, issuer.Federated{Subject: stack.Subject, Audience: issuer.Audience, Lifetime: 2 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	token.Run(context.Background(), slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	return 0
}

// TestATokenThatCannotBeRotatedStaysWhole takes away all room for files, as a full
// disk does, from the process that rotates the token.
func TestATokenThatCannotBeRotatedStaysWhole(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), rotating+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	said := func(what string) string {
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return lines.Text()
			}
		}
		t.Fatalf("no line of the output contains %q: %v", what, lines.Err())
		return ""
	}
	read := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "token"))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	said("federated token rotated")
	old := read()
	var had unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &had); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 0, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	says := []string{"writing the federated token"}
	line := cell(t, said("rotating the federated token failed"), says)
	said("rotating the federated token failed") // again, a second later
	if now := read(); now != old || strings.Count(now, ".") != 2 {
		t.Errorf("the token is %d bytes, and was %d", len(now), len(old))
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, &had, nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	said("federated token rotated")
	took := time.Since(began)
	if took > 5*time.Second || read() == old {
		t.Errorf("it was rotated %v after there was room, or not at all", took)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%d files are left (%v); want the token alone", len(files), err)
	}
	seen(t, "the disk is full: the federated token cannot be rotated", faultRow{"nothing while the old token lives, which stays whole", line, rounded(took)})
}
