// Package cats tests the command cats.
package cats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// shell runs the command cats in a directory of its own.
type shell struct {
	t   *testing.T
	dir string
	env []string
}

func newShell(t *testing.T, server string, env ...string) *shell {
	t.Helper()
	dir := t.TempDir()
	return &shell{t, dir, append([]string{
		"GORACE=atexit_sleep_ms=0", "CATS_SERVER=" + server, "HOME=" + dir, "XDG_CACHE_HOME=" + filepath.Join(dir, "cache"),
		"PATH=" + harness.BinDir(t) + ":" + os.Getenv("PATH"),
	}, env...)}
}

func (s *shell) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), filepath.Join(harness.BinDir(s.t), "cats"), args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

// exited is a command that has ended.
type exited struct {
	code        int // bySignal if a signal ended it
	out, stderr string
}

const bySignal = -1

// run runs a command to its end. It calls during meanwhile, if it is not nil.
func (s *shell) run(cmd *exec.Cmd, during func(p *os.Process)) exited {
	s.t.Helper()
	var out, stderr strings.Builder
	cmd.WaitDelay = time.Second
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if during != nil {
		during(cmd.Process)
	}
	_ = cmd.Wait() // the exit code says more
	got := exited{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
	if strings.Contains(got.stderr, "sig=") || strings.Contains(got.out+got.stderr, "secret") || strings.Contains(got.stderr, "DATA RACE") {
		s.t.Errorf("%q prints %q, %q", cmd.Args, got.out, got.stderr)
	}
	return got
}

// with runs cats with this stdin.
func (s *shell) with(stdin io.Reader, args ...string) exited {
	s.t.Helper()
	cmd := s.command(args...)
	cmd.Stdin = stdin
	return s.run(cmd, nil)
}

func (s *shell) cats(args ...string) exited { s.t.Helper(); return s.with(nil, args...) }

// want checks the exit code and the parts of stderr, which has one line if the code is an error.
func (e exited) want(t *testing.T, code int, parts ...string) exited {
	t.Helper()
	if e.code != code || code > 0 && strings.Count(e.stderr, "\n") != 1 {
		t.Fatalf("exit code %d, stderr %q; want %d, and one line after an error", e.code, e.stderr, code)
	}
	for _, p := range parts {
		if !strings.Contains(e.stderr, p) {
			t.Errorf("stderr %q does not contain %q", e.stderr, p)
		}
	}
	return e
}

// keys returns the keys of the one JSON object on stdout.
func (e exited) keys(t *testing.T) string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(e.out), &object); err != nil || strings.Count(e.out, "\n") != 1 {
		t.Fatalf("stdout %q is not one JSON object: %v", e.out, err)
	}
	return strings.Join(slices.Sorted(maps.Keys(object)), " ")
}

