package provision

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTeardownTakesAwayWhatWasMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	if code, said, changes := w.run(t, "n\n", "teardown.sh", good); code != 1 || len(changes) > 0 || !strings.Contains(said, "Go on?") {
		t.Errorf("not wanted: %d, %q\n%s", code, changes, said)
	}
	if code, said, changes := w.run(t, "", "teardown.sh", good, "--dry-run"); code != 0 || len(changes) > 0 || !strings.Contains(said, "az aks delete") {
		t.Errorf("dry: %d, %q\n%s", code, changes, said)
	}
	_, said, changes := w.run(t, "y\n", "teardown.sh", good)
	want := []string{"identity federated-credential delete", "role assignment delete", "role assignment delete", "identity delete", "aks delete"}
	if diff := cmp.Diff(want, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	if !strings.Contains(said, "--delete-pictures") {
		t.Errorf("the pictures:\n%s", said)
	}
	_, said, changes = w.run(t, "", "teardown.sh", good, "--yes", "--delete-pictures")
	if diff := cmp.Diff([]string{"storage account delete", "group delete"}, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	if code, said, changes := w.run(t, "", "teardown.sh", good, "--yes", "--delete-pictures"); code != 0 || len(changes) > 0 || !strings.Contains(said, "nothing to do") {
		t.Errorf("again: %d, %q\n%s", code, changes, said)
	}
}

func TestTeardownLeavesWhatWasThereBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	for _, kind := range []string{"group|my(group)", "identity|my(group)|cats-api", "cluster|my(group)|cats-api", "account|my(group)|davydscats"} {
		w.Things[kind]["tags"] = nil
	}
	_, said, changes := w.run(t, "", "teardown.sh", good, "--yes", "--delete-pictures")
	want := []string{
		"kubectl --namespace cats-api delete deployment cats-api --ignore-not-found", "kubectl delete namespace cats-api --ignore-not-found",
		"identity federated-credential delete", "role assignment delete", "role assignment delete",
	}
	if diff := cmp.Diff(want, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
}

func TestTeardownOfOneClusterLeavesTheIdentityToTheOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	w.others("north")
	// Nor does it take a credential of the name that is for another.
	_, said, changes := w.run(t, "", "teardown.sh", append([]string{"FEDERATED_CREDENTIAL=north"}, good...), "--yes")
	if diff := cmp.Diff([]string{"aks delete"}, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	w = newWorld(t)
	w.provision(t, good)
	w.others("north")
	_, said, changes = w.run(t, "", "teardown.sh", good, "--yes")
	if diff := cmp.Diff([]string{"identity federated-credential delete", "aks delete"}, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	if !strings.Contains(said, "1 other federated credentials") {
		t.Errorf("why the identity stays is not said:\n%s", said)
	}
}

func TestATeardownThatWasInterruptedGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	delete(w.Things, "cluster|my(group)|cats-api")
	_, said, changes := w.run(t, "", "teardown.sh", good, "--yes")
	want := []string{"identity federated-credential delete", "role assignment delete", "role assignment delete", "identity delete"}
	if diff := cmp.Diff(want, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
}
