// Package provision tests the scripts with stand-ins for az and kubectl.
package provision

import (
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newWorld is an Azure with nothing in it, and a copy of the overlay to fill in.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		Dir: filepath.Join(t.TempDir(), "a folder with spaces"), Things: map[string]map[string]any{}, Version: "2.60.0",
		Objects: []object{replicaSet("one", "1"), newPod("cats-api-one-a", "one", "2030-01-01T00:00:00Z", running())},
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "overlays/aks"} {
		if err := os.MkdirAll(filepath.Join(w.Dir, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"az", "kubectl"} {
		if err := os.Symlink(self, filepath.Join(w.Dir, "bin", program)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"settings.env", "kustomization.yaml"} {
		b, err := os.ReadFile(filepath.Join("..", "overlays", "aks", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(w.overlay(file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.save()
	return w
}

func (w *world) overlay(file string) string { return filepath.Join(w.Dir, "overlays", "aks", file) }

var good = []string{
	"STORAGE_ACCOUNT=davydscats", "RESOURCE_GROUP=my(group)",
	"FRONTEND_IMAGE=r.example:5000/cats/frontend:v1", "SIGNER_IMAGE=r.example/cats/signer@sha256:0123abc", "ANONYMOUS_ACCESS=true",
}

// run runs a script in w and returns what it said and the changes it made.
func (w *world) run(t *testing.T, stdin, script string, environ []string, args ...string) (code int, said string, changes []call) {
	t.Helper()
	w.Calls = nil
	w.save()
	cmd := exec.CommandContext(t.Context(), "bash", append([]string{script}, args...)...)
	cmd.Env = append([]string{
		"GORACE=atexit_sleep_ms=0", // each of the stand-ins' many runs would wait a second
		"PATH=" + filepath.Join(w.Dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + w.Dir, "WORLD=" + w.Dir,
		"OVERLAY=" + filepath.Join(w.Dir, "overlays", "aks"), "TMPDIR=" + w.Dir, "PAUSE=0", "PATIENCE=60",
	}, environ...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	w.load()
	for _, c := range w.Calls {
		if c.Args[0] == "UNKNOWN" {
			t.Errorf("the real programs would refuse: %s", c)
		}
	}
	left, err := filepath.Glob(filepath.Join(w.Dir, "tmp.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	return code, string(out), w.Calls
}

// provision runs it, which must work.
func (w *world) provision(t *testing.T, environ []string, args ...string) (said string, changes []call) {
	t.Helper()
	code, said, changes := w.run(t, "", "provision.sh", environ, args...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, said)
	}
	return said, changes
}

func kinds(changes []call) (list []string) {
	for _, c := range changes {
		words := c.Args
		for i, word := range words {
			if strings.HasPrefix(word, "-") && i > 0 && words[0] != "kubectl" {
				words = words[:i]
				break
			}
		}
		list = append(list, strings.Join(words, " "))
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEverythingIsMadeInOrderWithTheLeastPrivilege(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	said, changes := w.provision(t, good)
	account := subscription + "/resourceGroups/my(group)/providers/Microsoft.Storage/storageAccounts/davydscats"
	want := [][]string{
		{"group", "create", "--name", "my(group)", "--location", "westeurope", "--tags", "managed-by=cats-api"},
		{
			"storage", "account", "create", "--name", "davydscats", "--resource-group", "my(group)", "--location", "westeurope",
			"--kind", "StorageV2", "--sku", "Standard_ZRS", "--https-only", "true", "--min-tls-version", "TLS1_2",
			"--allow-blob-public-access", "false", "--allow-shared-key-access", "false", "--tags", "managed-by=cats-api",
		},
		{"storage", "container-rm", "create", "--storage-account", "davydscats", "--resource-group", "my(group)", "--name", "cats", "--public-access", "off"},
		{"identity", "create", "--name", "cats-api", "--resource-group", "my(group)", "--location", "westeurope", "--tags", "managed-by=cats-api"},
		{"role", "assignment", "create", "--assignee-object-id", "the-principal", "--assignee-principal-type", "ServicePrincipal", "--role", "Storage Blob Delegator", "--scope", account},
		{"role", "assignment", "create", "--assignee-object-id", "the-principal", "--assignee-principal-type", "ServicePrincipal", "--role", "Storage Blob Data Contributor", "--scope", account + "/blobServices/default/containers/cats"},
		{
			"aks", "create", "--name", "cats-api", "--resource-group", "my(group)", "--location", "westeurope", "--node-count", "2",
			"--enable-oidc-issuer", "--enable-workload-identity", "--no-ssh-key",
			"--network-plugin", "azure", "--network-plugin-mode", "overlay", "--network-dataplane", "cilium", "--tags", "managed-by=cats-api",
		},
		{
			"identity", "federated-credential", "create", "--name", "cats-api", "--identity-name", "cats-api", "--resource-group", "my(group)",
			"--issuer", "https://issuer.example/cats-api/", "--subject", "system:serviceaccount:cats-api:cats-api-sa", "--audiences", "api://AzureADTokenExchange",
		},
		{"kubectl", "apply", "-k", filepath.Join(w.Dir, "overlays", "aks")},
	}
	var got [][]string
	for _, c := range changes {
		got = append(got, c.Args)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}

	// The overlay is filled in, and its comments are still there.
	before := read(t, filepath.Join("..", "overlays", "aks", "settings.env"))
	filled := before
	for name, value := range map[string]string{
		"AZURE_CLIENT_ID": "the-client", "AZURE_TENANT_ID": "the-tenant", "AZURE_STORAGE_ACCOUNT_URL": "https://davydscats.blob.core.windows.net",
		"FRONTEND_IMAGE": "r.example:5000/cats/frontend:v1", "SIGNER_IMAGE": "r.example/cats/signer@sha256:0123abc", "ANONYMOUS_ACCESS": "true",
	} {
		filled = regexp.MustCompile(`(?m)^# `+name+`=.*$`).ReplaceAllString(filled, name+"="+value)
	}
	if diff := cmp.Diff(filled, read(t, w.overlay("settings.env"))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(read(t, filepath.Join("..", "overlays", "aks", "kustomization.yaml")), read(t, w.overlay("kustomization.yaml"))); diff != "" {
		t.Error(diff)
	}
	for _, part := range []string{"all works", "http://192.0.2.7:8080/cat/Davyd"} {
		if !strings.Contains(said, part) {
			t.Errorf("%q is not said:\n%s", part, said)
		}
	}
}

func TestASecondRunChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	before := read(t, w.overlay("settings.env"))
	said, changes := w.provision(t, good)
	if diff := cmp.Diff([]string{"kubectl apply -k " + filepath.Join(w.Dir, "overlays", "aks")}, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	if read(t, w.overlay("settings.env")) != before {
		t.Error("the settings have changed")
	}
}

func TestADryRunChangesNothingAndShowsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := read(t, w.overlay("settings.env"))
	said, changes := w.provision(t, good, "--dry-run")
	if len(changes) > 0 || len(w.Things) > 0 || read(t, w.overlay("settings.env")) != before {
		t.Errorf("it changed: %q", changes)
	}
	for _, part := range []string{
		`az group create --name my\(group\)`, "az storage account create", "az storage container-rm create", "az identity create", "Storage\\ Blob\\ Delegator",
		"/blobServices/default/containers/cats", "az aks create", "az identity federated-credential create", "kubectl apply -k", "AZURE_CLIENT_ID=",
	} {
		if !strings.Contains(said, part) {
			t.Errorf("%s is not shown:\n%s", part, said)
		}
	}
	w.provision(t, good)
	if said, changes := w.provision(t, good, "--dry-run"); len(changes) > 0 || strings.Count(said, "would be") != 1 {
		t.Errorf("after all was made, %q, and\n%s", changes, said)
	}
}

func TestFaultsAreToldTogetherBeforeAnythingIsChanged(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		environ []string
		change  func(*world)
		says    []string
	}{
		"settings": {
			environ: []string{"STORAGE_ACCOUNT=Not-Good", "FRONTEND_IMAGE=frontend", "REGISTRY_SERVER=r.example"},
			says:    []string{"STORAGE_ACCOUNT is 'Not-Good'", "FRONTEND_IMAGE is 'frontend'", "SIGNER_IMAGE is not set", "go together"},
		},
		"an old az, and nobody logged in": {
			environ: good, change: func(w *world) { w.Version, w.LoggedOut = "2.9.1", true },
			says: []string{"the Azure CLI is 2.9.1", "az login"},
		},
		"Azure": {
			environ: good, change: func(w *world) {
				w.NameTaken, w.Unregistered, w.NotActions = true, "Microsoft.ContainerService", []string{"Microsoft.Authorization/*/Write"}
			},
			says: []string{"davydscats is taken", "az provider register --namespace Microsoft.ContainerService", "you may not assign roles"},
		},
		"what is there": {
			environ: append([]string{"CLUSTER_RESOURCE_GROUP=elsewhere"}, good...), change: func(w *world) {
				for i := range 20 {
					w.others(strings.Repeat("x", i+1))
				}
			},
			says: []string{"20 federated credentials", "no resource group elsewhere"},
		},
		"an old cluster": {
			environ: good, change: func(w *world) {
				w.Things["cluster|my(group)|cats-api"] = map[string]any{"currentKubernetesVersion": "1.28.9"}
			},
			says: []string{"Kubernetes 1.28.9: 1.29 or newer"},
		},
		"no password": {
			environ: append([]string{"REGISTRY_SERVER=r.example", "REGISTRY_USERNAME=u", "REGISTRY_PASSWORD_FILE=/no/such"}, good...),
			says:    []string{"REGISTRY_PASSWORD_FILE /no/such cannot be read"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if row.change != nil {
				row.change(w)
			}
			code, said, changes := w.run(t, "", "provision.sh", row.environ)
			if code != 1 || len(changes) > 0 || !strings.Contains(said, "Nothing was changed") {
				t.Errorf("exit code %d, changes %q", code, changes)
			}
			for _, part := range row.says {
				if !strings.Contains(said, part) {
					t.Errorf("%q is not said:\n%s", part, said)
				}
			}
		})
	}
}

func TestWhatIsThereIsTakenAndOnlyWhatMustChangeIsChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	w.Things["cluster|my(group)|cats-api"] = map[string]any{"currentKubernetesVersion": "1.30.1", "oidcIssuerProfile": map[string]any{
		"enabled": true, "issuerUrl": "https://issuer.example/cats-api/",
	}}
	account := w.Things["account|my(group)|davydscats"]
	account["allowSharedKeyAccess"], account["minimumTlsVersion"] = nil, "TLS1_0" // null allows them
	for _, wide := range []string{account["id"].(string), subscription} {
		w.Things["role|the-principal|Storage Blob Data Contributor|"+wide] = map[string]any{}
	}
	said, changes := w.provision(t, good)
	if diff := cmp.Diff([]string{"aks update", "kubectl apply -k " + filepath.Join(w.Dir, "overlays", "aks")}, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	for _, part := range []string{
		`az storage account update --name davydscats --resource-group my\(group\) --allow-shared-key-access false`, "--min-tls-version TLS1_2",
		"it enforces no NetworkPolicy", `Storage\ Blob\ Data\ Contributor --scope ` + subscription + " \n", "write to all of " + account["id"].(string),
	} {
		if !strings.Contains(said, part) {
			t.Errorf("%q is not said:\n%s", part, said)
		}
	}
	for _, part := range []string{"it allows public access", "it allows HTTP"} {
		if strings.Contains(said, part) {
			t.Errorf("%q is said:\n%s", part, said)
		}
	}

	// The credential that is there already counts for nothing.
	for i := range 19 {
		w.others(strings.Repeat("x", i+1))
	}
	w.provision(t, good)
}

func TestFederatedCredentialHasTheCloudsAudience(t *testing.T) {
	t.Parallel()
	for cloud, want := range map[string]string{
		"AzureCloud":        "api://AzureADTokenExchange",
		"AzureUSGovernment": "api://AzureADTokenExchangeUSGov",
		"AzureChinaCloud":   "api://AzureADTokenExchangeChina",
		"AzureStackUser":    "api://AzureADTokenExchange", // a cloud registered by hand
	} {
		t.Run(cloud, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Cloud = cloud
			said, changes := w.provision(t, good)
			var got []string
			for _, c := range changes {
				if i := slices.Index(c.Args, "--audiences"); i >= 0 {
					got = append(got, c.Args[i+1])
				}
			}
			if !slices.Equal(got, []string{want}) {
				t.Errorf("the audiences are %q; want %q\n%s", got, want, said)
			}
			// The cluster's tokens may have the public cloud's: one made by hand is taken.
			w.Things["credential|my(group)|cats-api|cats-api"]["audiences"] = []string{"api://AzureADTokenExchange"}
			for _, script := range []string{"provision.sh", "teardown.sh"} {
				args := map[string][]string{"teardown.sh": {"--yes"}}[script]
				code, said, changes := w.run(t, "", script, good, args...)
				if code != 0 || slices.Contains(kinds(changes), "identity federated-credential create") {
					t.Errorf("%s: exit code %d\n%v\n%s", script, code, kinds(changes), said)
				}
			}
		})
	}
}

// others gives the identity a federated credential of another cluster.
func (w *world) others(name string) {
	w.Things["credential|my(group)|cats-api|"+name] = map[string]any{
		"name": name, "issuer": "https://another.example/", "subject": "system:serviceaccount:cats-api:cats-api-sa", "audiences": []string{"api://AzureADTokenExchange"},
	}
}

func TestTheCredentialOfAnotherClusterIsNotTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provision(t, good)
	second := append([]string{"CLUSTER_RESOURCE_GROUP=north", "FEDERATED_CREDENTIAL=cats-api"}, good...)
	w.Things["group|north"] = map[string]any{}
	code, said, changes := w.run(t, "", "provision.sh", append([]string{"CLUSTER=another"}, second...))
	if code != 1 || len(changes) > 0 || !strings.Contains(said, "is for system:serviceaccount:cats-api:cats-api-sa of https://issuer.example/cats-api/") {
		t.Errorf("exit code %d, %q\n%s", code, changes, said)
	}
	// By default each cluster has its own.
	said, changes = w.provision(t, append([]string{"CLUSTER=another", "CLUSTER_RESOURCE_GROUP=north"}, good...))
	want := []string{"aks create", "identity federated-credential create", "kubectl apply -k " + filepath.Join(w.Dir, "overlays", "aks")}
	if diff := cmp.Diff(want, kinds(changes)); diff != "" {
		t.Errorf("%s\n%s", diff, said)
	}
	// One that was made by hand is taken, whatever its name.
	w.Things["credential|my(group)|cats-api|another"]["name"] = "by-hand"
	said, changes = w.provision(t, append([]string{"CLUSTER=another", "CLUSTER_RESOURCE_GROUP=north"}, good...))
	if len(changes) != 1 || !strings.Contains(said, "federated credential by-hand") {
		t.Errorf("%q\n%s", changes, said)
	}
}

func TestAClusterWithLoginsByEntraNeedsKubelogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.EntraLogin = true
	kubelogin := filepath.Join(w.Dir, "bin", "kubelogin")
	if _, err := exec.LookPath("kubelogin"); err != nil {
		if code, said, _ := w.run(t, "", "provision.sh", good); code != 1 || !strings.Contains(said, "kubelogin is missing: az aks install-cli") {
			t.Errorf("without it, exit code %d\n%s", code, said)
		}
	}
	if err := os.Symlink(filepath.Join(w.Dir, "bin", "az"), kubelogin); err != nil {
		t.Fatal(err)
	}
	w.provision(t, good)
}

func TestItWaitsUntilTheIdentityIsKnownEverywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.DoctorFails = 3
	said, _ := w.provision(t, good)
	if strings.Count(said, "waiting, ") != 3 || !strings.Contains(said, "AADSTS700213") {
		t.Errorf("it does not say why it waits:\n%s", said)
	}

	w.DoctorFails = 1 << 20
	code, said, _ := w.run(t, "", "provision.sh", append([]string{"PATIENCE=1", "PAUSE=1"}, good...))
	if code != 1 || !strings.Contains(said, "it does not work after 1 s") || !strings.Contains(said, "fail  exchange") {
		t.Errorf("exit code %d:\n%s", code, said)
	}
}

func TestThePasswordOfTheRegistryIsOnNoCommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	password := `pa"ss $word\`
	file := filepath.Join(w.Dir, "the password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := append([]string{"REGISTRY_SERVER=r.example", "REGISTRY_USERNAME=user", "REGISTRY_PASSWORD_FILE=" + file}, good...)
	said, changes := w.provision(t, environ)
	auth := base64.StdEncoding.EncodeToString([]byte("user:" + password))
	config := base64.StdEncoding.EncodeToString([]byte(`{"auths":{"r.example":{"auth":"` + auth + `"}}}`))
	var secret string
	for i, c := range changes {
		for _, hidden := range []string{password, auth, config} {
			if strings.Contains(c.String(), hidden) || strings.Contains(said, hidden) {
				t.Errorf("the password is in %q, or was printed", c.Args)
			}
		}
		if c.Stdin == "" {
			continue
		}
		secret = c.Stdin
		if previous := changes[i-1].String(); !strings.HasSuffix(previous, "namespace.yaml") {
			t.Errorf("before the secret comes %s; want its namespace", previous)
		}
		if next := changes[i+1].String(); !strings.Contains(next, "apply -k") {
			t.Errorf("after the secret comes %s; want the overlay", next)
		}
	}
	if !strings.Contains(secret, ".dockerconfigjson: "+config) || !strings.Contains(secret, "name: registry-credentials") {
		t.Errorf("the secret is\n%s", secret)
	}
	if k := read(t, w.overlay("kustomization.yaml")); !strings.Contains(k, "\n  - ../../components/image-pull-secret") || !strings.Contains(k, "\n  # - ../../components/monitoring") {
		t.Errorf("the component is not on, or others are:\n%s", k)
	}
}

func TestHelpAndUnknownArguments(t *testing.T) {
	t.Parallel()
	for _, script := range []string{"provision.sh", "teardown.sh"} {
		w := newWorld(t)
		if code, said, _ := w.run(t, "", script, nil, "--help"); code != 0 || !strings.Contains(said, "--dry-run") {
			t.Errorf("%s --help: %d\n%s", script, code, said)
		}
		if code, said, _ := w.run(t, "", script, good, "--dryrun"); code != 1 || !strings.Contains(said, "unknown argument --dryrun") {
			t.Errorf("%s: %d\n%s", script, code, said)
		}
	}
}

// An error that is not that something is missing must not be taken for it.
func TestAnErrorOfAzureEndsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	script := "#!/bin/sh\ncase \"$*\" in *'storage account show'*) echo 'ERROR: (AuthorizationFailed) no' >&2; exit 1;; esac\nexec '" + filepath.Join(w.Dir, "bin", "real", "az") + "' \"$@\"\n"
	if err := errors.Join(os.Mkdir(filepath.Join(w.Dir, "bin", "real"), 0o750),
		os.Rename(filepath.Join(w.Dir, "bin", "az"), filepath.Join(w.Dir, "bin", "real", "az")),
		os.WriteFile(filepath.Join(w.Dir, "bin", "az"), []byte(script), 0o755)); err != nil {
		t.Fatal(err)
	}
	code, said, changes := w.run(t, "", "provision.sh", good)
	if code != 1 || len(changes) > 0 || !strings.Contains(said, "AuthorizationFailed") {
		t.Errorf("%d, %q\n%s", code, changes, said)
	}
}
