package provision

import (
	"encoding/base64"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// applied is the only change of a run that finds everything as it must be.
var applied = []string{"kubectl apply -k overlay"}

const subscription = "/subscriptions/11111111-1111-1111-1111-111111111111"

func TestProvisionCreatesEverythingWithLeastPrivilege(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	before := c.read("overlay/settings.env")
	r := c.provision(good, "--dry-run")
	r.want(t, 0, nil,
		"az group create", "az storage account create", "az storage container-rm create", "az identity create", `Storage\ Blob\ Delegator`,
		"/blobServices/default/containers/cats", "az aks create", "az identity federated-credential create", "kubectl apply -k", "AZURE_CLIENT_ID=")
	if c.read("overlay/settings.env") != before {
		t.Error("the dry run changes the settings")
	}

	overlay := c.read("overlay/kustomization.yaml")
	r = c.provision(good)
	r.want(t, 0, r.changes, "no failure", "http://192.0.2.7:8080/cat/Davyd")
	const account = subscription + "/resourceGroups/my(group)/providers/Microsoft.Storage/storageAccounts/davydscats"
	want := []string{
		"group create --name my(group) --location westeurope --tags managed-by=cats-api",
		"storage account create --name davydscats --resource-group my(group) --location westeurope --kind StorageV2 --sku Standard_ZRS --https-only true" +
			" --min-tls-version TLS1_2 --allow-blob-public-access false --allow-shared-key-access false --tags managed-by=cats-api",
		"storage container-rm create --storage-account davydscats --resource-group my(group) --name cats --public-access off",
		"identity create --name cats-api --resource-group my(group) --location westeurope --tags managed-by=cats-api",
		"role assignment create --assignee-object-id the-principal --assignee-principal-type ServicePrincipal --role Storage Blob Delegator --scope " + account,
		"role assignment create --assignee-object-id the-principal --assignee-principal-type ServicePrincipal --role Storage Blob Data Contributor --scope " +
			account + "/blobServices/default/containers/cats",
		"aks create --name cats-api --resource-group my(group) --location westeurope --node-count 2 --enable-oidc-issuer --enable-workload-identity --no-ssh-key" +
			" --network-plugin azure --network-plugin-mode overlay --network-dataplane cilium --tags managed-by=cats-api",
		"identity federated-credential create --name cats-api --identity-name cats-api --resource-group my(group) --issuer https://issuer.example/cats-api/" +
			" --subject system:serviceaccount:cats-api:cats-api-sa --audiences api://AzureADTokenExchange",
		"kubectl apply -k " + c.path("overlay"),
	}
	if diff := cmp.Diff(want, r.commands); diff != "" {
		t.Errorf("%s\n%s", diff, r.output)
	}
	filled := before
	for name, value := range map[string]string{
		"AZURE_CLIENT_ID": "the-client", "AZURE_TENANT_ID": "the-tenant", "AZURE_STORAGE_ACCOUNT_URL": "https://davydscats.blob.core.windows.net", "ANONYMOUS_ACCESS": "true",
		"FRONTEND_IMAGE": "r.example:5000/cats-api-frontend:v1", "SIGNER_IMAGE": "r.example/cats-api-signer:v1.2@sha256:0123abc", "VERSION": "v1.2",
	} {
		filled = regexp.MustCompile(`(?m)^# `+name+`=.*$`).ReplaceAllString(filled, name+"="+value)
	}
	if diff := cmp.Diff(filled+overlay, c.read("overlay/settings.env")+c.read("overlay/kustomization.yaml")); diff != "" {
		t.Error(diff)
	}

	c.provision(good).want(t, 0, applied)
	if c.read("overlay/settings.env") != filled {
		t.Error("the second run changes the settings")
	}
	r = c.provision(good, "--dry-run")
	r.want(t, 0, nil)
	if strings.Count(r.output, "would be") != 1 {
		t.Errorf("a dry run after everything was created shows\n%s", r.output)
	}
}

func TestProvisionReportsProblemsBeforeItChangesAnything(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		environ []string
		change  func(*cloud)
		want    []string
	}{
		"settings": {
			environ: []string{"STORAGE_ACCOUNT=Not-Good", "FRONTEND_IMAGE=frontend", "REGISTRY_SERVER=r.example", "VERSION=v1+dirty"},
			want:    []string{"STORAGE_ACCOUNT is 'Not-Good'", "FRONTEND_IMAGE is 'frontend'", "SIGNER_IMAGE is not set", "set all three or none", "VERSION is 'v1+dirty'"},
		},
		"old az, no login": {
			environ: good, change: func(c *cloud) { c.answers["version"], c.answers["account show"] = `{"azure-cli": "2.9.1"}`, "denied" },
			want: []string{"the Azure CLI is 2.9.1", "az login"},
		},
		"Azure": {
			environ: good, change: func(c *cloud) {
				c.answers["storage account check-name"], c.answers["provider show"] = `{"nameAvailable": false}`, `{"registrationState": "NotRegistered"}`
				c.answers["rest"] = `{"value": [{"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Write"]}]}`
			},
			want: []string{"davydscats is taken", "az provider register --namespace Microsoft.ContainerService", "you cannot assign roles"},
		},
		"existing resources": {
			environ: append([]string{"CLUSTER_RESOURCE_GROUP=elsewhere"}, good...), change: func(c *cloud) { c.addCredentials(20) },
			want: []string{"20 federated credentials", "the resource group elsewhere for the cluster does not exist"},
		},
		"old cluster": {
			environ: good, change: func(c *cloud) {
				c.resources["cluster|my(group)|cats-api"] = map[string]any{"currentKubernetesVersion": "1.28.9"}
			},
			want: []string{"Kubernetes 1.28.9: 1.29 or newer"},
		},
		"no password": {
			environ: append([]string{"REGISTRY_SERVER=r.example", "REGISTRY_USERNAME=u", "REGISTRY_PASSWORD_FILE=/no/such"}, good...),
			want:    []string{"REGISTRY_PASSWORD_FILE /no/such cannot be read"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			if row.change != nil {
				row.change(c)
			}
			c.run("provision.sh", row.environ).want(t, 1, nil, append(row.want, "Nothing was changed")...)
		})
	}
}

