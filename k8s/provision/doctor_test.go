package provision

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDoctorRunsInANewPod(t *testing.T) {
	t.Parallel()
	const early, late = "2030-01-01T00:00:00Z", "2030-01-01T00:05:00Z"
	failing := func() map[string]any {
		return map[string]any{
			"state": map[string]any{"waiting": map[string]any{"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
			"lastState": map[string]any{"terminated": map[string]any{
				"exitCode": 1, "reason": "Error", "message": "AZURE_CLIENT_ID is empty",
			}},
		}
	}
	refused := replicaSet("two", "2")
	refused["status"] = map[string]any{"conditions": []any{map[string]any{"reason": "FailedCreate", "message": "failed calling webhook"}}}
	ends := newPod("two", "two", late, running())
	ends["ends"] = map[string]any{"name": "signer", "state": map[string]any{"terminated": map[string]any{"exitCode": 137, "reason": "OOMKilled"}}}
	for name, row := range map[string]struct {
		objects []object
		fails   int
		doctor  string // the pod in which it runs, "" for none
		says    []string
		code    int
	}{
		"one revision": {
			objects: []object{replicaSet("one", "1"), newPod("a", "one", early, running()), newPod("b", "one", late, running())},
			doctor:  "pod/b", says: []string{"all works"},
		},
		"a rollout": {
			objects: []object{replicaSet("one", "1"), replicaSet("two", "2"), newPod("old", "one", early, running()), newPod("new", "two", late, running())},
			doctor:  "pod/new", says: []string{"all works"},
		},
		"an old pod that was created later": {
			objects: []object{replicaSet("one", "1"), replicaSet("two", "2"), newPod("old", "one", late, running()), newPod("new", "two", early, running())},
			doctor:  "pod/new", says: []string{"all works"},
		},
		"revisions of two digits": {
			objects: []object{replicaSet("ten", "10"), replicaSet("nine", "9"), newPod("old", "nine", late, running()), newPod("new", "ten", early, running())},
			doctor:  "pod/new", says: []string{"all works"},
		},
		"an undone rollout": {
			objects: []object{replicaSet("one", "3"), replicaSet("two", "2"), newPod("bad", "two", late, running()), newPod("again", "one", late, running())},
			doctor:  "pod/again", says: []string{"all works"},
		},
		"a failure": {
			objects: []object{replicaSet("one", "1"), newPod("a", "one", early, running())}, fails: 1,
			doctor: "pod/a", says: []string{"fail  exchange"}, code: 1,
		},
		"a signer that failed": {
			objects: []object{replicaSet("one", "1"), replicaSet("two", "2"), newPod("old", "one", early, running()), newPod("new", "two", late, failing())},
			says:    []string{"pod/new does not run", "CrashLoopBackOff back-off 40s", "exit code 1 (Error)", "the log of pod/new"}, code: 1,
		},
		"a signer that ends meanwhile": {
			objects: []object{replicaSet("two", "2"), ends},
			doctor:  "pod/two", says: []string{"pod/two does not run", "exit code 137 (OOMKilled)", "the log of pod/two"}, code: 1,
		},
		"an image that is missing": {
			objects: []object{replicaSet("two", "2"), newPod("new", "two", late, map[string]any{"state": map[string]any{
				"waiting": map[string]any{"reason": "ImagePullBackOff", "message": "not found"},
			}})},
			says: []string{"pod/new does not run", "ImagePullBackOff not found"}, code: 1,
		},
		"pods that are refused": {
			objects: []object{replicaSet("one", "1"), newPod("old", "one", early, running()), refused},
			says:    []string{"cats-api-two has no pod", "FailedCreate: failed calling webhook"}, code: 1,
		},
		"nothing applied": {says: []string{"There is no ReplicaSet of cats-api"}, code: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Objects, w.DoctorFails = row.objects, row.fails
			kubeconfig := filepath.Join(w.Dir, "kubeconfig")
			if err := os.WriteFile(kubeconfig, []byte("kubeconfig"), 0o600); err != nil {
				t.Fatal(err)
			}
			code, said, _ := w.run(t, "", "../doctor.sh", []string{"KUBECONFIG=" + kubeconfig})
			var want []string
			if row.doctor != "" {
				want = []string{row.doctor}
			}
			if code != row.code || !slices.Equal(w.Doctor, want) {
				t.Errorf("exit code %d, in %q; want %d, in %q:\n%s", code, w.Doctor, row.code, want, said)
			}
			for _, part := range row.says {
				if !strings.Contains(said, part) {
					t.Errorf("%q is not said:\n%s", part, said)
				}
			}
		})
	}
}

func TestProvisionWaitsForTheNewPods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	// An old pod works, and the new one does not yet.
	w.Objects = append(w.Objects, replicaSet("two", "2"), newPod("new", "two", "2030-01-02T00:00:00Z", running()))
	w.Doctor, w.RolloutFails = nil, 2
	said, _ := w.provision(t, good)
	if strings.Count(said, "waiting, ") != 2 || !slices.Equal(w.Doctor, []string{"pod/new", "pod/new", "pod/new"}) {
		t.Errorf("the doctor ran in %q:\n%s", w.Doctor, said)
	}
}