func (s *shell) write(name string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// holds checks the content of a file.
func (s *shell) holds(name string, content []byte) {
	s.t.Helper()
	if got, err := os.ReadFile(filepath.Join(s.dir, name)); err != nil || !bytes.Equal(got, content) {
		s.t.Errorf("%s has %d bytes, other than the %d expected: %v", name, len(got), len(content), err)
	}
}

// files returns the names of the files that match a pattern in the directory.
func (s *shell) files(pattern string) []string {
	names, _ := filepath.Glob(filepath.Join(s.dir, pattern)) // all patterns are valid
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	return names
}

// savedUploads matches the files of uploads that can be continued.
const savedUploads = "cache/cats/*"

func TestCatsCommands(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL)
	s.write("cat.png", harness.Cat)
	s.cats("put", "Мурчик 2", "cat.png").want(t, 0)
	s.cats("get", "Мурчик 2").want(t, 0)
	s.holds("Мурчик 2.png", harness.Cat)
	other := append(bytes.Clone(harness.Cat), "another one"...)
	if got := s.with(bytes.NewReader(other), "put", "mia", "-", "--quiet").want(t, 0); got.out+got.stderr != "" {
		t.Errorf("--quiet prints %q, %q", got.out, got.stderr)
	}
	if got := s.cats("get", "mia", "-").want(t, 0); got.out != string(other) || got.stderr != "" {
		t.Errorf("%d bytes on stdout, stderr %q", len(got.out), got.stderr)
	}
	link := s.cats("url", "mia", "--ttl", "10m", "--download", "x.png").want(t, 0).out
	got := harness.Do(t, "GET", strings.TrimSpace(link), "", nil).Want(t, 200)
	if !bytes.Equal(got.Body, other) || !strings.Contains(got.Header.Get("Content-Disposition"), "x.png") {
		t.Errorf("the signed URL serves %d bytes, %v", len(got.Body), got.Header)
	}

	// get replaces no file without --force, and leaves none after an error.
	s.write("mia.png", []byte("mine"))
	s.cats("get", "mia").want(t, 6, "mia.png", "--force")
	s.cats("get", "mia", "mia.png").want(t, 6, "mia.png")
	s.holds("mia.png", []byte("mine"))
	s.cats("get", "mia", "--force").want(t, 0)
	s.holds("mia.png", other)
	s.cats("get", "nobody").want(t, 3)
	s.cats("get", "mia", "/dev/null").want(t, 0)
	if diff := cmp.Diff([]string{"cat.png", "mia.png", "Мурчик 2.png"}, append(s.files("*.*"), s.files(".*")...)); diff != "" {
		t.Error(diff)
	}

	const local = "code detail title type"
	for _, c := range []struct {
		args, keys string
		code       int
	}{
		{"put mia cat.png", "content_md5 content_type etag owner size", 0},
		{"get mia copy.png", "content_md5 content_type etag file owner size", 0},
		{"url mia", "content_md5 content_type etag expires_at owner picture_url size", 0},
		{"rm mia", "deleted owner", 0},
		{"rm mia", "code detail request_id status title type", 3},
		{"get mia cat.png", local, 6},
		{"mew", local, 2},
	} {
		if got := s.cats(append(strings.Fields(c.args), "--json")...).want(t, c.code).keys(t); got != c.keys {
			t.Errorf("%q prints the keys %s; want %s", c.args, got, c.keys)
		}
	}
	s.holds("copy.png", harness.Cat)

	// The scripts of all shells call __complete, whose last argument is incomplete.
	for args, part := range map[string]string{
		"completion bash": "complete -o default", "completion zsh": "compdef", "completion fish": "complete -c cats",
		"__complete put --cr": "--create", "__complete p": "put\t", "--version": "cats, version ",
	} {
		if got := s.cats(strings.Fields(args)...).want(t, 0); !strings.Contains(got.out, part) {
			t.Errorf("%q prints %d bytes without %q", args, len(got.out), part)
		}
	}
}

func TestCatsExitCodes(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL, "CATS_TOKEN=secret-token")
	s.write("cat.png", harness.Cat)
	s.write("text", []byte("no picture"))
	s.write("large.png", append(bytes.Clone(harness.Cat), make([]byte, 33<<20)...))
	etag := func(user string) string {
		harness.Put(t, sys, user, harness.Cat)
		return harness.Do(t, "GET", sys.URL+"/cat/"+user, "", nil).Header.Get("ETag")
	}
	p := harness.StartProvider(t, "0")
	auth := harness.Start(t, harness.WithAuthentication(p.Issuer, nil))
	for _, row := range harness.Table(t, "exit-codes.txt", "UNQUOTED", strings.Trim(etag("eve"), `"`), "QUOTED", etag("mia"),
		"AUTH", auth.URL, "STORAGE", harness.Stack(t).FrontURL) {
		command := strings.Fields(row[0])
		code, err := strconv.Atoi(command[0])
		if err != nil {
			t.Fatal(err)
		}
		for i, word := range command {
			command[i] = strings.ReplaceAll(word, "''", "")
		}
		s.cats(command[1:]...).want(t, code, row[1:]...)
	}
	harness.WantPicture(t, sys, "mia", harness.Cat)
	help, _, _ := strings.Cut(s.cats("--help").want(t, 0).out, "Usage:")
	for code := range 8 {
		if !strings.Contains(help, fmt.Sprintf("\n  %d  ", code)) {
			t.Errorf("the exit code %d is not in the help", code)
		}
	}

	mia := newShell(t, auth.URL, "CATS_TOKEN="+p.Token(t, "mia", harness.Audience))
	mia.write("cat.png", harness.Cat)
	mia.write("token", []byte(p.Token(t, "tom", harness.Audience)+"\n"))
	mia.cats("put", "mia", "cat.png").want(t, 0)
	mia.cats("get", "mia").want(t, 0)
	mia.cats("url", "tom").want(t, 5)
	mia.cats("put", "tom", "cat.png", "--token-file", "token").want(t, 0) // it overrides the variable
}
