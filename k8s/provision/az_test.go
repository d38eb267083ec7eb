package provision

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/jmespath/go-jmespath"
)

// command is a command of testdata/az.txt.
type command struct {
	kind    string   // of the resource
	key     []string // the options that name the resource
	options []string
	result  string
}

// lookup returns the command with the name. ok is false if the Azure CLI has no such command.
func lookup(name string) (found command, ok bool) {
	text, err := os.ReadFile(os.Getenv("AZ_COMMANDS"))
	must(err)
	for line := range strings.Lines(string(text)) {
		f := strings.Split(line+"||||", "|")
		if strings.TrimSpace(f[0]) == name {
			options := strings.Fields(f[2] + f[3] + " --query --output --only-show-errors!")
			return command{strings.TrimSpace(f[1]), strings.Fields(f[2]), options, strings.TrimSpace(f[4])}, true
		}
	}
	return command{}, false
}

// az is the Azure CLI. Its resources are the files azure/KIND/NAME…/NAME.json. The file "answers/COMMAND" replaces the result of a
// command; "denied" is an error. The exit code is 3 for a missing resource.
func az() {
	args := os.Args[1:]
	words := slices.IndexFunc(append(args, "-"), func(a string) bool { return strings.HasPrefix(a, "-") })
	name, options := strings.Join(args[:words], " "), map[string]string{}
	known, ok := lookup(name)
	if !ok {
		reject()
	}
	for i := words; i < len(args); i++ {
		switch {
		case slices.Contains(known.options, args[i]+"!"):
			options[args[i]] = "true"
		case slices.Contains(known.options, args[i]) && i+1 < len(args):
			options[args[i]] = args[i+1]
			i++
		default:
			reject()
		}
	}
	if answer, changed := state("answers/" + name); changed {
		known.result = strings.TrimSpace(answer)
	}
	if known.result == "denied" {
		fmt.Fprintln(os.Stderr, "ERROR: (AuthorizationFailed)")
		os.Exit(1)
	}
	result := known.execute(name, options)
	if query := options["--query"]; query != "" {
		var err error
		if result, err = jmespath.Search(query, result); err != nil {
			reject()
		}
	}
	if options["--output"] == "tsv" {
		tsv(result)
	}
}

// tsv prints a line for each element of a list, with tabs between the elements of an inner list. It prints nothing for null.
func tsv(v any) {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	for _, row := range list {
		cells, ok := row.([]any)
		if !ok {
			cells = []any{row}
		}
		var texts []string
		for _, cell := range cells {
			texts = append(texts, strings.Replace(fmt.Sprint(cell), "<nil>", "None", 1))
		}
		fmt.Println(strings.Join(texts, "\t"))
	}
}

// resource returns a resource, and whether it exists.
func resource(key string) (content map[string]any, exists bool) {
	text, exists := state(key + ".json")
	if exists {
		must(json.Unmarshal([]byte(text), &content))
	}
	return content, exists
}

// execute runs a command and returns its result before --query.
func (c command) execute(name string, o map[string]string) (result any) {
	if c.result != "" {
		text := regexp.MustCompile(`\$(--[a-z-]+)`).ReplaceAllStringFunc(c.result, func(option string) string { return o[option[1:]] })
		must(json.Unmarshal([]byte(text), &result))
	}
	key := "azure/" + c.kind
	for _, option := range c.key {
		key += "/" + strings.TrimPrefix(o[option], "/")
	}
	content, exists := resource(key)
	switch action := path.Base(strings.ReplaceAll(name, " ", "/")); {
	case name == "aks get-credentials":
		kubeconfig, _ := state("credentials")
		must(os.WriteFile(o["--file"], []byte(kubeconfig), 0o600))
	case name == "group exists":
		return exists
	case action == "exists":
		return map[string]any{"exists": exists}
	case name == "resource list":
		return resources("azure/*/" + o["--resource-group"] + "/*.json")
	case name == "role assignment list":
		return assignments(key, o["--scope"], o["--include-inherited"] != "")
	case action == "list":
		return resources(key + "/*.json")
	case c.kind == "":
	case action == "create", action == "update":
		record(strings.Join(os.Args[1:], " "))
		content = result.(map[string]any)
		if tag, value, ok := strings.Cut(o["--tags"], "="); ok {
			content["tags"] = map[string]any{tag: value}
		}
		text, err := json.Marshal(content)
		must(err)
		write(key+".json", string(text))
	case action == "delete":
		record(strings.Join(os.Args[1:], " "))
		must(os.RemoveAll(filepath.Join(os.Getenv("WORK"), key+".json")))
	case exists: // show
		return content
	default:
		os.Exit(3)
	}
	return result
}

// resources returns the resources whose files match pattern.
func resources(pattern string) []any {
	found := []any{}
	work := os.Getenv("WORK") + "/"
	files, err := filepath.Glob(work + pattern)
	must(err)
	for _, file := range files {
		content, _ := resource(strings.TrimSuffix(strings.TrimPrefix(file, work), ".json"))
		found = append(found, content)
	}
	return found
}

// assignments returns the role assignments at a scope and, with inherited, at those above it.
func assignments(role, scope string, inherited bool) []any {
	found := []any{}
	for above := scope; above != "/"; above = path.Dir(above) {
		if _, exists := resource(role + above); exists && (inherited || above == scope) {
			found = append(found, map[string]any{"scope": above})
		}
	}
	return found
}
