//go:build cluster

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
)

// The tests create these namespaces with the label, and delete only namespaces that have the label. The overlay in testdata has the
// same names.
const (
	namespace  = "cats-api-test"
	monitoring = "cats-api-test-monitoring"
	label      = "cats-api.example/cluster-test"
	frontPort  = 30180 // node port of the Service azure-front
)

// pinContext sets KUBECONFIG to a copy of the current context, so that a change of the current context has no effect on the
// tests. unpin deletes the copy.
func pinContext(ctx context.Context) (unpin func(), err error) {
	config, err := kubectl(ctx, nil, "config", "view", "--minify", "--flatten", "--raw")
	if err != nil {
		return nil, fmt.Errorf("no cluster is selected; set KUBECONFIG: %w", err)
	}
	file, err := os.CreateTemp("", "kubeconfig-") // with mode 0600
	if err != nil {
		return nil, err
	}
	unpin = func() { _ = os.Remove(file.Name()) }
	_, err = file.WriteString(config + "\n")
	if err = errors.Join(err, file.Close(), os.Setenv("KUBECONFIG", file.Name())); err != nil {
		unpin()
		return nil, err
	}
	return unpin, nil
}

// preflight logs the cluster and returns the namespaces of the tests that exist. It returns an error if one of them does not have the
// label, or if another Service has the node port. It changes nothing.
func preflight(ctx context.Context) (existing []string, err error) {
	where, err := kubectl(ctx, nil, "config", "view", "--minify", "-o", "jsonpath=context {.current-context}, server {.clusters[0].cluster.server}")
	if err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	log.Printf("cluster: %s", where)
	for _, name := range []string{namespace, monitoring} {
		said, err := kubectl(ctx, nil, "get", "namespace", name, "--ignore-not-found", "-o", "json")
		if err != nil {
			return nil, fmt.Errorf("nothing was changed: %w", err)
		}
		if said == "" {
			continue
		}
		var ns struct {
			Metadata struct{ Labels map[string]string }
		}
		if err := json.Unmarshal([]byte(said), &ns); err != nil {
			return nil, fmt.Errorf("nothing was changed: namespace %s: %w", name, err)
		}
		if ns.Metadata.Labels[label] != "true" {
			return nil, fmt.Errorf("nothing was changed: the namespace %s exists in this cluster (%s) without the label %s=true. "+
				"The tests delete the namespace of this name. Delete it yourself, or set KUBECONFIG to another cluster", name, where, label)
		}
		existing = append(existing, name)
	}
	return existing, portFree(ctx)
}

// portFree returns an error if a Service in another namespace has the node port frontPort.
func portFree(ctx context.Context) error {
	said, err := kubectl(ctx, nil, "get", "services", "--all-namespaces", "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{range .spec.ports[*]} {.nodePort}{end}{"\n"}{end}`)
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	for line := range strings.Lines(said) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], namespace+"/") {
			continue
		}
		for _, port := range fields[1:] {
			if port == fmt.Sprint(frontPort) {
				return fmt.Errorf("nothing was changed: the Service %s has the node port %d, which the tests need. Give it another node port, or set KUBECONFIG to another cluster", fields[0], frontPort)
			}
		}
	}
	return nil
}

// down deletes the namespaces of the tests that exist.
func down(ctx context.Context) error {
	existing, err := preflight(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range existing {
		log.Printf("deleting the namespace %s", name)
		for _, args := range [][]string{
			// Delete the pods first. Otherwise the namespace waits for half of their grace period.
			{"--namespace", name, "delete", "deployments", "--all"},
			{"--namespace", name, "wait", "--for", "delete", "pods", "--all"},
			{"delete", "namespace", "--selector", label + "=true", "--field-selector", "metadata.name=" + name},
		} {
			_, err := kubectl(ctx, nil, append(args, "--timeout", "5m")...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
