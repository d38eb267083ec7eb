package provision

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// without returns the settings but for the named one.
func without(environ []string, name string) (rest []string) {
	for _, e := range environ {
		if !strings.HasPrefix(e, name+"=") {
			rest = append(rest, e)
		}
	}
	return rest
}

func TestProvisionNeedsAChoiceOfAuthentication(t *testing.T) {
	t.Parallel()
	const on = "  - ../../components/callers"
	for name, row := range map[string]struct {
		environ string // ANONYMOUS_ACCESS, or nothing
		file    string // its line in settings.env
		callers string // the component's line in kustomization.yaml, "" as shipped
		kubectl string
		fault   string // "" for none
		written string // the line in settings.env afterwards
	}{
		"no choice":                        {fault: "neither authentication nor anonymous access is chosen"},
		"an empty variable":                {environ: "ANONYMOUS_ACCESS=", fault: "neither authentication nor anonymous access is chosen"},
		"false":                            {environ: "ANONYMOUS_ACCESS=false", fault: "neither authentication nor anonymous access is chosen"},
		"an empty line":                    {file: "ANONYMOUS_ACCESS=", fault: "neither authentication nor anonymous access is chosen"},
		"false in the file":                {file: "ANONYMOUS_ACCESS=false", fault: "neither authentication nor anonymous access is chosen"},
		"another value":                    {environ: "ANONYMOUS_ACCESS=yes", fault: "ANONYMOUS_ACCESS is 'yes'"},
		"quotes in the file":               {file: `ANONYMOUS_ACCESS="true"`, fault: `settings.env is '"true"'`},
		"true":                             {environ: "ANONYMOUS_ACCESS=true", written: "ANONYMOUS_ACCESS=true"},
		"true in the file":                 {file: "ANONYMOUS_ACCESS=true", written: "ANONYMOUS_ACCESS=true"},
		"true in a file of Windows":        {file: "ANONYMOUS_ACCESS=true\r", written: "ANONYMOUS_ACCESS=true\r"},
		"the variable before the file":     {environ: "ANONYMOUS_ACCESS=true", file: "ANONYMOUS_ACCESS=false", written: "ANONYMOUS_ACCESS=true"},
		"the variable turns it off":        {environ: "ANONYMOUS_ACCESS=false", file: "ANONYMOUS_ACCESS=true", fault: "neither authentication nor anonymous access is chosen"},
		"callers":                          {callers: on, written: "# ANONYMOUS_ACCESS=true"},
		"callers in quotes":                {callers: `- "../../components/callers" # tokens`, written: "# ANONYMOUS_ACCESS=true"},
		"callers with a kubectl of 1.30":   {callers: on, kubectl: "v1.30.2", written: "ANONYMOUS_ACCESS=false"},
		"callers, and false in the file":   {callers: on, file: "ANONYMOUS_ACCESS=false", written: "ANONYMOUS_ACCESS=false"},
		"callers, and false":               {environ: "ANONYMOUS_ACCESS=false", callers: on, written: "ANONYMOUS_ACCESS=false"},
		"both":                             {environ: "ANONYMOUS_ACCESS=true", callers: on, fault: "choose one of both"},
		"both in the files":                {file: "ANONYMOUS_ACCESS=true", callers: on, fault: "choose one of both"},
		"callers commented without spaces": {callers: "#- ../../components/callers", fault: "neither authentication nor anonymous access is chosen"},
		"a component of a similar name":    {callers: "  - ../../components/callers-of-mine", fault: "neither authentication nor anonymous access is chosen"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Kubectl = row.kubectl
			rewrite(t, w.overlay("settings.env"), `(?m)^# ANONYMOUS_ACCESS=.*$`, row.file)
			rewrite(t, w.overlay("kustomization.yaml"), `(?m)^ +# - \.\./\.\./components/callers.*$`, row.callers)
			before := read(t, w.overlay("settings.env"))
			code, said, changes := w.run(t, "", "provision.sh", append(without(good, "ANONYMOUS_ACCESS"), strings.Fields(row.environ)...))
			after := read(t, w.overlay("settings.env"))
			if row.fault != "" {
				if code != 1 || len(changes) > 0 || after != before || !strings.Contains(said, "Nothing was changed") || !strings.Contains(said, row.fault) {
					t.Errorf("exit code %d, changes %q; want %q:\n%s", code, changes, row.fault, said)
				}
				return
			}
			if code != 0 {
				t.Fatalf("exit code %d:\n%s", code, said)
			}
			if got := regexp.MustCompile(`(?m)^.*ANONYMOUS_ACCESS=.*$`).FindAllString(after, -1); len(got) != 1 || got[0] != row.written {
				t.Errorf("settings.env has %q; want %q", got, row.written)
			}
		})
	}
}

// rewrite replaces what matches pattern in a file; not when with is empty.
func rewrite(t *testing.T, path, pattern, with string) {
	t.Helper()
	if with == "" {
		return
	}
	re, text := regexp.MustCompile(pattern), read(t, path)
	if !re.MatchString(text) {
		t.Fatalf("%s has no %s", path, pattern)
	}
	if err := os.WriteFile(path, []byte(re.ReplaceAllLiteralString(text, with)), 0o600); err != nil {
		t.Fatal(err)
	}
}
