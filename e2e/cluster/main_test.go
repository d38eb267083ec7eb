//go:build cluster

// Package cluster tests the manifests on a real cluster without Azure. make cluster-test applies k8s/overlays/emulator to the cluster
// of KUBECONFIG, in two namespaces that it creates and deletes. The tests disrupt the pods, so none runs in parallel.
package cluster

import (
	"context"
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
	ctx, code := context.Background(), 0
	unpin, err := pinContext(ctx)
	switch {
	case err != nil:
	case *check:
		defer unpin()
		_, err = preflight(ctx)
	default:
		defer unpin()
		if err = up(ctx); err != nil {
			break
		}
		if code = m.Run(); os.Getenv("KEEP") != "" {
			log.Printf("left in place: %s", api)
		} else {
			err = down(ctx)
		}
	}
	if err != nil {
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

// run runs a command in the checkout and logs its output.
func run(t *testing.T, environ []string, name string, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), environ...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s %s\n%s", name, strings.Join(args, " "), out)
	return err
}
