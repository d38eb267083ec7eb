package k8s

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const labelPrefix = "app.kubernetes.io/"

// recommended returns the labels that Kubernetes recommends, without their prefix.
// Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
func recommended(labels map[string]string) map[string]string {
	found := map[string]string{}
	for name, value := range labels {
		if short, ok := strings.CutPrefix(name, labelPrefix); ok {
			found[short] = value
		}
	}
	return found
}

func TestObjectsHaveLabelsAndNamespace(t *testing.T) {
	clusterWide := []string{"Namespace", "ClusterRole", "ClusterRoleBinding"}
	for variant, m := range variants(t) {
		check := func(what string, labels map[string]string) {
			got := recommended(labels)
			want := map[string]string{"name": "cats-api", "instance": "cats-api", "component": got["component"], "version": "v1.0.0", "managed-by": "kustomize"}
			if variant == "emulator" {
				want["version"] = "dev"
			}
			if got["component"] == "emulator" {
				want["name"] = "cats-api-emulator"
			}
			if diff := cmp.Diff(want, got); diff != "" || got["component"] == "" {
				t.Errorf("%s: labels of %s: %s", variant, what, diff)
			}
		}
		for _, r := range m.all {
			check(r.CurId().String(), r.GetLabels())
			if r.GetNamespace() != "cats-api" && !slices.Contains(clusterWide, r.GetKind()) {
				t.Errorf("%s: %s is in the namespace %q", variant, r.CurId(), r.GetNamespace())
			}
		}
		for _, o := range m.objects {
			if d, ok := o.(*appsv1.Deployment); ok {
				check("the pods of "+d.Name, d.Spec.Template.Labels)
			}
		}
	}
}

// selectors returns the label selectors in v that select by name.
func selectors(v any) (found []map[string]any) {
	fields, _ := v.(map[string]any)
	for key, value := range fields {
		if m, ok := value.(map[string]any); ok && m[labelPrefix+"name"] != nil && (key == "matchLabels" || key == "selector") {
			found = append(found, m)
		}
		found = append(found, selectors(value)...)
	}
	if list, ok := v.([]any); ok {
		for _, value := range list {
			found = append(found, selectors(value)...)
		}
	}
	return found
}

func TestSelectorsHaveNameAndInstance(t *testing.T) {
	total := 0
	for variant, m := range variants(t) {
		for _, r := range m.all {
			fields, err := r.Map()
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range selectors(fields) {
				total++
				want := map[string]any{labelPrefix + "name": s[labelPrefix+"name"], labelPrefix + "instance": "cats-api"}
				if diff := cmp.Diff(want, s); diff != "" {
					t.Errorf("%s: %s: %s", variant, r.CurId(), diff)
				}
			}
		}
	}
	if total < 6*len(variants(t)) {
		t.Errorf("only %d selectors", total)
	}
}

func TestPodsMeetPodSecurityRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for variant, m := range variants(t) {
		for _, o := range m.objects {
			d, ok := o.(*appsv1.Deployment)
			if !ok {
				continue
			}
			pod := d.Spec.Template
			for _, r := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
				if !r.Allowed {
					t.Errorf("%s: %s: %s, %s", variant, d.Name, r.ForbiddenReason, r.ForbiddenDetail)
				}
			}
			for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
					t.Errorf("%s: %s of %s can write to its root file system", variant, c.Name, d.Name)
				}
				if c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
					t.Errorf("%s: %s of %s does not report its last log lines", variant, c.Name, d.Name)
				}
			}
		}
		ns := find(t, m, func(*corev1.Namespace) bool { return true })
		if ns.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
			t.Errorf("%s: the namespace does not enforce the restricted standard", variant)
		}
	}
}

// The tutorial's single container has a limit of 120 MiB.
func TestMemoryLimitsSumTo120MiB(t *testing.T) {
	for variant, m := range variants(t) {
		var total quantity.Quantity
		for _, c := range m.containers(t) {
			limit, request := c.Resources.Limits.Memory(), c.Resources.Requests.Memory()
			if limit.IsZero() || limit.Cmp(*request) != 0 || c.Resources.Requests.Cpu().IsZero() {
				t.Errorf("%s: %s: memory limit %v, request %v; want them equal, and a CPU request", variant, c.Name, limit, request)
			}
			total.Add(*limit)
			if m.environment(t, c)["GOMEMLIMIT"] != "" {
				t.Errorf("%s: %s has GOMEMLIMIT; the program derives it from the limit", variant, c.Name)
			}
		}
		if total.Cmp(quantity.MustParse("120Mi")) > 0 {
			t.Errorf("%s: the limits sum to %v", variant, &total)
		}
	}
}

