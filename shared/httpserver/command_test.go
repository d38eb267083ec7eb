package httpserver

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestArgumentsSelectTheCommand(t *testing.T) {
	program := Program{Name: "example", About: "about it", Settings: &struct{}{}, Command: Command{
		Name: "look", Help: "how to look",
		Run: func(_ context.Context, environ []string, stdout io.Writer) int {
			fmt.Fprint(stdout, "looked at ", environ)
			return 3
		},
	}}
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"look", 3, "looked at [A=1]", ""},
		{"look --help", 0, "how to look", ""},
		{"look -h", 0, "how to look", ""},
		{"--help", 0, "about it", ""},
		{"look closer", 2, "", "--help"},
		{"look --help --help", 2, "", "--help"},
		{"Look", 2, "", "--help"},
		{"--version look", 2, "", "--help"},
	} {
		var stdout, stderr strings.Builder
		code := program.runArguments(t.Context(), c.args, []string{"A=1"}, &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) ||
			(c.stdout == "") != (stdout.Len() == 0) || (c.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%s: %d, %q, %q; want %d, %q, %q", c.args, code, &stdout, &stderr, c.code, c.stdout, c.stderr)
		}
	}
}
