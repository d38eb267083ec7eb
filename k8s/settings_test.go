package k8s

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// names returns the names of the settings in a file that pattern matches.
func (f tree) names(path, pattern string) (names []string) {
	f.Helper()
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(f.read(path), -1) {
		names = append(names, m[1])
	}
	return names
}

func TestBuildNamesTheMissingSetting(t *testing.T) {
	files := map[string][]string{
		settings:       {"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_STORAGE_ACCOUNT_URL", "FRONTEND_IMAGE", "SIGNER_IMAGE", "VERSION"},
		authentication: {"OIDC_ISSUER", "OIDC_AUDIENCE"},
		monitoring:     {"RUNBOOK_URL"},
	}
	for file, names := range files {
		if got := newTree(t).names(file, commented); !slices.Equal(got[:len(names)], names) {
			t.Errorf("%s has %q; want %q", file, got, names)
		}
		for _, name := range names {
			f := filled(t)
			if file != settings {
				f.switchOn(filepath.Base(filepath.Dir(file)))
			}
			f.edit(file, "(?m)^"+name+"=", "# $0")
			f.wantMissing(name)
		}
	}
}

// Settings with the tag shared:"true" must be equal in both containers, so they belong into the ConfigMap that both read.
func TestSharedSettingsHaveTheirFile(t *testing.T) {
	files, err := filepath.Glob("../shared/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var tagged []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`env:"([A-Z_]+)[^"]*" shared:"true"`).FindAllSubmatch(b, -1) {
			if !strings.HasSuffix(file, "_test.go") {
				tagged = append(tagged, string(m[1]))
			}
		}
	}
	if len(tagged) < 6 {
		t.Fatalf("the shared settings are %q", tagged)
	}
	f := newTree(t)
	offered := slices.Concat(f.names(shared, setting), f.names(authentication, setting))
	for _, name := range tagged {
		if !slices.Contains(offered, name) {
			t.Errorf("%s is neither in shared.env nor in authentication.env", name)
		}
	}
}

// All settings are in the pod template or in the ConfigMap whose hash it has, so that a change starts a rollout. The webhook
// changes pods only when they are created: a setting of the ServiceAccount alone would reach no existing pod.
func TestContainersGetTheirSettings(t *testing.T) {
	f := filled(t).switchOn(".*")
	for name, value := range map[string]string{
		"AZURE_CLIENT_ID": "the-client", "AZURE_TENANT_ID": "the-tenant", "AZURE_STORAGE_ACCOUNT_URL": "https://acct.blob.core.windows.net",
		"FRONTEND_IMAGE": "r.example/f@sha256:1", "SIGNER_IMAGE": "r.example:5000/s:v1", "VERSION": "v1-rc.1",
	} {
		f.set(settings, name, value)
	}
	f.set(shared, "MAX_PICTURE_SIZE", "64MiB")
	m := f.build(aks)
	account := find(t, m, func(a *corev1.ServiceAccount) bool { return a.Name == "cats-api-sa" })
	signer, frontend := m.containers(t)[0], m.containers(t)[1]
	both := map[string]string{
		"MAX_PICTURE_SIZE": "64MiB",
		"OIDC_ISSUER":      "https://login.microsoftonline.com/TENANT/v2.0", "OIDC_DISCOVERY_URL": "", "READ_ACCESS": "own",
		"OIDC_AUDIENCE": "00000000-0000-0000-0000-000000000000", "OIDC_USER_CLAIM": "sub", "OIDC_CLIENT_ID": "", "OIDC_SCOPE": "openid",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector.observability:4318", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1",
	}
	wantSigner, wantFrontend := maps.Clone(both), maps.Clone(both)
	maps.Copy(wantSigner, map[string]string{"AZURE_STORAGE_ACCOUNT_URL": "https://acct.blob.core.windows.net", "ANONYMOUS_ACCESS": "false", "DRAIN_TIMEOUT": "10s"})
	maps.Copy(wantFrontend, map[string]string{"DRAIN_DELAY": "15s", "DRAIN_TIMEOUT": "4m"})
	for what, row := range map[string][2]any{
		"environment of the signer":   {wantSigner, m.environment(t, signer)},
		"environment of the frontend": {wantFrontend, m.environment(t, frontend)},
		"client ID":                   {"the-client", account.Annotations["azure.workload.identity/client-id"]},
		"tenant ID":                   {"the-tenant", account.Annotations["azure.workload.identity/tenant-id"]},
		"client ID of the pod":        {"the-client", m.template(t).Annotations["cats-api.example/client-id"]},
		"tenant ID of the pod":        {"the-tenant", m.template(t).Annotations["cats-api.example/tenant-id"]},
		"image of the frontend":       {"r.example/f@sha256:1", frontend.Image},
		"image of the signer":         {"r.example:5000/s:v1", signer.Image},
		"version":                     {"v1-rc.1", m.template(t).Labels[labelPrefix+"version"]},
	} {
		if diff := cmp.Diff(row[0], row[1]); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	for _, r := range m.all {
		if r.GetName() == "settings" || r.GetName() == "monitoring" {
			t.Errorf("the local ConfigMap %s would be applied", r.GetName())
		}
	}
}

func TestOverlayNeedsAChoiceOfAuthentication(t *testing.T) {
	unset := func() tree {
		f := filled(t)
		f.edit(settings, "(?m)^ANONYMOUS_ACCESS=", "# $0")
		return f
	}
	unset().wantMissing("ANONYMOUS_ACCESS")
	all := maps.Clone(variants(t)) // with ANONYMOUS_ACCESS=true
	all["only authentication"] = unset().switchOn("authentication").build(aks)
	f := filled(t)
	f.edit(emulator+"/kustomization.yaml", "(?m)^resources:$", "components: [../../components/authentication]\n$0")
	all["emulator with authentication"] = f.build(emulator)
	for variant, m := range all {
		got := m.environment(t, m.containers(t)[0])
		on := with(variant, "authentication")
		if got["ANONYMOUS_ACCESS"] != strconv.FormatBool(!on) || (got["OIDC_ISSUER"] != "") != on {
			t.Errorf("%s: ANONYMOUS_ACCESS is %q, OIDC_ISSUER %q", variant, got["ANONYMOUS_ACCESS"], got["OIDC_ISSUER"])
		}
	}
}

func TestChangedSharedSettingChangesThePodTemplate(t *testing.T) {
	f := filled(t)
	f.set(shared, "MAX_PIXELS", "1000")
	if before, after := variants(t)["aks"].template(t), f.build(aks).template(t); reflect.DeepEqual(before, after) {
		t.Error("the pod template does not change")
	}
}

func TestComponentsChangeThePodTemplate(t *testing.T) {
	all := variants(t)
	for _, component := range []string{"authentication", "traces", "image-pull-secret", "identity-bindings"} {
		if reflect.DeepEqual(all["aks"].template(t), all["aks with "+component].template(t)) {
			t.Errorf("the component %s does not change the pod template", component)
		}
	}
}

// The path differs between versions of the webhook, which sets AZURE_FEDERATED_TOKEN_FILE.
func TestManifestsDoNotSetTheTokenPath(t *testing.T) {
	for _, r := range variants(t)["aks with everything"].all {
		if regexp.MustCompile(`azure-identity-token|FEDERATED_TOKEN_FILE`).MatchString(r.MustYaml()) {
			t.Errorf("%s has the path of the token", r.CurId())
		}
	}
}

func TestAlertsLinkToTheConfiguredRunbook(t *testing.T) {
	text := ""
	for _, r := range variants(t)["aks with monitoring"].all {
		text += r.MustYaml()
	}
	alerts := regexp.MustCompile(`(?s)alert: (\w+).*?runbook_url: (\S+)`).FindAllStringSubmatch(text, -1)
	for _, m := range alerts {
		if want := "https://github.com/OWNER/cats-api/blob/v1.0.0/docs/operations.md#" + strings.ToLower(m[1]); m[2] != want {
			t.Errorf("%s: the runbook is %s; want %s", m[1], m[2], want)
		}
	}
	if len(alerts) < 10 {
		t.Errorf("only %d alerts", len(alerts))
	}
}

// The cluster tests must not share an object with another cats-api in the same cluster.
func TestClusterTestOverlayIsSeparate(t *testing.T) {
	m, err := build("../e2e/cluster/testdata/overlay")
	if err != nil {
		t.Fatal(err)
	}
	if want := len(variants(t)["emulator"].all); len(m.all) != want {
		t.Errorf("the overlay has %d objects; emulator has %d", len(m.all), want)
	}
	ns := find(t, m, func(*corev1.Namespace) bool { return true })
	if ns.Name != "cats-api-test" || ns.Labels["cats-api.example/cluster-test"] != "true" {
		t.Errorf("the namespace is %s with the labels %v", ns.Name, ns.Labels)
	}
	for _, r := range m.all {
		if r.GetKind() != "Namespace" && r.GetNamespace() != "cats-api-test" {
			t.Errorf("%s is in the namespace %q", r.CurId(), r.GetNamespace())
		}
		if taken := regexp.MustCompile(`30100|: monitoring\n|:dev\n|version: dev\n`).FindString(r.MustYaml()); taken != "" {
			t.Errorf("%s has %q", r.CurId(), taken)
		}
	}
	pod := m.template(t).Spec
	if len(pod.InitContainers) != 2 || pod.InitContainers[0].Name != "trust" || pod.InitContainers[1].Name != "signer" {
		t.Errorf("the init containers are %v; want trust before signer", pod.InitContainers)
	}
	front := find(t, m, func(s *corev1.Service) bool { return s.Name == "azure-front" }).Spec.Ports[0]
	if link := m.environment(t, pod.InitContainers[1])["LINK_BASE_URL"]; link != fmt.Sprintf("http://localhost:%d", front.NodePort) {
		t.Errorf("signed URLs have the host %s; the node port is %d", link, front.NodePort)
	}
}
