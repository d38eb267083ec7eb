package provision

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"
)

// object is a ReplicaSet or a pod of the cluster, as in the file "cluster".
type object struct {
	Kind, Name, Hash  string
	Revision, Created int
	Conditions        []any
	Signer            map[string]any // status of the container
}

// fields returns the object as kubectl prints it.
func (o object) fields() map[string]any {
	signer := map[string]any{"name": "signer"}
	maps.Copy(signer, o.Signer)
	return map[string]any{
		"metadata": map[string]any{
			"name": o.Name, "labels": map[string]any{"pod-template-hash": o.Hash},
			"annotations": map[string]any{"deployment.kubernetes.io/revision": fmt.Sprint(o.Revision)},
		},
		"status": map[string]any{"conditions": o.Conditions, "initContainerStatuses": []any{map[string]any{"name": "trust"}, signer}},
	}
}

// kubectl uses the cluster whose credentials az has written. It rejects commands that the scripts must not use.
func kubectl() {
	args := os.Args[1:]
	line := strings.Join(args, " ")
	if line == "version --client --output json" {
		version, _ := state("kubectl-version")
		fmt.Printf("{\n  \"clientVersion\": {\n    \"gitVersion\": \"v%s\"\n  }\n}\n", strings.TrimSpace(version))
		return
	}
	if b, err := os.ReadFile(os.Getenv("KUBECONFIG")); err != nil || strings.TrimSpace(string(b)) != "kubeconfig" {
		reject()
	}
	switch {
	case args[0] == "apply" || slices.Contains(args, "delete"):
		record("kubectl " + line)
		if args[len(args)-1] == "-" {
			stdin, err := io.ReadAll(os.Stdin)
			must(err)
			write("applied", string(stdin))
		}
	case strings.Contains(line, "rollout status deployment/cats-api --timeout"):
		if failure := next("rollout"); failure != "" {
			fmt.Println(failure)
			os.Exit(1)
		}
	case strings.Contains(line, "get service cats-api"):
		fmt.Print("192.0.2.7")
	case len(args) >= 4 && args[2] == "exec" && strings.HasSuffix(line, " --container signer -- /signer doctor"):
		doctor(args[3])
	case len(args) >= 4 && args[2] == "logs":
		fmt.Println("the log of " + args[3])
	case len(args) >= 4 && args[2] == "get":
		get(args[3:])
	default:
		reject()
	}
}

// get is kubectl get.
func get(args []string) {
	name, format := strings.Replace(args[0], "/", " ", 1), args[len(args)-1]
	if len(args) == 4 && !strings.HasPrefix(args[1], "-") {
		name += " " + args[1]
	}
	kind, name, single := strings.Cut(name, " ")
	_, hash, _ := strings.Cut(strings.Join(args, " "), "app.kubernetes.io/name=cats-api,pod-template-hash=")
	hash, _, _ = strings.Cut(hash, " ")
	text, _ := state("cluster")
	var found []object
	must(yaml.UnmarshalStrict([]byte(text), &found))
	found = slices.DeleteFunc(found, func(o object) bool {
		return o.Kind != strings.TrimSuffix(kind, "s") || single && o.Name != name || hash != "" && o.Hash != hash
	})
	if slices.Contains(args, ".metadata.creationTimestamp") {
		slices.SortStableFunc(found, func(a, b object) int { return cmp.Compare(a.Created, b.Created) })
	}
	items := []any{}
	for _, o := range found {
		if format == "name" {
			fmt.Println(o.Kind + "/" + o.Name)
		}
		items = append(items, o.fields())
	}
	if format == "name" {
		return
	}
	var data any = map[string]any{"items": items}
	if single {
		data = items[0]
	}
	path := jsonpath.New("output").AllowMissingKeys(true)
	if path.Parse(strings.TrimPrefix(format, "jsonpath=")) != nil || path.Execute(os.Stdout, data) != nil {
		reject()
	}
}

// doctor runs signer doctor in a pod. Each line of the file "doctor" is a failure. With a file "cluster-after", the signer ends.
func doctor(pod string) {
	fmt.Println("doctor in " + pod)
	if after, ends := state("cluster-after"); ends {
		write("cluster", after)
		os.Exit(137)
	}
	if failure := next("doctor"); failure != "" {
		fmt.Println("ok    settings    fine\n" + failure)
		os.Exit(1)
	}
	fmt.Println("no failure")
}