func TestProvisionNeedsAChoiceOfAuthentication(t *testing.T) {
	t.Parallel()
	const on, neither = "  - ../../components/authentication", "neither authentication nor anonymous access is chosen"
	for name, row := range map[string]struct {
		environ   string // ANONYMOUS_ACCESS, or nothing
		file      string // the line of settings.env, "" as shipped
		component string // the line of kustomization.yaml, "" as shipped
		kubectl   string
		problem   string // "" for none
		written   string // the line of settings.env afterwards
	}{
		"no choice":                           {problem: neither},
		"false":                               {environ: "ANONYMOUS_ACCESS=false", problem: neither},
		"empty line":                          {file: "ANONYMOUS_ACCESS=", problem: neither},
		"another value":                       {environ: "ANONYMOUS_ACCESS=yes", problem: "ANONYMOUS_ACCESS is 'yes'"},
		"true in the file":                    {file: "ANONYMOUS_ACCESS=true", written: "ANONYMOUS_ACCESS=true"},
		"true in a Windows file":              {file: "ANONYMOUS_ACCESS=true\r", written: "ANONYMOUS_ACCESS=true\r"},
		"variable overrides file":             {environ: "ANONYMOUS_ACCESS=true", file: "ANONYMOUS_ACCESS=false", written: "ANONYMOUS_ACCESS=true"},
		"variable turns it off":               {environ: "ANONYMOUS_ACCESS=false", file: "ANONYMOUS_ACCESS=true", problem: neither},
		"authentication":                      {component: `- "../../components/authentication" # tokens`, written: "# ANONYMOUS_ACCESS=true"},
		"authentication, kubectl 1.30":        {component: on, kubectl: "1.30.2", written: "ANONYMOUS_ACCESS=false"},
		"both":                                {environ: "ANONYMOUS_ACCESS=true", component: on, problem: "choose one of both"},
		"both in the files":                   {file: "ANONYMOUS_ACCESS=true", component: on, problem: "choose one of both"},
		"component commented without a space": {component: "#- ../../components/authentication", problem: neither},
		"component of a similar name":         {component: "  - ../../components/authentication-of-mine", problem: neither},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			if row.kubectl != "" {
				c.kubectlVersion = row.kubectl
			}
			c.edit("settings.env", "# ANONYMOUS_ACCESS=", row.file)
			c.edit("kustomization.yaml", ` +# - \.\./\.\./components/authentication`, row.component)
			before := c.read("overlay/settings.env")
			environ := slices.DeleteFunc(slices.Clone(good), func(e string) bool { return strings.HasPrefix(e, "ANONYMOUS_ACCESS=") })
			r := c.run("provision.sh", append(environ, strings.Fields(row.environ)...))
			after := c.read("overlay/settings.env")
			if row.problem != "" {
				r.want(t, 1, nil, "Nothing was changed", row.problem)
				if after != before {
					t.Error("the settings have changed")
				}
				return
			}
			r.want(t, 0, r.changes)
			if got := regexp.MustCompile(`(?m)^.*ANONYMOUS_ACCESS=(true|false).*$`).FindAllString(after, -1); got[len(got)-1] != row.written {
				t.Errorf("settings.env has %q; want %q", got, row.written)
			}
		})
	}
}