func TestRolloutsLoseNoRequests(t *testing.T) {
	for variant, m := range variants(t) {
		d := find(t, m, func(d *appsv1.Deployment) bool { return d.Name == "cats-api" }).Spec
		scale := find(t, m, func(*autoscalingv2.HorizontalPodAutoscaler) bool { return true }).Spec
		signer, frontend := m.containers(t)[0], m.containers(t)[1]
		duration := func(c corev1.Container, setting string) time.Duration {
			v, err := time.ParseDuration(m.environment(t, c)[setting])
			if err != nil {
				t.Fatalf("%s: %s: %s: %v", variant, c.Name, setting, err)
			}
			return v
		}
		probe := func(p *corev1.Probe, path, port string) bool {
			return p != nil && p.HTTPGet.Path == path && p.HTTPGet.Port.StrVal == port
		}
		grace := time.Duration(*d.Template.Spec.TerminationGracePeriodSeconds) * time.Second
		// The signer gets SIGTERM after the frontend has ended.
		drain := duration(frontend, "DRAIN_DELAY") + duration(frontend, "DRAIN_TIMEOUT") + duration(signer, "DRAIN_TIMEOUT")
		for rule, kept := range map[string]bool{
			"terminationGracePeriodSeconds is longer than both containers drain":    grace >= drain+5*time.Second,
			"the frontend serves until load balancers notice":                       duration(frontend, "DRAIN_DELAY") >= 15*time.Second,
			"the frontend's readiness probe fails later than load balancers notice": frontend.ReadinessProbe.FailureThreshold*frontend.ReadinessProbe.PeriodSeconds >= 15,
			"the Deployment has no replicas, which the autoscaler sets":             d.Replicas == nil && scale.ScaleTargetRef.Name == "cats-api" && *scale.MinReplicas >= 2,
			"maxUnavailable is 0": d.Strategy.RollingUpdate != nil && d.Strategy.RollingUpdate.MaxUnavailable.IntValue() == 0,
			"progressDeadlineSeconds is longer than the startup probe waits": *d.ProgressDeadlineSeconds > signer.StartupProbe.FailureThreshold*signer.StartupProbe.PeriodSeconds,
			"the frontend is probed on its ops port":                         probe(frontend.ReadinessProbe, "/readyz", "frontend-ops") && probe(frontend.LivenessProbe, "/livez", "frontend-ops"),
			"the signer is probed on its ops port":                           probe(signer.ReadinessProbe, "/readyz", "signer-ops") && probe(signer.LivenessProbe, "/livez", "signer-ops"),
		} {
			if !kept {
				t.Errorf("%s: want that %s", variant, rule)
			}
		}
	}
}

func TestServiceExposesOnlyTheFrontend(t *testing.T) {
	for variant, m := range variants(t) {
		s := find(t, m, func(s *corev1.Service) bool { return s.Name == "cats-api" })
		want := corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, Selector: s.Spec.Selector,
			Ports: []corev1.ServicePort{{Name: "http", Port: 8080, TargetPort: intstr.FromString("http")}},
		}
		limit := ""
		if variant == "emulator" { // whose tests send requests from one address to one node
			want.ExternalTrafficPolicy, limit = corev1.ServiceExternalTrafficPolicyCluster, "0"
		}
		if diff := cmp.Diff(want, s.Spec); diff != "" {
			t.Errorf("%s: %s", variant, diff)
		}
		if got := m.sharedSettings(t); got["RATE_LIMIT"] != limit || got["CLIENT_SHARE"] != limit {
			t.Errorf("%s: the limits per client are %v", variant, got)
		}
		if internal := s.Annotations["service.beta.kubernetes.io/azure-load-balancer-internal"] == "true"; internal != with(variant, "internal-load-balancer") {
			t.Errorf("%s: the load balancer is internal: %t", variant, internal)
		}
	}
}
