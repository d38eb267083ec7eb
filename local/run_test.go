package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

func TestRunRejectsInvalidArguments(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		args, environ []string
		want          string // in the error; "" for none
	}{
		{[]string{"--help"}, nil, ""},
		{[]string{"--version"}, nil, ""},
		{[]string{"--fast"}, nil, "--fast"},
		{nil, []string{"SIGNER_PORT=mew"}, "SIGNER_PORT"},
		{nil, nil, "not in a checkout"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), c.args, c.environ, &out)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || c.want == "" && out.Len() == 0 {
			t.Errorf("%q %q: %v, output %q; want %q", c.args, c.environ, err, out.String(), c.want)
		}
	}
}

func TestPrometheusIsOptional(t *testing.T) {
	used := freePort(t)
	listen(t, "127.0.0.1", used)
	check := func(port int, want string) {
		t.Helper()
		var out bytes.Buffer
		l := &local{out: &out, cfg: settings{PrometheusPort: port}}
		l.startPrometheus(t.Context())
		lines := strings.Count(out.String(), "\n")
		if l.prometheus != nil || want == "" && lines > 0 || want != "" && (lines != 1 || !strings.Contains(out.String(), want)) {
			t.Errorf("port %d: output %q; want %q", port, out.String(), want)
		}
	}
	check(0, "")
	if _, err := exec.LookPath("prometheus"); err == nil {
		check(used, "is in use; continuing without it")
	}
	t.Setenv("PATH", t.TempDir())
	check(used, "not in PATH")
}