func TestProvisionKeepsExistingResources(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.provision(good)
	c.resources["cluster|my(group)|cats-api"] = map[string]any{"currentKubernetesVersion": "1.30.1", "oidcIssuerProfile": map[string]any{
		"enabled": true, "issuerUrl": "https://issuer.example/cats-api/",
	}}
	account := c.resources["account|my(group)|davydscats"]
	account["allowSharedKeyAccess"], account["minimumTlsVersion"] = nil, "TLS1_0" // null allows them
	for _, scope := range []string{account["id"].(string), subscription} {
		c.resources["role|the-principal|Storage Blob Data Contributor|"+scope] = map[string]any{}
	}
	c.addCredentials(19) // its own is the 20th
	r := c.provision(good)
	r.want(t, 0, append([]string{"aks update"}, applied...),
		`az storage account update --name davydscats --resource-group my\(group\) --allow-shared-key-access false`, "--min-tls-version TLS1_2",
		"it does not enforce NetworkPolicy", `Storage\ Blob\ Data\ Contributor --scope `+subscription+" \n", "write to all of "+account["id"].(string))
	if regexp.MustCompile("it allows (public access|HTTP)").MatchString(r.output) {
		t.Errorf("a safe setting is reported:\n%s", r.output)
	}
}

// addCredentials gives the identity federated credentials of other clusters.
func (c *cloud) addCredentials(n int) {
	for i := range n {
		name := strings.Repeat("x", i+1)
		c.resources["credential|my(group)|cats-api|"+name] = map[string]any{
			"name": name, "issuer": "https://another.example/", "subject": "system:serviceaccount:cats-api:cats-api-sa", "audiences": []string{"api://AzureADTokenExchange"},
		}
	}
}

func TestFederatedCredentialHasTheAudienceOfTheCloud(t *testing.T) {
	t.Parallel()
	for cloud, want := range map[string]string{
		"AzureUSGovernment": "api://AzureADTokenExchangeUSGov",
		"AzureChinaCloud":   "api://AzureADTokenExchangeChina",
		"AzureStackUser":    "api://AzureADTokenExchange", // a cloud registered by hand
	} {
		t.Run(cloud, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			c.answers["cloud show"] = `{"name": "` + cloud + `"}`
			r := c.provision(good)
			if !slices.ContainsFunc(r.commands, func(command string) bool { return strings.HasSuffix(command, "--audiences "+want) }) {
				t.Errorf("no credential has the audience %s:\n%s", want, r.commands)
			}
			// The cluster's tokens may have the audience of the public cloud.
			c.resources["credential|my(group)|cats-api|cats-api"]["audiences"] = []string{"api://AzureADTokenExchange"}
			c.provision(good).want(t, 0, applied)
		})
	}
}

func TestProvisionKeepsTheCredentialOfAnotherCluster(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.provision(good)
	c.resources["group|north"] = map[string]any{}
	second := append([]string{"CLUSTER=another", "CLUSTER_RESOURCE_GROUP=north"}, good...)
	r := c.run("provision.sh", append(second, "FEDERATED_CREDENTIAL=cats-api"))
	r.want(t, 1, nil, "is for system:serviceaccount:cats-api:cats-api-sa of https://issuer.example/cats-api/")
	// By default each cluster has its own.
	c.provision(second).want(t, 0, append([]string{"aks create", "identity federated-credential create"}, applied...))
	// The name of an existing credential does not matter.
	c.resources["credential|my(group)|cats-api|another"]["name"] = "by-hand"
	c.provision(second).want(t, 0, applied, "federated credential by-hand")
}

func TestProvisionLogsInToTheClusterByEntraID(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.kubeconfig = "command: kubelogin"
	if _, err := exec.LookPath("kubelogin"); err != nil {
		r := c.run("provision.sh", good)
		r.want(t, 1, r.changes, "kubelogin is missing: az aks install-cli")
	}
	c.install("kubelogin")
	c.provision(good)
}

func TestProvisionWaitsUntilTheDeploymentWorks(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.doctorFails = 3
	r := c.provision(good)
	r.want(t, 0, r.changes, "AADSTS700213")
	if n := strings.Count(r.output, "waiting, "); n != 3 {
		t.Errorf("it waited %d times; want 3:\n%s", n, r.output)
	}

	// An old pod works, and the new one does not yet.
	c.objects = append(c.objects, object{Kind: "replicaset", Name: "cats-api-two", Hash: "two", Revision: 2}, object{Kind: "pod", Name: "new", Hash: "two", Created: 2, Signer: running})
	c.doctorRanIn, c.rolloutFails = nil, 2
	c.provision(good)
	if want := []string{"pod/new", "pod/new", "pod/new"}; !slices.Equal(c.doctorRanIn, want) {
		t.Errorf("the doctor ran in %q; want %q", c.doctorRanIn, want)
	}

	c.doctorFails = 1 << 20
	c.run("provision.sh", append([]string{"DEPLOY_TIMEOUT=0"}, good...)).want(t, 1, applied, "the deployment is not ready after 0 s", "fail  exchange")
}

