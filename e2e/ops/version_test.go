package ops

import (
	"encoding/json"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestFirstLogLineHasTheVersion(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"GOMEMLIMIT": "100MiB"}}) // logged at the start, too
	type process struct{ name, log string }
	var all []process
	for name, p := range map[string]*stack.Process{"frontend": sys.Frontend, "signer": sys.Signer} {
		lines, err := p.Log.Since(0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, process{name, strings.Join(lines, "\n")})
	}
	for name, env := range map[string][]string{
		"frontend": {"AZURE_CLIENT_ID=x", "GOMEMLIMIT=100MiB"},
		"signer":   {"LOG_LEVEL=nonsense"},
	} {
		for _, env := range [][]string{nil, env, {"STALL_TIMEOUT=never", "OPS_ADDRESS=nowhere"}, {"OPS_ADDRESS=nowhere", "LOG_LEVEL=error"}} {
			if name == "frontend" && env == nil {
				continue // it would start
			}
			code, _, log := run(t, name, env)
			if code != 1 {
				t.Errorf("%s %q: exit code %d", name, env, code)
			}
			all = append(all, process{name, log})
		}
	}
	for _, p := range all {
		first, _, _ := strings.Cut(p.log, "\n")
		var line struct {
			Msg, Revision string
			Service       string `json:"service.name"`
			Version       string `json:"service.version"`
		}
		_, said, _ := run(t, p.name, nil, "--version")
		if err := json.Unmarshal([]byte(first), &line); err != nil || line.Msg != "starting" || line.Service != p.name || line.Version == "" ||
			line.Revision == "" || !strings.Contains(said, "revision: "+line.Revision+")") {
			t.Errorf("%s: the first line is %s, %v; --version says %s", p.name, first, err, said)
		}
	}
}
