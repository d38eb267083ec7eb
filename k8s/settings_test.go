package k8s

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// switchOn adds components to an overlay.
func switchOn(t *testing.T, mem filesys.FileSystem, overlay string, components ...string) {
	t.Helper()
	for _, c := range components {
		if overlay == "overlays/aks" {
			edit(t, mem, overlay+"/kustomization.yaml", `(?m)^ +# - (\.\./\.\./components/`+c+`)\b.*$`, "  - $1")
		} else {
			edit(t, mem, overlay+"/kustomization.yaml", `(?m)^resources:$`, "components: [../../components/"+c+"]\nresources:")
		}
	}
}

// set gives a setting of the aks overlay a value.
func set(t *testing.T, mem filesys.FileSystem, name, value string) {
	t.Helper()
	edit(t, mem, settings, `(?m)^(?:# )?`+name+`=.*$`, name+"="+value)
}

func TestOverlayNeedsAChoiceOfAuthentication(t *testing.T) {
	const aks, emulator = "overlays/aks", "overlays/emulator"
	for name, row := range map[string]struct {
		overlay    string
		value      string // of ANONYMOUS_ACCESS in settings.env, "" for none
		components []string
		want       string // of ANONYMOUS_ACCESS, "" for a build that fails
	}{
		"neither":                           {aks, "", nil, ""},
		"neither, with other components":    {aks, "", []string{"traces", "monitoring", "identity-bindings"}, ""},
		"anonymous access":                  {aks, "true", nil, "true"},
		"anonymous access, with others":     {aks, "true", []string{"traces", "image-pull-secret"}, "true"},
		"callers":                           {aks, "", []string{"callers"}, "false"},
		"callers, with others":              {aks, "", []string{"traces", "callers", "monitoring"}, "false"},
		"callers, and anonymous access off": {aks, "false", []string{"callers"}, "false"},
		"both":                              {aks, "true", []string{"callers"}, "false"},
		"both, with others":                 {aks, "true", []string{"callers", "traces", "internal-load-balancer"}, "false"},
		"emulator":                          {emulator, "", nil, "true"},
		"emulator with callers":             {emulator, "", []string{"callers"}, "false"},
	} {
		t.Run(name, func(t *testing.T) {
			mem := filled(t)
			edit(t, mem, settings, `(?m)^(ANONYMOUS_ACCESS=)`, "# $1")
			if row.value != "" {
				set(t, mem, "ANONYMOUS_ACCESS", row.value)
			}
			switchOn(t, mem, row.overlay, row.components...)
			if row.want == "" {
				_, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(mem, "/k8s/"+row.overlay)
				if err == nil || !strings.Contains(err.Error(), "data.ANONYMOUS_ACCESS") {
					t.Errorf("the build returns %v; want an error that names ANONYMOUS_ACCESS", err)
				}
				return
			}
			pod := deployment(t, build(t, mem, row.overlay)).Spec.Template.Spec
			var signer corev1.Container
			for _, c := range pod.InitContainers {
				if c.Name == "signer" {
					signer = c
				}
			}
			if got := variable(signer, "ANONYMOUS_ACCESS"); got != row.want {
				t.Errorf("ANONYMOUS_ACCESS is %q; want %q", got, row.want)
			}
			if callers := variable(signer, "OIDC_ISSUER") != ""; callers != (row.want == "false") {
				t.Errorf("ANONYMOUS_ACCESS is %q, and OIDC_ISSUER %q", row.want, variable(signer, "OIDC_ISSUER"))
			}
		})
	}
}

