package k8s

import (
	"fmt"
	"maps"
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

func TestBuildNamesTheMissingSetting(t *testing.T) {
	for file, names := range map[string][]string{
		settings: {
			"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_STORAGE_ACCOUNT_URL", "FRONTEND_IMAGE", "SIGNER_IMAGE", "VERSION", "ANONYMOUS_ACCESS",
		},
		authentication: {"OIDC_ISSUER", "OIDC_AUDIENCE"},
		monitoring:     {"RUNBOOK_URL"},
	} {
		for _, name := range names {
			f := filled(t)
			if file != settings {
				f.switchOn(filepath.Base(filepath.Dir(file)))
			}
			f.edit(file, "(?m)^"+name+"=", "# $0")
			if _, err := build(filepath.Join(f.dir, aks)); err == nil || !strings.Contains(err.Error(), "`data."+name+"` is missing") {
				t.Errorf("without %s the build returns %v", name, err)
			}
			if !strings.Contains(read(t, file), "\n# "+name+"=") {
				t.Errorf("%s comes with a value of %s", file, name)
			}
		}
	}
}

// Settings with the tag shared:"true" must be equal in both containers, so they belong into the ConfigMap that both read.
func TestSharedSettingsHaveTheirFile(t *testing.T) {
	files, err := filepath.Glob("../shared/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	offered := regexp.MustCompile(setting).FindAllString(read(t, shared)+read(t, authentication), -1)
	total := 0
	for _, file := range files {
		for _, m := range regexp.MustCompile(`env:"([A-Z_]+)[^"]*" shared:"true"`).FindAllStringSubmatch(read(t, file), -1) {
			total++
			if !slices.Contains(offered, "# "+m[1]+"=") && !slices.Contains(offered, m[1]+"=") && !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s is neither in shared.env nor in authentication.env", m[1])
			}
		}
	}
	if total < 6 {
		t.Errorf("only %d shared settings", total)
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
	account := find[*corev1.ServiceAccount](t, m, "cats-api-sa")
	signer, frontend := m.containers(t)
	both := map[string]string{
		"MAX_PICTURE_SIZE": "64MiB",
		"OIDC_ISSUER":      "https://login.microsoftonline.com/TENANT/v2.0", "OIDC_DISCOVERY_URL": "", "READ_ACCESS": "own",
		"OIDC_AUDIENCE": "00000000-0000-0000-0000-000000000000", "OIDC_USER_CLAIM": "sub", "OIDC_CLIENT_ID": "", "OIDC_SCOPE": "openid",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector.observability:4318",
		"OTEL_TRACES_SAMPLER":         "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1",
	}
	wantSigner, wantFrontend := maps.Clone(both), maps.Clone(both)
	maps.Copy(wantSigner, map[string]string{
		"AZURE_STORAGE_ACCOUNT_URL": "https://acct.blob.core.windows.net", "ANONYMOUS_ACCESS": "false", "DRAIN_TIMEOUT": "10s",
	})
	maps.Copy(wantFrontend, map[string]string{"DRAIN_DELAY": "15s", "DRAIN_TIMEOUT": "4m"})
	got := map[string]any{
		"signer": m.environment(t, signer), "frontend": m.environment(t, frontend), "images": []string{signer.Image, frontend.Image},
		"client ID": account.Annotations["azure.workload.identity/client-id"], "of the pod": m.template(t).Annotations["cats-api.example/client-id"],
		"tenant ID": account.Annotations["azure.workload.identity/tenant-id"], "and": m.template(t).Annotations["cats-api.example/tenant-id"],
		"version": m.template(t).Labels[labelPrefix+"version"],
	}
	want := map[string]any{
		"signer": wantSigner, "frontend": wantFrontend, "images": []string{"r.example:5000/s:v1", "r.example/f@sha256:1"},
		"client ID": "the-client", "of the pod": "the-client", "tenant ID": "the-tenant", "and": "the-tenant", "version": "v1-rc.1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, r := range m.all {
		if r.GetName() == "settings" || r.GetName() == "monitoring" {
			t.Errorf("the local ConfigMap %s would be applied", r.GetName())
		}
	}
}

func TestOverlayNeedsAChoiceOfAuthentication(t *testing.T) {
	all := maps.Clone(variants(t)) // with ANONYMOUS_ACCESS=true; TestBuildNamesTheMissingSetting builds without it
	f := filled(t).switchOn("authentication")
	f.edit(settings, "(?m)^ANONYMOUS_ACCESS=", "# $0")
	all["only authentication"] = f.build(aks)
	f.edit(emulator+"/kustomization.yaml", "(?m)^resources:$", "components: [../../components/authentication]\n$0")
	all["emulator with authentication"] = f.build(emulator)
	for variant, m := range all {
		signer, _ := m.containers(t)
		got, on := m.environment(t, signer), with(variant, "authentication")
		if got["ANONYMOUS_ACCESS"] != strconv.FormatBool(!on) || (got["OIDC_ISSUER"] != "") != on {
			t.Errorf("%s: ANONYMOUS_ACCESS is %q, OIDC_ISSUER %q", variant, got["ANONYMOUS_ACCESS"], got["OIDC_ISSUER"])
		}
	}
}

func TestChangesOfSettingsChangeThePodTemplate(t *testing.T) {
	f := filled(t)
	f.set(shared, "MAX_PIXELS", "1000")
	all := maps.Clone(variants(t))
	all["aks with another shared setting"] = f.build(aks)
	for _, change := range []string{"another shared setting", "authentication", "traces", "image-pull-secret", "identity-bindings"} {
		if reflect.DeepEqual(all["aks"].template(t), all["aks with "+change].template(t)) {
			t.Errorf("%s does not change the pod template", change)
		}
	}
}

// The cluster tests must not share an object with another cats-api in the same cluster.
func TestClusterTestOverlayIsSeparate(t *testing.T) {
	m, err := build("../e2e/cluster/testdata/overlay")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.all {
		if r.GetKind() != "Namespace" && r.GetNamespace() != "cats-api-test" || r.GetKind() == "Namespace" && r.GetName() != "cats-api-test" {
			t.Errorf("%s is in the namespace %q", r.CurId(), r.GetNamespace())
		}
		if taken := regexp.MustCompile(`30100|: monitoring\n|:dev\n|version: dev\n`).FindString(r.MustYaml()); taken != "" {
			t.Errorf("%s has %q", r.CurId(), taken)
		}
	}
	signer, _ := m.containers(t)
	port := find[*corev1.Service](t, m, "azure-front").Spec.Ports[0].NodePort
	if link := m.environment(t, signer)["LINK_BASE_URL"]; link != fmt.Sprintf("http://localhost:%d", port) {
		t.Errorf("signed URLs have the host %s; the node port is %d", link, port)
	}
}
