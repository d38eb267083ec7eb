package provision

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/jmespath/go-jmespath"
)

// command is a command of testdata/az.txt.
type command struct {
	kind    string   // of the resource
	key     []string // the options that name the resource
	options []string
	result  string
}

var commands = sync.OnceValue(func() map[string]command {
	text, err := os.ReadFile("testdata/az.txt")
	if err != nil {
		panic(err)
	}
	all := map[string]command{}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(line+"||||", "|")
		options := strings.Fields(f[2] + f[3] + " --query --output --only-show-errors!")
		all[strings.TrimSpace(f[0])] = command{strings.TrimSpace(f[1]), strings.Fields(f[2]), options, strings.TrimSpace(f[4])}
	}
	return all
})

// az is the Azure CLI. The exit code is 2 for a command or an option that does not exist, and 3 for a missing resource.
func (c *cloud) az(args []string, out, errs io.Writer) (code int) {
	words := slices.IndexFunc(append(args, "-"), func(a string) bool { return strings.HasPrefix(a, "-") })
	name, options := strings.Join(args[:words], " "), map[string]string{}
	known, ok := commands()[name]
	for i := words; i < len(args); i++ {
		switch {
		case slices.Contains(known.options, args[i]+"!"):
			options[args[i]] = "true"
		case slices.Contains(known.options, args[i]) && i+1 < len(args):
			options[args[i]] = args[i+1]
			i++
		default:
			return 2
		}
	}
	if answer, changed := c.answers[name]; changed {
		known.result = answer
	}
	if !ok || known.result == "denied" {
		fmt.Fprintln(errs, "ERROR: (AuthorizationFailed)")
		return 1
	}
	result, code := c.execute(name, known, options, args)
	if query := options["--query"]; query != "" && code == 0 {
		var err error
		if result, err = jmespath.Search(query, plain(result)); err != nil {
			return 2
		}
	}
	if options["--output"] == "tsv" {
		tsv(out, result)
	}
	return code
}

// plain returns v as decoded from JSON.
func plain(v any) (decoded any) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &decoded)
	}
	if err != nil {
		panic(err)
	}
	return decoded
}

// tsv writes a line for each element of a list, with tabs between the elements of an inner list. It writes nothing for null.
func tsv(out io.Writer, v any) {
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
		fmt.Fprintln(out, strings.Join(texts, "\t"))
	}
}

// execute runs a command and returns its result before --query.
func (c *cloud) execute(name string, known command, o map[string]string, args []string) (result any, code int) {
	if known.result != "" {
		text := regexp.MustCompile(`\$(--[a-z-]+)`).ReplaceAllStringFunc(known.result, func(option string) string { return o[option[1:]] })
		if err := json.Unmarshal([]byte(text), &result); err != nil {
			panic(name + ": " + err.Error())
		}
	}
	key := known.kind
	for _, option := range known.key {
		key += "|" + o[option]
	}
	resource, exists := c.resources[key]
	words := strings.Fields(name)
	switch action := words[len(words)-1]; {
	case name == "aks get-credentials":
		if os.WriteFile(o["--file"], []byte(c.kubeconfig), 0o600) != nil {
			return nil, 1
		}
	case name == "group exists":
		return exists, 0
	case action == "exists":
		return map[string]bool{"exists": exists}, 0
	case action == "list":
		return c.list(known.kind, key, o), 0
	case known.kind == "":
	case action == "create", action == "update":
		c.commands = append(c.commands, strings.Join(args, " "))
		resource = result.(map[string]any)
		if tag, value, ok := strings.Cut(o["--tags"], "="); ok {
			resource["tags"] = map[string]string{tag: value}
		}
		c.resources[key] = resource
	case action == "delete":
		c.commands = append(c.commands, strings.Join(args, " "))
		delete(c.resources, key)
	case exists: // show
		return resource, 0
	default:
		return nil, 3
	}
	return result, 0
}

// list returns the resources whose key begins with key, or those of a resource group for kind "".
func (c *cloud) list(kind, key string, o map[string]string) []any {
	all := []any{}
	for k, resource := range c.resources {
		scope, under := strings.CutPrefix(k, key+"|")
		switch {
		case kind == "" && strings.Count(k, "|") == 2 && strings.Split(k, "|")[1] == o["--resource-group"],
			kind == "credential" && under:
			all = append(all, resource)
		case kind == "role" && under && (scope == o["--scope"] || o["--include-inherited"] != "" && strings.HasPrefix(o["--scope"], scope+"/")):
			all = append(all, map[string]string{"scope": scope})
		}
	}
	return all
}