// The webhook and the ServiceAccount admission plugin change pods when they are
// created. So a setting in the ServiceAccount alone reaches no pod that exists.
func TestChangedSettingsChangeThePodTemplate(t *testing.T) {
	text, err := tree(t).ReadFile("/k8s/" + settings)
	if err != nil {
		t.Fatal(err)
	}
	template := func(change func(filesys.FileSystem)) any {
		mem := filled(t)
		set(t, mem, "AZURE_CLIENT_ID", "11111111-0000-0000-0000-000000000000")
		set(t, mem, "AZURE_TENANT_ID", "22222222-0000-0000-0000-000000000000")
		change(mem)
		return deployment(t, build(t, mem, "overlays/aks")).Spec.Template
	}
	for _, components := range [][]string{nil, {"identity-bindings"}, {"callers", "traces", "image-pull-secret"}} {
		on := func(mem filesys.FileSystem) { switchOn(t, mem, "overlays/aks", components...) }
		before := template(on)
		if !reflect.DeepEqual(before, template(on)) {
			t.Fatal("the same settings give two templates")
		}
		for _, name := range regexp.MustCompile(`(?m)^# ([A-Z_]+)=`).FindAllSubmatch(text, -1) {
			if string(name[1]) == "ANONYMOUS_ACCESS" && components != nil && components[0] == "callers" {
				continue // the component decides
			}
			after := template(func(mem filesys.FileSystem) {
				on(mem)
				set(t, mem, string(name[1]), "changed")
			})
			if reflect.DeepEqual(before, after) {
				t.Errorf("with %q: another %s does not change the pod template", components, name[1])
			}
		}
	}
	for name, changed := range map[string]string{
		"another client ID": "33333333-0000-0000-0000-000000000000",
		"one digit":         "11111111-0000-0000-0000-000000000001",
		"the tenant's ID":   "22222222-0000-0000-0000-000000000000",
		"in quotes":         `"11111111-0000-0000-0000-000000000000"`,
		"empty":             "",
	} {
		before := template(func(filesys.FileSystem) {})
		after := template(func(mem filesys.FileSystem) { set(t, mem, "AZURE_CLIENT_ID", changed) })
		if reflect.DeepEqual(before, after) {
			t.Errorf("%s: the client ID %q does not change the pod template", name, changed)
		}
	}
}

func TestSwitchedComponentsChangeThePodTemplate(t *testing.T) {
	before := deployment(t, build(t, filled(t), "overlays/aks")).Spec.Template
	for _, component := range []string{"callers", "traces", "image-pull-secret", "identity-bindings"} {
		mem := filled(t)
		switchOn(t, mem, "overlays/aks", component)
		if reflect.DeepEqual(before, deployment(t, build(t, mem, "overlays/aks")).Spec.Template) {
			t.Errorf("the component %s does not change the pod template", component)
		}
	}
}

func TestContainersReportTheirLastLogLines(t *testing.T) {
	for name, objects := range variants(t) {
		for _, o := range objects {
			d, ok := o.(*appsv1.Deployment)
			if !ok {
				continue
			}
			for _, c := range append(d.Spec.Template.Spec.InitContainers, d.Spec.Template.Spec.Containers...) {
				if c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
					t.Errorf("%s: %s of %s has the terminationMessagePolicy %q", name, c.Name, d.Name, c.TerminationMessagePolicy)
				}
			}
		}
	}
}

// The overlay of make cluster-test must not share anything with a cats-api in the same
// cluster.
func TestClusterTestOverlayIsSeparate(t *testing.T) {
	disk := filesys.MakeFsOnDisk()
	emulator := build(t, tree(t), "overlays/emulator")
	objects := buildAt(t, disk, "../e2e/cluster/testdata/overlay")
	if len(objects) != len(emulator) {
		t.Errorf("it has %d objects; emulator has %d", len(objects), len(emulator))
	}
	ns := one(t, objects, func(*corev1.Namespace) bool { return true })
	if ns.Name != "cats-api-test" || ns.Labels["cats-api.example/cluster-test"] != "true" {
		t.Errorf("the namespace is %s with the labels %v", ns.Name, ns.Labels)
	}
	for _, o := range objects {
		m, err := objectMeta(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, is := o.(*corev1.Namespace); !is && m.GetNamespace() != "cats-api-test" {
			t.Errorf("%T %s is in the namespace %q", o, m.GetName(), m.GetNamespace())
		}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		for _, shared := range []string{"30100", `"monitoring"`, `:dev"`, `"cats-api-test-`} {
			if strings.Contains(strings.ReplaceAll(string(text), `"cats-api-test-monitoring"`, ""), shared) {
				t.Errorf("%T %s has %s", o, m.GetName(), shared)
			}
		}
	}
	pod := deployment(t, objects).Spec.Template.Spec
	var order []string
	for _, c := range pod.InitContainers {
		order = append(order, c.Name)
	}
	if !slices.Equal(order, []string{"trust", "signer"}) {
		t.Errorf("the init containers are %q; want trust before signer", order)
	}
	front := one(t, objects, func(s *corev1.Service) bool { return s.Name == "azure-front" }).Spec.Ports[0]
	if link := variable(pod.InitContainers[1], "LINK_BASE_URL"); link != fmt.Sprintf("http://localhost:%d", front.NodePort) {
		t.Errorf("links lead to %s, and the node port is %d", link, front.NodePort)
	}
}
