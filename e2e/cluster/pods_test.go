//go:build cluster

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// errNoImage is returned if the image of a container cannot be pulled.
var errNoImage = errors.New("no image")

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
	var list struct{ Items []pod }
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
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if s.Ready {
				continue
			}
			reason, err := s.reason()
			lines = append(lines, fmt.Sprintf("pod %s: %s: %s", p.Metadata.Name, s.Name, reason))
			if err != nil && hopeless == nil {
				hopeless = fmt.Errorf("%w: pod %s: %s", err, p.Metadata.Name, s.Name)
			}
		}
	}
	return strings.Join(lines, "\n"), hopeless
}

// status is the state of a container.
type status struct {
	Name         string
	Ready        bool
	RestartCount int
	State        struct {
		Running    *struct{}
		Waiting    *struct{ Reason, Message string }
		Terminated *ended
	}
	LastState struct{ Terminated *ended }
}

type ended struct {
	Reason   string
	ExitCode int
	Message  string
}

// reason returns why the container is not ready. hopeless is an error if it cannot start.
func (s status) reason() (reason string, hopeless error) {
	reason = "running, but not ready"
	switch {
	case s.State.Waiting != nil:
		reason = fmt.Sprintf("%s: %s", s.State.Waiting.Reason, s.State.Waiting.Message)
		switch {
		case slices.Contains([]string{"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}, s.State.Waiting.Reason):
			hopeless = errNoImage
		case slices.Contains([]string{"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}, s.State.Waiting.Reason):
			hopeless = errors.New("the container cannot start")
		// The first failure may be due to the order in which the deployments start.
		case s.State.Waiting.Reason == "CrashLoopBackOff" && s.RestartCount >= 2:
			hopeless = errors.New("the container keeps failing")
		}
	case s.State.Terminated != nil:
		reason = fmt.Sprintf("exit code %d: %s", s.State.Terminated.ExitCode, s.State.Terminated.Message)
	}
	if last := s.LastState.Terminated; last != nil {
		reason += fmt.Sprintf("\n  it ended last with exit code %d (%s): %s", last.ExitCode, last.Reason, strings.TrimSpace(last.Message))
	}
	return reason, hopeless
}

// settled waits until there are exactly two pods, both ready.
func settled(t *testing.T) []pod {
	t.Helper()
	var all []pod
	eventually(t, func() error {
		all = pods(t, ourPods)
		for _, p := range all {
			if !p.ready() {
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
