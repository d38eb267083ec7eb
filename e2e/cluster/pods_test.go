//go:build cluster

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// get returns the object, or list, that kubectl get prints.
func get[T any](t *testing.T, args ...string) (object T) {
	t.Helper()
	if err := json.Unmarshal([]byte(do(t, append([]string{"get", "-o", "json"}, args...)...)), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// pod has the fields of a pod that the tests use.
type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp *time.Time
	}
	Status struct {
		Conditions                               []struct{ Type, Status string }
		InitContainerStatuses, ContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name         string
	RestartCount int
	LastState    struct {
		Terminated *struct{ Reason, Message string }
	}
}

// ourPods returns the pods of the service.
func ourPods(t *testing.T) []pod {
	t.Helper()
	return get[struct{ Items []pod }](t, "pods", "-l", "app.kubernetes.io/name=cats-api").Items
}

// status returns the status of the container or sidecar with the name.
func status(t *testing.T, p pod, name string) containerStatus {
	t.Helper()
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("pod %s has no container %s", p.Metadata.Name, name)
	panic("unreachable")
}

// rolledOut waits until all pods of a deployment are new and ready. The error describes the pods.
func rolledOut(ctx context.Context, namespace, deployment string) error {
	_, err := kubectl(ctx, nil, "--namespace", namespace, "rollout", "status", "deployment/"+deployment, "--timeout", ready.String())
	if err != nil {
		described, _ := kubectl(ctx, nil, "--namespace", namespace, "describe", "pods")
		return fmt.Errorf("%w\n%s", err, described)
	}
	return nil
}

// settled waits until exactly two pods exist and both are ready, and returns them by name.
func settled(t *testing.T) map[string]pod {
	t.Helper()
	var all map[string]pod
	eventually(t, func() error {
		all = map[string]pod{}
		for _, p := range ourPods(t) {
			all[p.Metadata.Name] = p
			if p.Metadata.DeletionTimestamp != nil || !slices.Contains(p.Status.Conditions, struct{ Type, Status string }{"Ready", "True"}) {
				return fmt.Errorf("pod %s is not ready", p.Metadata.Name)
			}
		}
		if len(all) != 2 {
			return fmt.Errorf("%d pods; want 2", len(all))
		}
		return nil
	})
	return all
}

// onePod is settled, but returns one of the pods.
func onePod(t *testing.T) pod {
	t.Helper()
	for _, p := range settled(t) {
		return p
	}
	panic("unreachable")
}

// eventually waits until f returns nil.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(ready)
	for err := f(); err != nil; err = f() {
		if time.Now().After(deadline) {
			described, _ := kubectl(t.Context(), nil, "describe", "pods")
			t.Fatalf("after %v: %v\n%s", ready, err, described)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// inside runs a shell script in a debug container of p, with the user and the process namespace of a container: /proc/1/root is that
// container's file system. The images have no shell, so the script runs in Azurite's image.
func inside(t *testing.T, p pod, name, script string) string {
	t.Helper()
	const user = `{.spec.containers[?(@.name=="NAME")].securityContext.runAsUser}`
	path := strings.ReplaceAll("jsonpath="+user+strings.Replace(user, "containers", "initContainers", 1), "NAME", name)
	id := do(t, "get", "pod", p.Metadata.Name, "-o", path)
	file := filepath.Join(t.TempDir(), "security.json")
	security := fmt.Sprintf(`{"securityContext":{"runAsUser":%s,"runAsGroup":%[1]s,"runAsNonRoot":true,"allowPrivilegeEscalation":false,`+
		`"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"}}}`, id)
	if err := os.WriteFile(file, []byte(security), 0o600); err != nil {
		t.Fatal(err)
	}
	image := do(t, "get", "deployment", "azure", "-o", `jsonpath={.spec.template.spec.containers[?(@.name=="azurite")].image}`)
	debugger := fmt.Sprintf("debug-%d", time.Now().UnixNano())
	do(t, "debug", p.Metadata.Name, "--quiet", "--image", image, "--image-pull-policy", "IfNotPresent",
		"--target", name, "--profile", "restricted", "--custom", file, "--container", debugger, "--", "sh", "-c", script+"\necho end of script")
	var output string
	eventually(t, func() error {
		var err error
		output, err = kubectl(t.Context(), nil, "logs", p.Metadata.Name, "-c", debugger)
		if err == nil && !strings.HasSuffix(output, "end of script") {
			err = fmt.Errorf("the script beside %s of %s has not ended: %s", name, p.Metadata.Name, output)
		}
		return err
	})
	return strings.TrimSuffix(output, "end of script")
}

// lines returns the lines of text that have all parts.
func lines(text string, parts ...string) (found []string) {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
