package provision

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"k8s.io/client-go/util/jsonpath"
)

// object is one of the cluster, as JSON has it.
type object map[string]any

func (o object) meta(name string) string { return fmt.Sprint(o["metadata"].(map[string]any)[name]) }

// replicaSet is one of cats-api.
func replicaSet(hash, revision string) object {
	return object{
		"kind": "replicaset",
		"metadata": map[string]any{
			"name": "cats-api-" + hash, "creationTimestamp": "2030-01-01T00:00:00Z",
			"labels":      map[string]any{"app.kubernetes.io/name": "cats-api", "pod-template-hash": hash},
			"annotations": map[string]any{"deployment.kubernetes.io/revision": revision},
		},
		"status": map[string]any{},
	}
}

// newPod is one of the replica set with the hash; signer is the status of its signer.
func newPod(name, hash, created string, signer map[string]any) object {
	signer["name"] = "signer"
	return object{
		"kind": "pod",
		"metadata": map[string]any{
			"name": name, "creationTimestamp": created, "labels": map[string]any{"app.kubernetes.io/name": "cats-api", "pod-template-hash": hash},
		},
		"status": map[string]any{"initContainerStatuses": []any{map[string]any{"name": "trust"}, signer}},
	}
}

// running is the status of a signer that runs.
func running() map[string]any {
	return map[string]any{"state": map[string]any{"running": map[string]any{"startedAt": "2030-01-01T00:00:00Z"}}}
}

// kubectl is that of the cluster whose credentials az gave.
func kubectl(args []string) (code int) {
	w := &world{Dir: os.Getenv("WORLD")}
	w.load()
	defer w.save()
	said := strings.Join(args, " ")
	if said == "version --client --output json" {
		fmt.Printf("{\n  \"clientVersion\": {\n    \"gitVersion\": \"%s\"\n  }\n}\n", cmp.Or(w.Kubectl, "v1.32.4-dispatcher"))
		return 0
	}
	if b, err := os.ReadFile(os.Getenv("KUBECONFIG")); err != nil || string(b) != "kubeconfig" {
		return unknown(w, "kubectl without the cluster's credentials", args)
	}
	switch {
	case args[0] == "apply" || slices.Contains(args, "delete"):
		c := call{Args: append([]string{"kubectl"}, args...)}
		if args[len(args)-1] == "-" {
			b, err := io.ReadAll(os.Stdin)
			if err != nil {
				panic(err)
			}
			c.Stdin = string(b)
		}
		w.Calls = append(w.Calls, c)
		fmt.Println("applied")
	case strings.Contains(said, "rollout status deployment/cats-api --timeout"):
		w.RolloutFails--
		if w.DoctorFails > 0 || w.RolloutFails >= 0 {
			fmt.Println("error: timed out waiting for the condition")
			return 1
		}
	case len(args) > 3 && args[2] == "exec" && strings.HasSuffix(said, " --container signer -- /signer doctor"):
		return w.doctor(args[3])
	case len(args) > 3 && args[2] == "logs":
		fmt.Println("the log of " + args[3])
	case strings.Contains(said, "get service cats-api"):
		fmt.Print("192.0.2.7")
	case len(args) > 2 && args[2] == "get":
		return w.get(args)
	default:
		return unknown(w, "kubectl", args)
	}
	return 0
}

// get prints objects as kubectl get does.
func (w *world) get(args []string) (code int) {
	option := map[string]string{"--selector": "", "--sort-by": "", "--output": "", "--namespace": ""}
	var words []string
	for i := 0; i < len(args); i++ {
		if _, known := option[args[i]]; known {
			option[args[i]] = args[i+1]
			i++
			continue
		}
		words = append(words, args[i])
	}
	kind, name, single := strings.Cut(strings.Join(words[1:], "/"), "/")
	var found []any
	for _, o := range w.Objects {
		all := o["kind"] == strings.TrimSuffix(kind, "s") && (!single || o.meta("name") == name)
		for pair := range strings.SplitSeq(option["--selector"], ",") {
			label, value, _ := strings.Cut(pair, "=")
			all = all && (label == "" || o["metadata"].(map[string]any)["labels"].(map[string]any)[label] == value)
		}
		if all {
			found = append(found, map[string]any(o))
		}
	}
	if option["--sort-by"] == ".metadata.creationTimestamp" {
		slices.SortStableFunc(found, func(a, b any) int {
			return cmp.Compare(object(a.(map[string]any)).meta("creationTimestamp"), object(b.(map[string]any)).meta("creationTimestamp"))
		})
	}
	template, isPath := strings.CutPrefix(option["--output"], "jsonpath=")
	if !isPath {
		for _, o := range found {
			fmt.Printf("%s/%s\n", strings.TrimSuffix(kind, "s"), object(o.(map[string]any)).meta("name"))
		}
		return 0
	}
	var data any = map[string]any{"items": append([]any{}, found...)}
	if single {
		if len(found) == 0 {
			fmt.Fprintf(os.Stderr, "Error from server (NotFound): %s %q not found\n", kind, name)
			return 1
		}
		data = found[0]
	}
	path := jsonpath.New("output").AllowMissingKeys(true)
	if err := path.Parse(template); err != nil {
		return unknown(w, "kubectl", args)
	}
	if err := path.Execute(os.Stdout, data); err != nil {
		return unknown(w, "kubectl", args)
	}
	return 0
}

// doctor runs signer doctor in a pod.
func (w *world) doctor(pod string) (code int) {
	w.Doctor = append(w.Doctor, pod)
	for _, o := range w.Objects {
		if "pod/"+o.meta("name") == pod && o["ends"] != nil {
			// The signer ends while the doctor runs.
			o["status"].(map[string]any)["initContainerStatuses"] = []any{o["ends"]}
			fmt.Fprintln(os.Stderr, "command terminated with exit code 137")
			return 137
		}
	}
	if w.DoctorFails > 0 {
		w.DoctorFails--
		fmt.Println("ok    settings    fine\nfail  exchange    AADSTS700213: no matching federated identity record")
		return 1
	}
	fmt.Println("all works")
	return 0
}
