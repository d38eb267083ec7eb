package k8s

import (
	"maps"
	"regexp"
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

// Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
const labelPrefix = "app.kubernetes.io/"

func TestObjectsHaveLabelsAndNamespace(t *testing.T) {
	clusterWide := []string{"Namespace", "ClusterRole", "ClusterRoleBinding"}
	for variant, m := range variants(t) {
		check := func(what string, all map[string]string) {
			labels := maps.Clone(all)
			maps.DeleteFunc(labels, func(name, _ string) bool { return !strings.HasPrefix(name, labelPrefix) })
			component := labels[labelPrefix+"component"]
			want := map[string]string{
				labelPrefix + "name": "cats-api", labelPrefix + "instance": "cats-api", labelPrefix + "component": component,
				labelPrefix + "version": "v1.0.0", labelPrefix + "managed-by": "kustomize",
			}
			if variant == "emulator" {
				want[labelPrefix+"version"] = "dev"
			}
			if component == "emulator" {
				want[labelPrefix+"name"] = "cats-api-emulator"
			}
			if diff := cmp.Diff(want, labels); diff != "" || component == "" {
				t.Errorf("%s: labels of %s: %s", variant, what, diff)
			}
		}
		for _, r := range m.all {
			check(r.CurId().String(), r.GetLabels())
			if r.GetNamespace() != "cats-api" && !slices.Contains(clusterWide, r.GetKind()) {
				t.Errorf("%s: %s is in the namespace %q", variant, r.CurId(), r.GetNamespace())
			}
		}
		check("the pods", m.template(t).Labels)
	}
}

// Selectors cannot change, so they must not have the version.
func TestSelectorsHaveNameAndInstance(t *testing.T) {
	selector := regexp.MustCompile(`(?:matchLabels|[sS]elector):\n((?: +app\.kubernetes\.io/\S+: \S+\n)+)`)
	wanted := regexp.MustCompile(`^ +app\.kubernetes\.io/instance: cats-api\n +app\.kubernetes\.io/name: cats-api(-emulator)?\n$`)
	for variant, m := range variants(t) {
		total := 0
		for _, r := range m.all {
			for _, s := range selector.FindAllStringSubmatch(r.MustYaml(), -1) {
				total++
				if !wanted.MatchString(s[1]) {
					t.Errorf("%s: %s selects by\n%s", variant, r.CurId(), s[1])
				}
			}
		}
		if total < 6 {
			t.Errorf("%s: only %d selectors", variant, total)
		}
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
				s := c.SecurityContext
				want(t, variant, map[string]bool{
					c.Name + " cannot write to its root file system": s != nil && s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem,
					c.Name + " reports its last log lines":           c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError,
				})
			}
		}
		if find[*corev1.Namespace](t, m, "").Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
			t.Errorf("%s: the namespace does not enforce the restricted standard", variant)
		}
	}
}

// The tutorial's single container has a limit of 120 MiB.
func TestMemoryLimitsSumTo120MiB(t *testing.T) {
	for variant, m := range variants(t) {
		var total quantity.Quantity
		signer, frontend := m.containers(t)
		for _, c := range []corev1.Container{signer, frontend} {
			limit, request := c.Resources.Limits.Memory(), c.Resources.Requests.Memory()
			total.Add(*limit)
			want(t, variant, map[string]bool{
				c.Name + " has a memory limit, which it requests":           !limit.IsZero() && limit.Cmp(*request) == 0,
				c.Name + " requests CPU":                                    !c.Resources.Requests.Cpu().IsZero(),
				c.Name + " has no GOMEMLIMIT; it derives it from the limit": m.environment(t, c)["GOMEMLIMIT"] == "",
			})
		}
		if total.Cmp(quantity.MustParse("120Mi")) > 0 {
			t.Errorf("%s: the limits sum to %v", variant, &total)
		}
	}
}

func TestRolloutsLoseNoRequests(t *testing.T) {
	for variant, m := range variants(t) {
		d := find[*appsv1.Deployment](t, m, "cats-api").Spec
		scale := find[*autoscalingv2.HorizontalPodAutoscaler](t, m, "").Spec
		signer, frontend := m.containers(t)
		duration := func(c corev1.Container, setting string) time.Duration {
			v, err := time.ParseDuration(m.environment(t, c)[setting])
			if err != nil {
				t.Fatalf("%s: %s: %s: %v", variant, c.Name, setting, err)
			}
			return v
		}
		probes := func(c corev1.Container) string {
			ready, live := c.ReadinessProbe.HTTPGet, c.LivenessProbe.HTTPGet
			return ready.Path + " " + ready.Port.StrVal + " " + live.Path + " " + live.Port.StrVal
		}
		waits := func(p *corev1.Probe) int32 { return p.FailureThreshold * p.PeriodSeconds }
		grace := time.Duration(*d.Template.Spec.TerminationGracePeriodSeconds) * time.Second
		// The signer gets SIGTERM after the frontend has ended.
		drain := duration(frontend, "DRAIN_DELAY") + duration(frontend, "DRAIN_TIMEOUT") + duration(signer, "DRAIN_TIMEOUT")
		want(t, variant, map[string]bool{
			"terminationGracePeriodSeconds is longer than both containers drain":    grace >= drain+5*time.Second,
			"the frontend serves until load balancers notice":                       duration(frontend, "DRAIN_DELAY") >= 15*time.Second,
			"the frontend's readiness probe fails later than load balancers notice": waits(frontend.ReadinessProbe) >= 15,
			"the Deployment has no replicas, which the autoscaler sets": d.Replicas == nil &&
				scale.ScaleTargetRef.Name == "cats-api" && *scale.MinReplicas >= 2,
			"maxUnavailable is 0": d.Strategy.RollingUpdate != nil && d.Strategy.RollingUpdate.MaxUnavailable.IntValue() == 0,
			"progressDeadlineSeconds is longer than the startup probe waits": *d.ProgressDeadlineSeconds > waits(signer.StartupProbe),
			"the frontend is probed on its ops port":                         probes(frontend) == "/readyz frontend-ops /livez frontend-ops",
			"the signer is probed on its ops port":                           probes(signer) == "/readyz signer-ops /livez signer-ops",
		})
	}
}

func TestServiceExposesOnlyTheFrontend(t *testing.T) {
	for variant, m := range variants(t) {
		s := find[*corev1.Service](t, m, "cats-api")
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
		if got := find[*corev1.ConfigMap](t, m, "cats-api-shared-").Data; got["RATE_LIMIT"] != limit || got["CLIENT_SHARE"] != limit {
			t.Errorf("%s: the limits per client are %v", variant, got)
		}
		if internal := s.Annotations["service.beta.kubernetes.io/azure-load-balancer-internal"] == "true"; internal != with(variant, "internal-load-balancer") {
			t.Errorf("%s: the load balancer is internal: %t", variant, internal)
		}
	}
}
