// Package k8s tests the manifests without a cluster: that they build, that they
// are what Kubernetes takes them for, and that they keep the rules of the split.
package k8s

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// tree is a copy of the manifests in memory, to be changed by a test.
func tree(t *testing.T) filesys.FileSystem {
	t.Helper()
	mem := filesys.MakeFsInMemory()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return mem.WriteFile("/k8s/"+path, b)
	})
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

// edit replaces what matches pattern in a file, which must be there.
func edit(t *testing.T, mem filesys.FileSystem, path, pattern, with string) {
	t.Helper()
	b, err := mem.ReadFile("/k8s/" + path)
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(pattern)
	if !re.Match(b) {
		t.Fatalf("%s has no %s", path, pattern)
	}
	if err := mem.WriteFile("/k8s/"+path, re.ReplaceAll(b, []byte(with))); err != nil {
		t.Fatal(err)
	}
}

const settings, callers, uncomment = "overlays/aks/settings.env", "components/callers/callers.env", `(?m)^# ([A-Z_]+=)`

// filled is tree with the settings of the aks overlay filled in.
func filled(t *testing.T) filesys.FileSystem {
	t.Helper()
	mem := tree(t)
	edit(t, mem, settings, uncomment, "$1")
	edit(t, mem, callers, uncomment, "$1")
	return mem
}

// build returns the objects of an overlay. Each must decode strictly into the
// type that Kubernetes has for it; custom resources are left out.
func build(t *testing.T, mem filesys.FileSystem, overlay string) []runtime.Object {
	t.Helper()
	return buildAt(t, mem, "/k8s/"+overlay)
}

func buildAt(t *testing.T, files filesys.FileSystem, overlay string) []runtime.Object {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, overlay)
	if err != nil {
		t.Fatalf("%s: %v", overlay, err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	for _, r := range built.Resources() {
		if strings.HasSuffix(r.GetGvk().Group, "monitoring.coreos.com") {
			continue
		}
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			t.Fatalf("%s: %s: %v", overlay, r.CurId(), err)
		}
		objects = append(objects, object)
	}
	return objects
}

