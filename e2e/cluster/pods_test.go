//go:build cluster

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// errNoImage is returned if the image of a container cannot be pulled.
var errNoImage = errors.New("no image")

// get returns the object, or list, that kubectl get prints.
func get[T any](t *testing.T, args ...string) (object T) {
	t.Helper()
	if err := json.Unmarshal([]byte(do(t, append([]string{"get", "-o", "json"}, args...)...)), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

type podList struct{ Items []pod }

// pod has the fields of a pod that the tests use.
type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp *time.Time
	}
	Spec   struct{ InitContainers, Containers []container }
	Status struct {
		Conditions                               []condition
		InitContainerStatuses, ContainerStatuses []status
	}
}

type condition struct{ Type, Status, Reason, Message string }

type container struct {
	Name            string
	Env             []struct{ Name string }
	VolumeMounts    []struct{ Name, MountPath string }
	Resources       struct{ Limits struct{ Memory string } }
	SecurityContext struct{ RunAsUser int }
}

type status struct {
	Name         string
	Ready        bool
	RestartCount int
	State        struct {
		Waiting    *struct{ Reason, Message string }
		Terminated *ended
	}
	LastState struct{ Terminated *ended }
}

type ended struct {
	Reason, Message string
	ExitCode        int
}

// ourPods returns the pods of the service.
func ourPods(t *testing.T) []pod {
	t.Helper()
	return get[podList](t, "pods", "-l", "app.kubernetes.io/name=cats-api").Items
}

// statuses returns the statuses of the sidecars and the containers.
func statuses(p pod) []status {
	return slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
}

// containerOf returns the container or sidecar with the name, and its status.
func containerOf(t *testing.T, p pod, name string) (container, status) {
	t.Helper()
	containers, states := slices.Concat(p.Spec.InitContainers, p.Spec.Containers), statuses(p)
	c := slices.IndexFunc(containers, func(c container) bool { return c.Name == name })
	s := slices.IndexFunc(states, func(s status) bool { return s.Name == name })
	if c < 0 || s < 0 {
		t.Fatalf("pod %s has no container %s", p.Metadata.Name, name)
	}
	return containers[c], states[s]
}

// rolledOut waits until all pods of a deployment are new and ready. It returns early if a container cannot start. The error has the
// reasons of all pods that are not ready, and is errNoImage if an image cannot be pulled.
func rolledOut(ctx context.Context, namespace, deployment string) error {
	for deadline := time.Now().Add(ready); ; {
		_, err := kubectl(ctx, nil, "--namespace", namespace, "rollout", "status", "deployment/"+deployment, "--timeout", "2s")
		if err == nil {
			return nil
		}
		reasons, hopeless := unready(ctx, namespace)
		switch {
		case hopeless != nil:
			return fmt.Errorf("deployment %s: %w\n%s", deployment, hopeless, reasons)
		case time.Now().After(deadline):
			return fmt.Errorf("deployment %s after %v: %w\n%s", deployment, ready, err, reasons)
		}
	}
}

// unready returns why pods of a namespace are not ready, one line for each container. hopeless is an error if a container cannot start.
func unready(ctx context.Context, namespace string) (reasons string, hopeless error) {
	var lines []string
	said, err := kubectl(ctx, nil, "--namespace", namespace, "get", "deployments", "-o",
		`jsonpath={range .items[*]}{.metadata.name}{": "}{.status.conditions[?(@.type=="ReplicaFailure")].message}{"\n"}{end}`)
	for line := range strings.Lines(said) {
		if _, message, _ := strings.Cut(strings.TrimSpace(line), ": "); message != "" || err != nil {
			lines = append(lines, "deployment "+strings.TrimSpace(line))
		}
	}
	said, err = kubectl(ctx, nil, "--namespace", namespace, "get", "pods", "-o", "json")
	var list podList
	if err == nil {
		err = json.Unmarshal([]byte(said), &list)
	}
	if err != nil {
		return strings.Join(append(lines, err.Error()), "\n"), nil
	}
	for _, p := range list.Items {
		for _, c := range p.Status.Conditions {
			if c.Type == "PodScheduled" && c.Status != "True" {
				lines = append(lines, fmt.Sprintf("pod %s: %s: %s", p.Metadata.Name, c.Reason, c.Message))
			}
		}
		for _, s := range statuses(p) {
			if s.Ready {
				continue
			}
			reason, err := reasonOf(s)
			lines = append(lines, fmt.Sprintf("pod %s: %s: %s", p.Metadata.Name, s.Name, reason))
			if err != nil && hopeless == nil {
				hopeless = fmt.Errorf("%w: pod %s: %s", err, p.Metadata.Name, s.Name)
			}
		}
	}
	return strings.Join(lines, "\n"), hopeless
}

// reasonOf returns why a container is not ready. hopeless is an error if it cannot start.
func reasonOf(s status) (reason string, hopeless error) {
	reason = "running, but not ready"
	if w := s.State.Waiting; w != nil {
		reason = fmt.Sprintf("%s: %s", w.Reason, w.Message)
		switch w.Reason {
		case "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName":
			hopeless = errNoImage
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			hopeless = errors.New("the container cannot start")
		case "CrashLoopBackOff":
			if s.RestartCount >= 2 { // the first failure may be due to the order in which the deployments start
				hopeless = errors.New("the container keeps failing")
			}
		}
	} else if e := s.State.Terminated; e != nil {
		reason = fmt.Sprintf("exit code %d: %s", e.ExitCode, e.Message)
	}
	if last := s.LastState.Terminated; last != nil {
		reason += fmt.Sprintf("\n  it ended last with exit code %d (%s): %s", last.ExitCode, last.Reason, strings.TrimSpace(last.Message))
	}
	return reason, hopeless
}

// settled waits until exactly two pods exist and both are ready, and returns them by name.
func settled(t *testing.T) map[string]pod {
	t.Helper()
	var all map[string]pod
	eventually(t, func() error {
		all = map[string]pod{}
		for _, p := range ourPods(t) {
			all[p.Metadata.Name] = p
			isReady := func(c condition) bool { return c.Type == "Ready" && c.Status == "True" }
			if p.Metadata.DeletionTimestamp != nil || !slices.ContainsFunc(p.Status.Conditions, isReady) {
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
			reasons, _ := unready(t.Context(), namespace)
			t.Fatalf("after %v: %v\n%s", ready, err, reasons)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// inside runs a shell script in a debug container of p, with the user and the process namespace of a container: /proc/1/root is that
// container's file system. The images have no shell, so the script runs in Azurite's image.
func inside(t *testing.T, p pod, name, script string) string {
	t.Helper()
	c, _ := containerOf(t, p, name)
	file := filepath.Join(t.TempDir(), "security.json")
	security := fmt.Sprintf(`{"securityContext":{"runAsUser":%d,"runAsGroup":%[1]d,"runAsNonRoot":true,"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"}}}`,
		c.SecurityContext.RunAsUser)
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
