//go:build cluster

// Package cluster tests the manifests on a real cluster without Azure. make cluster-test applies k8s/overlays/emulator to the cluster
// of KUBECONFIG, in two namespaces that it creates and deletes. The tests disrupt the pods, so none runs in parallel.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cats.example/local/stack"
)

const (
	overlay = "e2e/cluster/testdata/overlay"
	ourPods = "app.kubernetes.io/name=cats-api"
	ready   = 3 * time.Minute // timeout until started pods are ready
)

var (
	root    string // of the checkout
	applied string // output of kubectl apply
	api     string // the public API, through the Service's node port
	account string // the storage account over HTTP, through the node port of azure-front
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	check := flag.Bool("check", false, "run no test; only check whether the tests can run on this cluster")
	flag.Parse()
	unpin, err := pinContext(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	defer unpin()
	if *check {
		if _, err := preflight(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "cluster:", err)
			return 1
		}
		return 0
	}
	if err := up(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	code := m.Run()
	if os.Getenv("KEEP") != "" {
		log.Printf("left in place: %s", api)
		return code
	}
	if err := down(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	return code
}

// up deletes the namespaces of an earlier run, applies the overlay and waits for its pods.
func up(ctx context.Context) (err error) {
	if root, err = stack.FindRoot(); err != nil {
		return err
	}
	if err := down(ctx); err != nil {
		return err
	}
	// Not with apply, which would label an existing namespace of another owner.
	if _, err := kubectl(ctx, nil, "create", "--save-config", "-f", "testdata/namespaces.yaml"); err != nil {
		return err
	}
	log.Printf("kubectl apply -k %s", overlay)
	if applied, err = kubectl(ctx, nil, "apply", "-k", filepath.Join(root, overlay)); err != nil {
		return err
	}
	for _, deployment := range []string{"azure", "cats-api"} {
		log.Printf("waiting for %s", deployment)
		if err := rolledOut(ctx, namespace, deployment); err != nil {
			return err
		}
	}
	node := os.Getenv("NODE_ADDRESS")
	if node == "" {
		if node, err = kubectl(ctx, nil, "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`); err != nil {
			return err
		}
	}
	if api, err = nodePort(ctx, node, "cats-api"); err != nil {
		return err
	}
	account, err = nodePort(ctx, node, "azure-front")
	return err
}

func nodePort(ctx context.Context, node, service string) (string, error) {
	port, err := kubectl(ctx, nil, "get", "service", service, "-o", "jsonpath={.spec.ports[0].nodePort}")
	return "http://" + node + ":" + port, err
}

// kubectl runs kubectl in the namespace and returns its output.
func kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--namespace=" + namespace}, args...)...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	said := strings.TrimSpace(string(out))
	if err != nil {
		return said, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, said)
	}
	return said, nil
}

// do runs kubectl and fails the test if that fails.
func do(t *testing.T, args ...string) string {
	t.Helper()
	said, err := kubectl(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// pod has the fields of a pod that the tests use.
type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp *time.Time
	}
	Spec struct {
		ServiceAccountName string
		Volumes            []map[string]any
		InitContainers     []container
		Containers         []container
	}
	Status struct {
		Phase                 string
		Conditions            []struct{ Type, Status, Reason, Message string }
		InitContainerStatuses []status
		ContainerStatuses     []status
	}
}

type container struct {
	Name         string
	Env          []struct{ Name string }
	VolumeMounts []struct{ Name, MountPath string }
	Resources    struct{ Limits struct{ Memory string } }
	Security     struct{ RunAsUser int } `json:"securityContext"`
}

// container returns the container or sidecar with the name, and its status.
func (p pod) container(t *testing.T, name string) (container, status) {
	t.Helper()
	var c container
	var s status
	for _, each := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		if each.Name == name {
			c = each
		}
	}
	for _, each := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if each.Name == name {
			s = each
		}
	}
	if c.Name == "" || s.Name == "" {
		t.Fatalf("pod %s has no container %s", p.Metadata.Name, name)
	}
	return c, s
}

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True" && p.Metadata.DeletionTimestamp == nil
		}
	}
	return false
}

// pods returns the pods with the label.
func pods(t *testing.T, label string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	if err := json.Unmarshal([]byte(do(t, "get", "pods", "-l", label, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// inside runs a shell script in a debug container of p, with the user and the process namespace of a container: /proc/1/root is that
// container's file system. The images have no shell, so the script runs in Azurite's image.
func inside(t *testing.T, p pod, name, script string) string {
	t.Helper()
	c, _ := p.container(t, name)
	file := filepath.Join(t.TempDir(), "security.json")
	security := fmt.Sprintf(`{"securityContext":{"runAsUser":%d,"runAsGroup":%d,"runAsNonRoot":true,"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"}}}`,
		c.Security.RunAsUser, c.Security.RunAsUser)
	if err := os.WriteFile(file, []byte(security), 0o600); err != nil {
		t.Fatal(err)
	}
	debugger := fmt.Sprintf("debug-%d", time.Now().UnixNano())
	do(t, "debug", p.Metadata.Name, "--quiet", "--image", image(t, "azure", "azurite"), "--image-pull-policy", "IfNotPresent",
		"--target", name, "--profile", "restricted", "--custom", file, "--container", debugger, "--", "sh", "-c", script+"\necho end of script")
	var said string
	eventually(t, func() error {
		var err error
		said, err = kubectl(t.Context(), nil, "logs", p.Metadata.Name, "-c", debugger)
		if err == nil && !strings.HasSuffix(said, "end of script") {
			err = fmt.Errorf("the script beside %s of %s has not ended: %s", name, p.Metadata.Name, said)
		}
		return err
	})
	return strings.TrimSuffix(said, "end of script")
}

// image returns the image of a container of a deployment.
func image(t *testing.T, deployment, name string) string {
	t.Helper()
	return do(t, "get", "deployment", deployment, "-o", `jsonpath={.spec.template.spec.containers[?(@.name=="`+name+`")].image}`)
}

// lines returns the lines of text that have all parts.
func lines(text string, parts ...string) []string {
	var found []string
	for line := range strings.Lines(text) {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(line, part)
		}
		if all {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// run runs a command in the checkout and logs its output.
func run(t *testing.T, environ []string, name string, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), environ...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	t.Logf("%s %s\n%s", name, strings.Join(args, " "), out.String())
	return err
}
