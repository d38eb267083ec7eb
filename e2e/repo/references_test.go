package repo

import (
	"cmp"
	"encoding/json"
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

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

var update = flag.Bool("update", false, "write docs/reference instead of comparing")

// reference compares docs/reference/NAME with content, or writes it with -update.
func reference(t *testing.T, name, content string) {
	t.Helper()
	path := harness.Root("docs", "reference", name)
	if *update {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(strings.Split(content, "\n"), strings.Split(read(t, path), "\n")); diff != "" {
		t.Errorf("docs/reference/%s is not current; run make docs (- code, + document):\n%s", name, diff)
	}
}

func TestSettingsReferenceIsCurrent(t *testing.T) {
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
	filter := func(name, other string, shared bool) []string {
		return slices.DeleteFunc(slices.Clone(rows[name]), func(row string) bool { return slices.Contains(rows[other], row) != shared })
	}
	var b strings.Builder
	b.WriteString(`# Settings

For platform engineers. This page lists every setting of both containers, which read them from environment variables. It is generated: ` + "`make docs`" + ` writes it from the programs' ` + "`--help`" + `.
[deploy.md](../deploy.md#change-a-setting) says where to put a setting.
`)
	for _, table := range []struct {
		heading string
		rows    []string
	}{
		{"Both containers", filter("frontend", "signer", true)},
		{"Frontend", filter("frontend", "signer", false)},
		{"Signer", filter("signer", "frontend", false)},
	} {
		if len(table.rows) < 4 {
			t.Fatalf("%s: %d settings", table.heading, len(table.rows))
		}
		fmt.Fprintf(&b, "\n## %s\n\n| variable | default | meaning |\n| --- | --- | --- |\n%s", table.heading, strings.Join(table.rows, ""))
	}
	b.WriteString(`
In the signer, ` + "`STALL_TIMEOUT`" + ` counts three times and ` + "`MAX_UPLOADS`" + ` one and a half times, so that the frontend rejects a client first. The Go runtime keeps to 60 % of the container's memory limit unless ` + "`GOMEMLIMIT`" + ` is set.
Traces use the variables of OpenTelemetry: [observability.md](../observability.md#traces).
`)
	reference(t, "settings.md", b.String())
}

func TestMetricsReferenceIsCurrent(t *testing.T) {
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "x", harness.Cat)
	harness.Do(t, "GET", sys.URL+"/cat/x", "", nil).Want(t, 200)
	var b strings.Builder
	b.WriteString(`# Metrics

For operators. This page lists the metrics of both containers. It is generated: ` + "`make docs`" + ` writes it from ` + "`/metrics`" + ` of a running system. The metrics of the Go runtime and the process (` + "`go_…`, `process_…`" + `) are not listed.
`)
	for _, c := range []struct{ heading, ops string }{{"Frontend", sys.FrontendOps}, {"Signer", sys.SignerOps}} {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n", c.heading)
		var rows []string
		for name, f := range harness.Families(t, c.ops) {
			if !strings.HasPrefix(name, "cats_") {
				continue
			}
			labels := map[string]bool{}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() != model.BucketLabel {
						labels[l.GetName()] = true
					}
				}
			}
			rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), quoted(labels), f.GetHelp()))
		}
		if len(rows) < 8 {
			t.Fatalf("%s: %d metrics", c.heading, len(rows))
		}
		slices.Sort(rows)
		b.WriteString(strings.Join(rows, ""))
	}
	reference(t, "metrics.md", b.String())
}

type parameter struct {
	Ref                   string `json:"$ref"`
	Name, In, Description string
}

type operation struct {
	Summary, Description string
	Parameters           []parameter
	Responses            map[string]struct {
		Ref string `json:"$ref"`
	}
}

func TestAPIReferenceIsCurrent(t *testing.T) {
	var doc struct {
		Paths map[string]struct {
			Parameters             []parameter
			Get, Put, Post, Delete *operation
		}
		Components struct {
			Parameters map[string]parameter
			Responses  map[string]struct {
				Description string
				Content     map[string]struct{ Examples map[string]any }
			}
			Examples map[string]struct {
				Value struct {
					Status       int
					Code, Detail string
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(read(t, harness.Root("frontend", "internal", "web", "openapi.json"))), &doc); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(`# API reference

For developers of clients. This page lists every call with its parameters and responses. It is generated: ` + "`make docs`" + ` writes it from the OpenAPI document, which each service has at ` + "`/openapi.json`" + ` and, to try the calls, at ` + "`/docs`" + `.
The [API guide](../api.md) explains the concepts. ` + "`HEAD`" + ` works wherever ` + "`GET`" + ` does.
`)
	inline := func(s string) string { return strings.ReplaceAll(s, "\n", " ") }
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := doc.Paths[path]
		for i, op := range []*operation{item.Get, item.Put, item.Post, item.Delete} {
			if op == nil {
				continue
			}
			fmt.Fprintf(&b, "\n## `%s %s`\n\n%s.", []string{"GET", "PUT", "POST", "DELETE"}[i], path, strings.TrimSuffix(op.Summary, "."))
			if op.Description != "" {
				b.WriteString(" " + inline(op.Description))
			}
			b.WriteString("\n")
			if parameters := slices.Concat(item.Parameters, op.Parameters); len(parameters) > 0 {
				b.WriteString("\n| parameter | in | meaning |\n| --- | --- | --- |\n")
				for _, p := range parameters {
					if p.Ref != "" {
						p = doc.Components.Parameters[filepath.Base(p.Ref)]
					}
					fmt.Fprintf(&b, "| `%s` | %s | %s |\n", p.Name, p.In, inline(p.Description))
				}
			}
			b.WriteString("\n| status | meaning | codes |\n| --- | --- | --- |\n")
			for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
				r, ok := doc.Components.Responses[filepath.Base(op.Responses[status].Ref)]
				if !ok {
					t.Fatalf("%s: no component for %s", path, status)
				}
				fmt.Fprintf(&b, "| %s | %s | %s |\n", status, inline(r.Description), quoted(r.Content["application/problem+json"].Examples))
			}
		}
	}
	b.WriteString("\n## Error codes\n\n| code | status | example of `detail` |\n| --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(doc.Components.Examples)) {
		if e := doc.Components.Examples[name].Value; e.Code != "" {
			fmt.Fprintf(&b, "| `%s` | %d | %s |\n", e.Code, e.Status, e.Detail)
		}
	}
	reference(t, "api.md", b.String())
}

// quoted returns the sorted keys of m as Markdown.
func quoted[V any](m map[string]V) string {
	keys := slices.Sorted(maps.Keys(m))
	for i := range keys {
		keys[i] = "`" + keys[i] + "`"
	}
	return strings.Join(keys, ", ")
}
