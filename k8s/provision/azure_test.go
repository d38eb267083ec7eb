package provision

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jmespath/go-jmespath"
)

// TestMain is also az, kubectl and kubelogin, which the tests put into PATH under these
// names: stand-ins that keep what was made in a file, and write down what is asked
// of them.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "az":
		os.Exit(az(os.Args[1:]))
	case "kubectl":
		os.Exit(kubectl(os.Args[1:]))
	case "kubelogin":
		os.Exit(kubelogin(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// world is what there is in Azure and in the cluster.
type world struct {
	Dir string `json:"-"`

	Things map[string]map[string]any // resources, by kind and name
	Calls  []call

	LoggedOut    bool
	EntraLogin   bool   // to the cluster, which needs kubelogin
	Version      string // of az
	Kubectl      string // its version, "" for a recent one
	Cloud        string // that az is logged in to, "" for the public one
	NameTaken    bool   // the storage account's, by somebody else
	NotActions   []string
	Unregistered string
	DoctorFails  int // so many times more

	RolloutFails int      // so many times more
	Objects      []object // of the cluster
	Doctor       []string // the pods in which signer doctor ran
}

// call is one command that changes something.
type call struct {
	Args  []string
	Stdin string
}

func (c call) String() string { return strings.Join(c.Args, " ") }

func (w *world) path() string { return filepath.Join(w.Dir, "world.json") }

func (w *world) load() {
	*w = world{Dir: w.Dir} // or maps keep what is there no more
	b, err := os.ReadFile(w.path())
	if err == nil {
		err = json.Unmarshal(b, w)
	}
	if err != nil {
		panic(err)
	}
}

func (w *world) save() {
	b, err := json.Marshal(w)
	if err == nil {
		err = os.WriteFile(w.path(), b, 0o600)
	}
	if err != nil {
		panic(err)
	}
}

func (w *world) changed(args []string) { w.Calls = append(w.Calls, call{Args: args}) }

// options are those that each command of the Azure CLI has, as far as the scripts
// use them: https://learn.microsoft.com/cli/azure/reference-index. Those with an
// exclamation mark take no value.
var options = map[string]string{
	"version":                              "",
	"account show":                         "",
	"cloud show":                           "",
	"provider show":                        "--namespace",
	"rest":                                 "--method --url",
	"group exists":                         "--name",
	"group show":                           "--name",
	"group create":                         "--name --location --tags",
	"group delete":                         "--name --yes!",
	"resource list":                        "--resource-group",
	"storage account show":                 "--name --resource-group",
	"storage account check-name":           "--name",
	"storage account create":               "--name --resource-group --location --kind --sku --https-only --min-tls-version --allow-blob-public-access --allow-shared-key-access --tags",
	"storage account delete":               "--name --resource-group --yes!",
	"storage container-rm exists":          "--storage-account --resource-group --name",
	"storage container-rm create":          "--storage-account --resource-group --name --public-access",
	"identity show":                        "--name --resource-group",
	"identity create":                      "--name --resource-group --location --tags",
	"identity delete":                      "--name --resource-group",
	"identity federated-credential list":   "--identity-name --resource-group",
	"identity federated-credential create": "--name --identity-name --resource-group --issuer --subject --audiences",
	"identity federated-credential delete": "--name --identity-name --resource-group --yes!",
	"role assignment list":                 "--assignee --role --scope --include-inherited!",
	"role assignment create":               "--assignee-object-id --assignee-principal-type --role --scope",
	"role assignment delete":               "--assignee --role --scope",
	"aks show":                             "--name --resource-group",
	"aks create":                           "--name --resource-group --location --node-count --enable-oidc-issuer! --enable-workload-identity! --no-ssh-key! --network-plugin --network-plugin-mode --network-dataplane --tags",
	"aks update":                           "--name --resource-group --enable-oidc-issuer! --enable-workload-identity!",
	"aks delete":                           "--name --resource-group --yes!",
	"aks get-credentials":                  "--name --resource-group --file --overwrite-existing!",
}

const notFound = 3

// az is the Azure CLI. A command or an option that it does not know is told as the
// real one does, with exit code 2.
func az(args []string) (code int) {
	w := &world{Dir: os.Getenv("WORLD")}
	w.load()
	defer w.save()
	words := 0
	for words < len(args) && !strings.HasPrefix(args[words], "-") {
		words++
	}
	name, o := strings.Join(args[:words], " "), map[string]string{}
	known, ok := options[name]
	if !ok {
		return unknown(w, "az", args)
	}
	for i := words; i < len(args); i++ {
		option := args[i]
		switch list := strings.Fields(known + " --query --output --only-show-errors!"); {
		case slices.Contains(list, option+"!"):
			o[option] = "true"
		case slices.Contains(list, option) && i+1 < len(args):
			i++
			o[option] = args[i]
		default:
			return unknown(w, "az", args)
		}
	}
	result, code := w.az(name, o, args)
	if code != 0 {
		fmt.Fprintf(os.Stderr, "ERROR: az %s: exit code %d\n", name, code)
		return code
	}
	if query := o["--query"]; query != "" {
		var err error
		if result, err = jmespath.Search(query, plain(result)); err != nil {
			fmt.Fprintln(os.Stderr, query, err)
			return unknown(w, "az", args)
		}
	}
	if o["--output"] == "tsv" {
		tsv(os.Stdout, result)
	}
	return 0
}

func unknown(w *world, program string, args []string) int {
	w.changed(append([]string{"UNKNOWN", program}, args...))
	fmt.Fprintf(os.Stderr, "%s: %q is not known to the stand-in\n", program, args)
	return 2
}

// plain is v as JSON has it.
func plain(v any) (out any) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

// tsv prints as the CLI's --output tsv does: a line for each of a list, with tabs in
// it if that is a list itself; and nothing at all for null.
func tsv(out io.Writer, v any) {
	if v == nil {
		return
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, row := range list {
		cells, ok := row.([]any)
		if !ok {
			cells = []any{row}
		}
		for i, cell := range cells {
			if cell == nil {
				cell = "None"
			}
			if i > 0 {
				fmt.Fprint(out, "\t")
			}
			fmt.Fprint(out, cell)
		}
		fmt.Fprintln(out)
	}
}

const subscription = "/subscriptions/11111111-1111-1111-1111-111111111111"

func (w *world) az(name string, o map[string]string, args []string) (result any, code int) {
	key := func(kind string, names ...string) string {
		for _, n := range names {
			kind += "|" + o[n]
		}
		return kind
	}
	show := func(k string) (any, int) {
		if thing, ok := w.Things[k]; ok {
			return thing, 0
		}
		return nil, notFound
	}
	create := func(k string, thing map[string]any) (any, int) {
		w.changed(args)
		if thing["tags"] = nil; o["--tags"] != "" {
			tag, value, _ := strings.Cut(o["--tags"], "=")
			thing["tags"] = map[string]string{tag: value}
		}
		w.Things[k] = thing
		return thing, 0
	}
	remove := func(k string) (any, int) {
		w.changed(args)
		delete(w.Things, k)
		return nil, 0
	}
	group, in := key("group", "--name"), o["--resource-group"]
	switch name {
	case "version":
		return map[string]string{"azure-cli": w.Version}, 0
	case "account show":
		if w.LoggedOut {
			return nil, 1
		}
		return map[string]string{"id": strings.TrimPrefix(subscription, "/subscriptions/"), "name": "Cats and more"}, 0
	case "cloud show":
		return map[string]string{"name": cmp.Or(w.Cloud, "AzureCloud")}, 0
	case "provider show":
		if o["--namespace"] == w.Unregistered {
			return map[string]string{"registrationState": "NotRegistered"}, 0
		}
		return map[string]string{"registrationState": "Registered"}, 0
	case "rest":
		return map[string]any{"value": []any{map[string]any{"actions": []string{"*"}, "notActions": append([]string{}, w.NotActions...)}}}, 0
	case "group exists":
		_, ok := w.Things[group]
		return ok, 0
	case "group show":
		return show(group)
	case "group create":
		return create(group, map[string]any{})
	case "group delete":
		return remove(group)
	case "resource list":
		var all []any
		for k := range w.Things {
			if parts := strings.Split(k, "|"); len(parts) == 3 && parts[1] == in {
				all = append(all, k)
			}
		}
		return append([]any{}, all...), 0
	case "storage account show":
		return show(key("account", "--resource-group", "--name"))
	case "storage account check-name":
		return map[string]bool{"nameAvailable": !w.NameTaken}, 0
	case "storage account create":
		return create(key("account", "--resource-group", "--name"), map[string]any{
			"id":                    subscription + "/resourceGroups/" + in + "/providers/Microsoft.Storage/storageAccounts/" + o["--name"],
			"primaryEndpoints":      map[string]string{"blob": "https://" + o["--name"] + ".blob.core.windows.net/"},
			"allowBlobPublicAccess": o["--allow-blob-public-access"] == "true", "allowSharedKeyAccess": o["--allow-shared-key-access"] == "true",
			"enableHttpsTrafficOnly": o["--https-only"] == "true", "minimumTlsVersion": o["--min-tls-version"],
		})
	case "storage account delete":
		return remove(key("account", "--resource-group", "--name"))
	case "storage container-rm exists":
		_, ok := w.Things[key("container", "--storage-account", "--name")+"|"]
		return map[string]bool{"exists": ok}, 0
	case "storage container-rm create":
		return create(key("container", "--storage-account", "--name")+"|", map[string]any{})
	case "identity show":
		return show(key("identity", "--resource-group", "--name"))
	case "identity create":
		return create(key("identity", "--resource-group", "--name"), map[string]any{"clientId": "the-client", "principalId": "the-principal", "tenantId": "the-tenant"})
	case "identity delete":
		return remove(key("identity", "--resource-group", "--name"))
	case "identity federated-credential list":
		all := []any{}
		for k, thing := range w.Things {
			if strings.HasPrefix(k, key("credential", "--resource-group", "--identity-name")+"|") {
				all = append(all, thing)
			}
		}
		return all, 0
	case "identity federated-credential create":
		return create(key("credential", "--resource-group", "--identity-name", "--name"), map[string]any{
			"name": o["--name"], "issuer": o["--issuer"], "subject": o["--subject"], "audiences": []string{o["--audiences"]},
		})
	case "identity federated-credential delete":
		return remove(key("credential", "--resource-group", "--identity-name", "--name"))
	case "role assignment list":
		all := []any{}
		for k := range w.Things {
			scope, ok := strings.CutPrefix(k, key("role", "--assignee", "--role")+"|")
			if ok && (scope == o["--scope"] || o["--include-inherited"] != "" && strings.HasPrefix(o["--scope"], scope+"/")) {
				all = append(all, map[string]string{"scope": scope})
			}
		}
		return all, 0
	case "role assignment create":
		return create(key("role", "--assignee-object-id", "--role", "--scope"), map[string]any{})
	case "role assignment delete":
		return remove(key("role", "--assignee", "--role", "--scope"))
	case "aks show":
		return show(key("cluster", "--resource-group", "--name"))
	case "aks create", "aks update":
		thing := map[string]any{"currentKubernetesVersion": "1.33.2", "networkProfile": map[string]any{"networkPolicy": nil}}
		if o["--network-dataplane"] == "cilium" {
			thing["networkProfile"] = map[string]any{"networkPolicy": "cilium"}
		}
		if o["--enable-oidc-issuer"] != "" && o["--enable-workload-identity"] != "" {
			thing["oidcIssuerProfile"] = map[string]any{"enabled": true, "issuerUrl": "https://issuer.example/" + o["--name"] + "/"}
			thing["securityProfile"] = map[string]any{"workloadIdentity": map[string]any{"enabled": true}}
		}
		return create(key("cluster", "--resource-group", "--name"), thing)
	case "aks delete":
		return remove(key("cluster", "--resource-group", "--name"))
	case "aks get-credentials":
		content := "kubeconfig"
		if w.EntraLogin {
			content = "command: kubelogin"
		}
		if err := os.WriteFile(o["--file"], []byte(content), 0o600); err != nil {
			panic(err)
		}
		return nil, 0
	}
	panic(name)
}

// kubelogin makes a kubeconfig use the login of az.
func kubelogin(args []string) (code int) {
	file := os.Getenv("KUBECONFIG")
	if strings.Join(args, " ") != "convert-kubeconfig --login azurecli --kubeconfig "+file {
		return 2
	}
	if err := os.WriteFile(file, []byte("kubeconfig"), 0o600); err != nil {
		panic(err)
	}
	return 0
}
