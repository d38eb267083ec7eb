//go:build cluster

// Package cluster tests the manifests on a real cluster without Azure. make cluster-test applies k8s/overlays/emulator to the cluster
// of KUBECONFIG, in two namespaces that it creates and deletes. The tests disrupt the pods, so none runs in parallel.
package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// The tests create these namespaces with the label, and delete only namespaces that have the label. The overlay in testdata has the
// same names.
const (
	namespace  = "cats-api-test"
	monitoring = "cats-api-test-monitoring"
	label      = "cats-api.example/cluster-test"
	ready      = 3 * time.Minute // timeout until started pods are ready
)

var (
	kubeContext string // a later change of the current context has no effect on the tests
	applied     string // output of kubectl apply
	api         string // the public API, through the Service's node port
	account     string // the storage account over HTTP, through the node port of azure-front
)

func TestMain(m *testing.M) {
	check := flag.Bool("check", false, "run no test; only check whether the tests can run on this cluster")
	flag.Parse()
	ctx := context.Background()
	err := preflight(ctx)
	if err == nil && !*check {
		err = up(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
	if !*check {
		os.Exit(harness.Main(m, func() error { return down(ctx) }))
	}
}

// preflight logs the cluster. It returns an error if one of the namespaces exists without the label. It changes nothing.
func preflight(ctx context.Context) (err error) {
	if kubeContext, err = kubectl(ctx, nil, "config", "current-context"); err != nil {
		return fmt.Errorf("no cluster is selected; set KUBECONFIG: %w", err)
	}
	log.Printf("cluster: context %s", kubeContext)
	foreign, err := kubectl(ctx, nil, "get", "namespaces", "--selector", label+"!=true", "-o", `jsonpath={.items[*].metadata.name}`)
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	for name := range strings.FieldsSeq(foreign) {
		if name == namespace || name == monitoring {
			return fmt.Errorf("nothing was changed: the namespace %s exists in this cluster (context %s) without the label %s=true. "+
				"The tests delete the namespace of this name. Delete it yourself, or set KUBECONFIG to another cluster", name, kubeContext, label)
		}
	}
	return nil
}

// up deletes the namespaces of an earlier run, applies the overlay and waits for its pods.
func up(ctx context.Context) (err error) {
	if err := down(ctx); err != nil {
		return err
	}
	// Not with apply, which would label an existing namespace of another owner.
	if _, err := kubectl(ctx, nil, "create", "--save-config", "-f", "testdata/namespaces.yaml"); err != nil {
		return err
	}
	if applied, err = kubectl(ctx, nil, "apply", "-k", "testdata/overlay"); err != nil {
		return err
	}
	for _, deployment := range []string{"azure", "cats-api"} {
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
	for service, address := range map[string]*string{"cats-api": &api, "azure-front": &account} {
		port, err := kubectl(ctx, nil, "get", "service", service, "-o", "jsonpath={.spec.ports[0].nodePort}")
		if err != nil {
			return err
		}
		*address = "http://" + node + ":" + port
	}
	return nil
}

// down deletes the namespaces of the tests. It deletes the pods first: otherwise a namespace waits for half of their grace period.
func down(ctx context.Context) error {
	var errs []error
	for _, name := range []string{namespace, monitoring} {
		for _, args := range [][]string{
			{"--namespace", name, "delete", "deployments", "--all"},
			{"--namespace", name, "wait", "--for", "delete", "pods", "--all"},
			{"delete", "namespace", "--selector", label + "=true", "--field-selector", "metadata.name=" + name},
		} {
			if _, err := kubectl(ctx, nil, append(args, "--timeout", "5m")...); err != nil && !strings.Contains(err.Error(), "no matching resources") {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// kubectl runs kubectl in the namespace and returns its output.
func kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--context=" + kubeContext, "--namespace=" + namespace}, args...)...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	output := strings.TrimSpace(string(out))
	if err != nil {
		return output, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, output)
	}
	return output, nil
}

// do runs kubectl and fails the test if that fails.
func do(t *testing.T, args ...string) string {
	t.Helper()
	output, err := kubectl(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// run runs a command in the checkout and fails the test if that fails.
func run(t *testing.T, environ []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = harness.Root(), append(os.Environ(), environ...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
