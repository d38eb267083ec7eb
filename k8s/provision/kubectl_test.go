package provision

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"
)

// object is a ReplicaSet or a pod of the cluster.
type object struct {
	Kind, Name, Hash  string
	Revision, Created int
	Conditions        []any
	Signer            map[string]any // status of the container
	Ends              map[string]any // its status after the doctor has run
}

var running = map[string]any{"state": map[string]any{"running": map[string]any{"startedAt": "now"}}}

// fields returns the object as kubectl prints it.
func (o object) fields() any {
	signer := map[string]any{"name": "signer"}
	maps.Copy(signer, o.Signer)
	return plain(map[string]any{
		"metadata": map[string]any{
			"name": o.Name, "labels": map[string]any{"pod-template-hash": o.Hash},
			"annotations": map[string]any{"deployment.kubernetes.io/revision": fmt.Sprint(o.Revision)},
		},
		"status": map[string]any{"conditions": append([]any{}, o.Conditions...), "initContainerStatuses": []any{map[string]any{"name": "trust"}, signer}},
	})
}

// kubectl uses the cluster whose credentials az has written. The exit code is 2 for a command that the scripts must not use.
func (c *cloud) kubectl(args []string, kubeconfig, stdin string, out io.Writer) (code int) {
	line := strings.Join(args, " ")
	if line == "version --client --output json" {
		fmt.Fprintf(out, "{\n  \"clientVersion\": {\n    \"gitVersion\": \"v%s\"\n  }\n}\n", c.kubectlVersion)
		return 0
	}
	if b, err := os.ReadFile(kubeconfig); err != nil || string(b) != "kubeconfig" {
		return 2
	}
	switch {
	case args[0] == "apply" || slices.Contains(args, "delete"):
		c.commands, c.stdin = append(c.commands, "kubectl "+line), c.stdin+stdin
	case strings.Contains(line, "rollout status deployment/cats-api --timeout"):
		c.rolloutFails--
		if c.doctorFails > 0 || c.rolloutFails >= 0 {
			fmt.Fprintln(out, "error: timed out waiting for the condition")
			return 1
		}
	case strings.Contains(line, "get service cats-api"):
		fmt.Fprint(out, "192.0.2.7")
	case len(args) < 4:
		return 2
	case args[2] == "exec" && strings.HasSuffix(line, " --container signer -- /signer doctor"):
		return c.doctor(args[3], out)
	case args[2] == "logs":
		fmt.Fprintln(out, "the log of "+args[3])
	case args[2] == "get":
		return c.get(args[3:], out)
	default:
		return 2
	}
	return 0
}

// get is kubectl get.
func (c *cloud) get(args []string, out io.Writer) (code int) {
	name, format, path := strings.Replace(args[0], "/", " ", 1), args[len(args)-1], jsonpath.New("output").AllowMissingKeys(true)
	if len(args) == 4 && !strings.HasPrefix(args[1], "-") {
		name += " " + args[1]
	}
	kind, name, single := strings.Cut(name, " ")
	_, hash, _ := strings.Cut(strings.Join(args, " "), "app.kubernetes.io/name=cats-api,pod-template-hash=")
	hash, _, _ = strings.Cut(hash, " ")
	var found []object
	for _, o := range c.objects {
		if o.Kind == strings.TrimSuffix(kind, "s") && (!single || o.Name == name) && (hash == "" || o.Hash == hash) {
			found = append(found, o)
		}
	}
	if slices.Contains(args, ".metadata.creationTimestamp") {
		slices.SortStableFunc(found, func(a, b object) int { return cmp.Compare(a.Created, b.Created) })
	}
	if format == "name" {
		for _, o := range found {
			fmt.Fprintln(out, o.Kind+"/"+o.Name)
		}
		return 0
	}
	items := []any{}
	for _, o := range found {
		items = append(items, o.fields())
	}
	var data any = map[string]any{"items": items}
	if single {
		data = items[0]
	}
	if path.Parse(strings.TrimPrefix(format, "jsonpath=")) != nil || path.Execute(out, data) != nil {
		return 2
	}
	return 0
}

// doctor runs signer doctor in a pod.
func (c *cloud) doctor(pod string, out io.Writer) (code int) {
	c.doctorRanIn = append(c.doctorRanIn, pod)
	for i, o := range c.objects {
		if "pod/"+o.Name == pod && o.Ends != nil {
			c.objects[i].Signer = o.Ends
			return 137
		}
	}
	if c.doctorFails > 0 {
		c.doctorFails--
		fmt.Fprintln(out, "ok    settings    fine\nfail  exchange    AADSTS700213: no matching federated identity record")
		return 1
	}
	fmt.Fprintln(out, "no failure")
	return 0
}

func TestDoctorRunsInThePodOfTheLastRevision(t *testing.T) {
	t.Parallel()
	var cases []struct {
		Name    string
		Objects []object
		Fails   int
		Pod     string
		Code    int
		Output  []string
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "testdata/doctor.yaml")), &cases); err != nil || len(cases) != 9 {
		t.Fatalf("%d cases: %v", len(cases), err)
	}
	for _, row := range cases {
		t.Run(row.Name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			c.objects, c.doctorFails = row.Objects, row.Fails
			c.write("kubeconfig", "kubeconfig")
			r := c.run("../doctor.sh", []string{"KUBECONFIG=" + c.path("kubeconfig")})
			r.want(t, row.Code, nil, row.Output...)
			const stopped = "is not running"
			if strings.Contains(r.output, stopped) != strings.Contains(strings.Join(row.Output, ""), stopped) {
				t.Errorf("a running signer %s:\n%s", stopped, r.output)
			}
			if got := strings.Join(c.doctorRanIn, " "); got != row.Pod {
				t.Errorf("the doctor ran in %q; want %q", got, row.Pod)
			}
		})
	}
}