// one returns the object of type T that ok says yes to.
func one[T runtime.Object](t *testing.T, objects []runtime.Object, ok func(T) bool) T {
	t.Helper()
	var found []T
	for _, o := range objects {
		if typed, is := o.(T); is && ok(typed) {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T; want one", len(found), *new(T))
	}
	return found[0]
}

func deployment(t *testing.T, objects []runtime.Object) *appsv1.Deployment {
	t.Helper()
	return one(t, objects, func(d *appsv1.Deployment) bool { return d.Name == "cats-api" })
}

// built are the variants, by the first test that asks for them.
var built map[string][]runtime.Object

// variants are all that is applied by someone. No test may change them.
func variants(t *testing.T) map[string][]runtime.Object {
	t.Helper()
	if built != nil {
		return built
	}
	all := map[string][]runtime.Object{
		"aks":      build(t, filled(t), "overlays/aks"),
		"emulator": build(t, tree(t), "overlays/emulator"),
	}
	components, err := filepath.Glob("components/*")
	if err != nil || len(components) == 0 {
		t.Fatalf("%v, %v", components, err)
	}
	for _, c := range components {
		mem := filled(t)
		edit(t, mem, "overlays/aks/kustomization.yaml", `(?m)^ +# - \.\./\.\./`+c+`\b.*$`, "  - ../../"+c)
		all["aks with "+c] = build(t, mem, "overlays/aks")
	}
	mem := filled(t)
	edit(t, mem, "overlays/aks/kustomization.yaml", `(?m)^ +# - (\S+).*$`, "  - $1")
	all["aks with everything"] = build(t, mem, "overlays/aks")
	built = all
	return all
}

func TestAnOverlayWithASettingMissingDoesNotBuild(t *testing.T) {
	mem := tree(t)
	text, err := mem.ReadFile("/k8s/" + settings)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^# ([A-Z_]+)=`).FindAllSubmatch(text, -1)
	if len(names) != 6 {
		t.Fatalf("%d settings", len(names))
	}
	for _, name := range names {
		mem := filled(t)
		edit(t, mem, settings, `(?m)^(`+string(name[1])+`=)`, "# $1")
		_, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(mem, "/k8s/overlays/aks")
		if err == nil || !strings.Contains(err.Error(), "data."+string(name[1])) {
			t.Errorf("without %s: %v", name[1], err)
		}
	}
}

func TestCallersAreKnownToBothContainersOrItDoesNotBuild(t *testing.T) {
	known := func(missing string) (*appsv1.Deployment, error) {
		mem := filled(t)
		edit(t, mem, "overlays/aks/kustomization.yaml", `(?m)^ +# - (\.\./\.\./components/callers).*$`, "  - $1")
		if missing != "" {
			edit(t, mem, callers, `(?m)^(`+missing+`=)`, "# $1")
			_, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(mem, "/k8s/overlays/aks")
			return nil, err
		}
		return deployment(t, build(t, mem, "overlays/aks")), nil
	}
	for _, name := range []string{"OIDC_ISSUER", "OIDC_DISCOVERY_URL", "OIDC_AUDIENCE", "OIDC_USER_CLAIM", "READ_ACCESS", "OIDC_CLIENT_ID", "OIDC_SCOPE"} {
		if _, err := known(name); err == nil || !strings.Contains(err.Error(), "data."+name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	d, _ := known("")
	values := func(c corev1.Container) map[string]string {
		all := map[string]string{}
		for _, e := range c.Env {
			all[e.Name] = e.Value
		}
		return all
	}
	signer, frontend := values(d.Spec.Template.Spec.InitContainers[0]), values(d.Spec.Template.Spec.Containers[0])
	for name, want := range map[string]string{"OIDC_ISSUER": "https://login.microsoftonline.com/TENANT/v2.0", "OIDC_DISCOVERY_URL": "", "READ_ACCESS": "own"} {
		_, inSigner := signer[name]
		_, inFrontend := frontend[name]
		if !inSigner || !inFrontend || signer[name] != want || frontend[name] != want {
			t.Errorf("%s is %q for the signer and %q for the frontend", name, signer[name], frontend[name])
		}
	}
	if signer["OIDC_AUDIENCE"] == "" || signer["OIDC_USER_CLAIM"] != "sub" {
		t.Errorf("the signer has %v", signer)
	}
	if id, ok := frontend["OIDC_CLIENT_ID"]; !ok || id != "" || frontend["OIDC_SCOPE"] != "openid" {
		t.Errorf("the frontend has %v", frontend)
	}
}

// traced reports whether a variant has traces.
func traced(variant string) bool {
	return strings.HasSuffix(variant, "traces") || strings.HasSuffix(variant, "everything")
}

func TestBothContainersSendTheirTracesToOneCollectorOrNone(t *testing.T) {
	for name, objects := range variants(t) {
		pod := deployment(t, objects).Spec.Template.Spec
		signer, frontend := pod.InitContainers[len(pod.InitContainers)-1], pod.Containers[0]
		for setting, want := range map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector.observability:4318", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1",
		} {
			if !traced(name) {
				want = ""
			}
			for _, c := range []corev1.Container{signer, frontend} {
				if got := variable(c, setting); got != want {
					t.Errorf("%s: %s: %s is %q; want %q", name, c.Name, setting, got, want)
				}
			}
		}
	}
}

func TestTheSettingsArriveWhereTheyBelong(t *testing.T) {
	mem := filled(t)
	edit(t, mem, "overlays/aks/kustomization.yaml", `(?m)^ +# - (\S+).*$`, "  - $1")
	for name, value := range map[string]string{
		"AZURE_CLIENT_ID": "the-client", "AZURE_TENANT_ID": "the-tenant", "AZURE_STORAGE_ACCOUNT_URL": "https://acct.blob.core.windows.net",
		"FRONTEND_IMAGE": "r.example/f@sha256:1", "SIGNER_IMAGE": "r.example/s:v1",
	} {
		edit(t, mem, settings, `(?m)^`+name+`=.*$`, name+"="+value)
	}
	objects := build(t, mem, "overlays/aks")
	account := one(t, objects, func(a *corev1.ServiceAccount) bool { return a.Name == "cats-api-sa" })
	d := deployment(t, objects)
	signer := d.Spec.Template.Spec.InitContainers[0]
	for what, row := range map[string][2]string{
		"client":         {account.Annotations["azure.workload.identity/client-id"], "the-client"},
		"tenant":         {account.Annotations["azure.workload.identity/tenant-id"], "the-tenant"},
		"account":        {variable(signer, "AZURE_STORAGE_ACCOUNT_URL"), "https://acct.blob.core.windows.net"},
		"frontend image": {d.Spec.Template.Spec.Containers[0].Image, "r.example/f@sha256:1"},
		"signer image":   {signer.Image, "r.example/s:v1"},
	} {
		if row[0] != row[1] {
			t.Errorf("%s is %q; want %q", what, row[0], row[1])
		}
	}
	for _, o := range objects {
		if c, ok := o.(*corev1.ConfigMap); ok && c.Name == "settings" {
			t.Error("the settings are an object of the cluster as well")
		}
	}
}

func variable(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// The token's path moved between versions of the webhook, which tells it.
func TestTheTokensPathIsWrittenNowhere(t *testing.T) {
	for name, objects := range variants(t) {
		if name == "emulator" { // which stands for the webhook
			continue
		}
		for _, o := range objects {
			if text := fmt.Sprintf("%+v", o); strings.Contains(text, "azure-identity-token") || strings.Contains(text, "FEDERATED_TOKEN_FILE") {
				t.Errorf("%s: %T names the token's path", name, o)
			}
		}
	}
}

func TestEveryPodIsAdmittedAsRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, objects := range variants(t) {
		for _, o := range objects {
			d, ok := o.(*appsv1.Deployment)
			if !ok {
				continue
			}
			for _, r := range evaluator.EvaluatePod(restricted, &d.Spec.Template.ObjectMeta, &d.Spec.Template.Spec) {
				if !r.Allowed {
					t.Errorf("%s: %s: %s, %s", name, d.Name, r.ForbiddenReason, r.ForbiddenDetail)
				}
			}
			for _, c := range slices.Concat(d.Spec.Template.Spec.InitContainers, d.Spec.Template.Spec.Containers) {
				if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
					t.Errorf("%s: %s of %s can write to its root file system", name, c.Name, d.Name)
				}
			}
		}
		ns := one(t, objects, func(*corev1.Namespace) bool { return true })
		if ns.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
			t.Errorf("%s: the namespace does not enforce it", name)
		}
	}
}