func TestRegistryPasswordIsOnNoCommandLine(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const password = `pa"ss $word\`
	c.write("the password", password+"\n")
	r := c.provision(append([]string{"REGISTRY_SERVER=r.example", "REGISTRY_USERNAME=user", "REGISTRY_PASSWORD_FILE=" + c.path("the password")}, good...))
	auth := base64.StdEncoding.EncodeToString([]byte("user:" + password))
	config := base64.StdEncoding.EncodeToString([]byte(`{"auths":{"r.example":{"auth":"` + auth + `"}}}`))
	for _, hidden := range []string{password, auth, config} {
		if strings.Contains(strings.Join(r.commands, "\n")+r.output, hidden) {
			t.Errorf("%q is on a command line or in the output", hidden)
		}
	}
	if !strings.Contains(r.stdin, ".dockerconfigjson: "+config) || !strings.Contains(r.stdin, "name: registry-credentials") {
		t.Errorf("the secret is\n%s", r.stdin)
	}
	if last := strings.Join(r.changes[len(r.changes)-3:], "\n"); !regexp.MustCompile(`^kubectl apply -f .*/namespace\.yaml\nkubectl apply -f -\n` + applied[0] + "$").MatchString(last) {
		t.Errorf("the last changes are\n%s", last)
	}
	if k := c.read("overlay/kustomization.yaml"); !strings.Contains(k, "\n  - ../../components/image-pull-secret") || !strings.Contains(k, "\n  # - ../../components/monitoring") {
		t.Errorf("the component is not on, or others are:\n%s", k)
	}
}

func TestScriptsPrintHelpAndRejectUnknownArguments(t *testing.T) {
	t.Parallel()
	for _, script := range []string{"provision.sh", "teardown.sh"} {
		c := newCloud(t)
		c.run(script, nil, "--help").want(t, 0, nil, "--dry-run")
		c.run(script, good, "--dryrun").want(t, 1, nil, "unknown argument --dryrun")
	}
}

// An error is not taken for a missing resource.
func TestErrorOfAzureEndsProvision(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.answers["storage account show"] = "denied"
	c.run("provision.sh", good).want(t, 1, nil, "AuthorizationFailed")
}

func TestTeardownDeletesWhatProvisionCreated(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.provision(good)
	for _, row := range []struct {
		stdin   string
		args    []string
		code    int
		changes []string
		part    string
	}{
		{"n\n", nil, 1, nil, "Continue?"},
		{"", []string{"--dry-run"}, 0, nil, "az aks delete"},
		{"y\n", nil, 0, append(slices.Clone(removed), "identity delete", "aks delete"), "--delete-pictures"},
		{"", []string{"--yes", "--delete-pictures"}, 0, []string{"storage account delete", "group delete"}, ""},
		{"", []string{"--yes", "--delete-pictures"}, 0, nil, "nothing to delete"},
	} {
		c.runWith(row.stdin, "teardown.sh", good, row.args...).want(t, row.code, row.changes, row.part)
	}
}

// removed are the changes that remove the identity's access.
var removed = []string{"identity federated-credential delete", "role assignment delete", "role assignment delete"}

func TestTeardownKeepsOtherResources(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		change  func(*cloud)
		environ []string
		want    []string
	}{
		"all existed before": {
			change: func(c *cloud) {
				for resource := range maps.Values(c.resources) {
					delete(resource, "tags")
				}
			},
			want: append([]string{
				"kubectl --namespace cats-api delete deployment cats-api --ignore-not-found", "kubectl delete namespace cats-api --ignore-not-found",
			}, removed...),
		},
		"another cluster uses the identity": {
			change: func(c *cloud) { c.addCredentials(1) },
			want:   []string{"identity federated-credential delete", "aks delete", "storage account delete"},
		},
		"the credential is for another cluster": {
			change: func(c *cloud) { c.addCredentials(1) }, environ: []string{"FEDERATED_CREDENTIAL=x"},
			want: []string{"aks delete", "storage account delete"},
		},
		"the cluster is deleted": { // by an interrupted run
			change: func(c *cloud) { delete(c.resources, "cluster|my(group)|cats-api") },
			want:   append(slices.Clone(removed), "identity delete", "storage account delete", "group delete"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			c.provision(good)
			row.change(c)
			c.run("teardown.sh", append(row.environ, good...), "--yes", "--delete-pictures").want(t, 0, row.want)
		})
	}
}
