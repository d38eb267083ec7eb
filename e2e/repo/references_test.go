package repo

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	gocmp "github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

var update = flag.Bool("update", false, "write docs/reference instead of comparing")

// section is a section of settings.md.
type section struct {
	Heading string
	Rows    []string
}

// settings returns the settings of both programs, from --help.
func settings(t *testing.T) []section {
	t.Helper()
	entry := regexp.MustCompile(`(?m)^  ([A-Z_]+)(?:=(\S+)| \((required)\))?\n      (.+)$`)
	rows := map[string][]string{}
	for _, name := range []string{"frontend", "signer"} {
		help, err := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(t), name), "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range entry.FindAllStringSubmatch(string(help), -1) {
			value := cmp.Or(m[3], "–")
			if m[2] != "" {
				value = "`" + strings.ReplaceAll(m[2], ",", "` `") + "`"
			}
			rows[name] = append(rows[name], fmt.Sprintf("| `%s` | %s | %s |\n", m[1], value, m[4]))
		}
	}
	both := func(row string) bool {
		return slices.Contains(rows["frontend"], row) && slices.Contains(rows["signer"], row)
	}
	onlyFrontend := func(row string) bool { return !both(row) }
	return []section{
		{"Both containers", slices.DeleteFunc(slices.Clone(rows["frontend"]), onlyFrontend)},
		{"Frontend", slices.DeleteFunc(slices.Clone(rows["frontend"]), both)},
		{"Signer", slices.DeleteFunc(slices.Clone(rows["signer"]), both)},
	}
}

// metrics returns the metrics of both programs by program and name.
func metrics(t *testing.T) map[string]map[string]*dto.MetricFamily {
	t.Helper()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "x", harness.Cat)
	harness.Link(t, sys, "x", "")
	all := map[string]map[string]*dto.MetricFamily{"Frontend": harness.Families(t, sys.FrontendOps), "Signer": harness.Families(t, sys.SignerOps)}
	for _, families := range all {
		maps.DeleteFunc(families, func(name string, _ *dto.MetricFamily) bool { return !strings.HasPrefix(name, "cats_") })
	}
	return all
}

var functions = template.FuncMap{
	"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
	"methods": func() []string { return []string{"get", "put", "post", "delete"} },
	"inline":  func(text string) string { return strings.ReplaceAll(text, "\n", " ") },
	"dot":     func(text string) string { return strings.TrimSuffix(text, ".") + "." },
	"concat": func(a, b any) []any {
		first, _ := a.([]any)
		second, _ := b.([]any)
		return slices.Concat(first, second)
	},
	// resolve returns the object that a $ref of an OpenAPI document names.
	"resolve": func(doc any, object map[string]any) any {
		ref, ok := object["$ref"].(string)
		if !ok {
			return object
		}
		for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
			doc = doc.(map[string]any)[name]
		}
		return doc
	},
	"examples": func(response map[string]any) map[string]any {
		content, _ := response["content"].(map[string]any)
		problem, _ := content["application/problem+json"].(map[string]any)
		examples, _ := problem["examples"].(map[string]any)
		return examples
	},
	"labels": func(f *dto.MetricFamily) map[string]any {
		labels := map[string]any{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		delete(labels, model.BucketLabel)
		return labels
	},
	// quoted returns the names as Markdown.
	"quoted": func(names map[string]any) string {
		text := strings.Join(slices.Sorted(maps.Keys(names)), "`, `")
		return strings.ReplaceAll("`"+text+"`", "``", "")
	},
}

// docs/reference/NAME is testdata/NAME.tmpl with data of the programs.
func TestReferenceIsCurrent(t *testing.T) {
	for name, data := range map[string]any{
		"settings.md": settings(t),
		"metrics.md":  metrics(t),
		"api.md":      parse[map[string]any](t, harness.Root("frontend", "internal", "web", "openapi.json")),
	} {
		var text strings.Builder
		page := template.Must(template.New(name + ".tmpl").Funcs(functions).ParseFiles("testdata/" + name + ".tmpl"))
		if err := page.Execute(&text, data); err != nil {
			t.Fatal(err)
		}
		path := harness.Root("docs", "reference", name)
		if *update {
			if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if diff := gocmp.Diff(strings.Split(text.String(), "\n"), strings.Split(read(t, path), "\n")); diff != "" {
			t.Errorf("docs/reference/%s is not current; run make docs (- code, + document):\n%s", name, diff)
		}
	}
}