func TestMemoryIsThatOfTheTutorialsContainer(t *testing.T) {
	for name, objects := range variants(t) {
		pod := deployment(t, objects).Spec.Template.Spec
		var total resource.Quantity
		for _, c := range append(slices.Clone(pod.Containers), pod.InitContainers...) {
			limit, request := c.Resources.Limits.Memory(), c.Resources.Requests.Memory()
			if limit.IsZero() || limit.Cmp(*request) != 0 || c.Resources.Requests.Cpu().IsZero() {
				t.Errorf("%s: %s: limit %v, request %v; want the same, and a request of CPU", name, c.Name, limit, request)
			}
			if c.RestartPolicy == nil && c.Name != "frontend" {
				continue // gone before the others start
			}
			total.Add(*limit)
			if variable(c, "GOMEMLIMIT") != "" {
				t.Errorf("%s: %s: GOMEMLIMIT is set; the containers follow their limit themselves", name, c.Name)
			}
		}
		if total.Cmp(resource.MustParse("120Mi")) > 0 {
			t.Errorf("%s: both containers together may take %v", name, &total)
		}
	}
}

func TestARolloutHasTimeToDrain(t *testing.T) {
	for name, objects := range variants(t) {
		d := deployment(t, objects)
		pod := d.Spec.Template.Spec
		duration := func(c corev1.Container, setting string) time.Duration {
			v, err := time.ParseDuration(variable(c, setting))
			if err != nil {
				t.Fatalf("%s: %s: %s: %v", name, c.Name, setting, err)
			}
			return v
		}
		frontend, signer := pod.Containers[0], pod.InitContainers[len(pod.InitContainers)-1]
		// The signer gets its SIGTERM when the frontend has ended.
		needed := duration(frontend, "DRAIN_DELAY") + duration(frontend, "DRAIN_TIMEOUT") + duration(signer, "DRAIN_TIMEOUT")
		if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; grace < needed+5*time.Second {
			t.Errorf("%s: terminationGracePeriodSeconds is %v, and the drains take up to %v", name, grace, needed)
		}
		if duration(frontend, "DRAIN_DELAY") < 15*time.Second || frontend.ReadinessProbe.FailureThreshold*frontend.ReadinessProbe.PeriodSeconds < 15 {
			t.Errorf("%s: DRAIN_DELAY is too short for load balancers to notice", name)
		}
		if d.Spec.Replicas != nil || d.Spec.Strategy.RollingUpdate == nil || d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
			t.Errorf("%s: replicas %v, strategy %+v; want none, since the autoscaler has them, and maxUnavailable 0", name, d.Spec.Replicas, d.Spec.Strategy)
		}
		if patience := signer.StartupProbe.FailureThreshold * signer.StartupProbe.PeriodSeconds; *d.Spec.ProgressDeadlineSeconds <= patience {
			t.Errorf("%s: progressDeadlineSeconds is not above the start-up probe's %d s", name, patience)
		}
		for _, c := range []corev1.Container{frontend, signer} {
			if c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe == nil || c.LivenessProbe.HTTPGet.Path != "/livez" ||
				c.ReadinessProbe.HTTPGet.Port.StrVal != c.Name+"-ops" || c.LivenessProbe.HTTPGet.Port.StrVal != c.Name+"-ops" {
				t.Errorf("%s: %s is not probed on its ops port", name, c.Name)
			}
		}
		if scale := one(t, objects, func(*autoscalingv2.HorizontalPodAutoscaler) bool { return true }); *scale.Spec.MinReplicas < 2 || scale.Spec.ScaleTargetRef.Name != d.Name {
			t.Errorf("%s: at least %d replicas of %s", name, *scale.Spec.MinReplicas, scale.Spec.ScaleTargetRef.Name)
		}
		for what, selector := range map[string]map[string]string{
			"Service":             one(t, objects, func(s *corev1.Service) bool { return s.Name == "cats-api" }).Spec.Selector,
			"PodDisruptionBudget": one(t, objects, func(*policyv1.PodDisruptionBudget) bool { return true }).Spec.Selector.MatchLabels,
			"NetworkPolicy":       one(t, objects, func(*networkingv1.NetworkPolicy) bool { return true }).Spec.PodSelector.MatchLabels,
		} {
			for k, v := range selector {
				if d.Spec.Template.Labels[k] != v {
					t.Errorf("%s: %s selects %s=%s, which the pods are not", name, what, k, v)
				}
			}
			if len(selector) == 0 {
				t.Errorf("%s: %s selects everything", name, what)
			}
		}
	}
}

