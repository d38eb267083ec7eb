package cats

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/creack/pty"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestProgressIsForTerminals(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	s := newShell(t, sys.URL)
	s.write("cat.png", harness.Picture(4<<20, 'a'))
	for _, c := range []struct {
		args  []string
		shown bool
	}{
		{[]string{"put", "mia", "cat.png"}, true},
		{[]string{"get", "mia", "--force"}, true},
		{[]string{"put", "mia", "cat.png", "--json"}, false},
		{[]string{"get", "mia", "--force", "--quiet"}, false},
	} {
		master, terminal, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		cmd := s.command(c.args...)
		cmd.Stderr = terminal
		err = cmd.Run()
		_ = terminal.Close()
		shown, _ := io.ReadAll(master) // its end is an error on Linux
		if err != nil || bytes.Contains(shown, []byte("mia")) != c.shown || !c.shown && len(shown) > 0 {
			t.Errorf("%q: %v, on the terminal %q", c.args, err, shown)
		}
	}
	if got := s.cats("put", "mia", "cat.png").want(t, 0); got.stderr != "" {
		t.Errorf("without a terminal: %q", got.stderr)
	}
}

func TestShellsCompleteTheCommand(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	s := newShell(t, "http://127.0.0.1:1")
	bash := func(line string) string {
		t.Helper()
		// Where Debian's package bash-completion has not been read, this stands for what
		// is used of it.
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", "-ec", `
			_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]}; prev=${COMP_WORDS[COMP_CWORD-1]}; words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; }
			compopt() { :; } # there is no completion under way
			source <(cats completion bash)
			complete -p cats >/dev/null
			COMP_LINE=$1; COMP_POINT=${#1}; COMP_TYPE=9
			read -ra COMP_WORDS <<<"$1"; [[ $1 != *' ' ]] || COMP_WORDS+=("")
			COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
			__start_cats
			echo "${COMPREPLY[@]}"`, "bash", line)
		cmd.Dir, cmd.Env = s.dir, s.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	for line, want := range map[string]string{"cats p": "put", "cats put --cr": "--create", "cats get ": "", "cats completion ba": "bash"} {
		if got := bash(line); got != want {
			t.Errorf("%q is completed by %q; want %q", line, got, want)
		}
	}
	for name, has := range map[string]string{"zsh": "compdef", "fish": "complete -c cats"} {
		if got := s.cats("completion", name).want(t, 0); !strings.Contains(got.out, has) {
			t.Errorf("%s: %d bytes without %q", name, len(got.out), has)
		}
	}
}