func TestTheServiceLeadsToTheFrontendAlone(t *testing.T) {
	for name, objects := range variants(t) {
		s := one(t, objects, func(s *corev1.Service) bool { return s.Name == "cats-api" })
		if len(s.Spec.Ports) != 1 || s.Spec.Ports[0].Port != 8080 || s.Spec.Ports[0].TargetPort.StrVal != "http" || s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			t.Errorf("%s: %+v", name, s.Spec)
		}
		local, frontend := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal, deployment(t, objects).Spec.Template.Spec.Containers[0]
		if name == "emulator" { // whose tests come from one address
			if local || variable(frontend, "RATE_LIMIT") != "0" || variable(frontend, "CLIENT_SHARE") != "0" {
				t.Errorf("%s: %s, %v", name, s.Spec.ExternalTrafficPolicy, frontend.Env)
			}
			for _, c := range deployment(t, objects).Spec.Template.Spec.InitContainers {
				if c.Name == "signer" && variable(c, "CLIENT_SHARE") != "0" {
					t.Errorf("%s: the signer limits the tests' one client: %v", name, c.Env)
				}
			}
		} else if !local || variable(frontend, "RATE_LIMIT") != "" {
			t.Errorf("%s: clients cannot be told apart with externalTrafficPolicy %s, or are not limited", name, s.Spec.ExternalTrafficPolicy)
		}
		internal := s.Annotations["service.beta.kubernetes.io/azure-load-balancer-internal"] == "true"
		if want := strings.HasSuffix(name, "internal-load-balancer") || strings.HasSuffix(name, "everything"); internal != want {
			t.Errorf("%s: internal %v", name, internal)
		}
	}
}

func TestEverythingIsInTheNamespace(t *testing.T) {
	for name, objects := range variants(t) {
		for _, o := range objects {
			m, err := objectMeta(o)
			if err != nil {
				t.Fatal(err)
			}
			clusterWide := bytes.Contains([]byte(fmt.Sprintf("%T", o)), []byte("Cluster")) || fmt.Sprintf("%T", o) == "*v1.Namespace"
			if m.GetNamespace() != "cats-api" && !clusterWide {
				t.Errorf("%s: %T %s is in %q", name, o, m.GetName(), m.GetNamespace())
			}
		}
	}
}
