package k8s

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func objectMeta(o runtime.Object) (metav1.Object, error) {
	m, ok := o.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", o)
	}
	return m, nil
}

// isolation returns what in a pod breaks the rules of the split: that the signer
// alone can get at a token, and that nothing in the pod can get at the signer.
func isolation(pod corev1.PodTemplateSpec) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	spec := pod.Spec
	if pod.Labels["azure.workload.identity/use"] != "true" {
		fault("the webhook is not asked for")
	}
	// As the webhook reads it, of every container that there is.
	var skipped []string
	for name := range strings.SplitSeq(pod.Annotations["azure.workload.identity/skip-containers"], ";") {
		skipped = append(skipped, strings.TrimSpace(name))
	}
	users := map[int64]string{}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if c.Name == "signer" {
			if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways || c.StartupProbe == nil || c.StartupProbe.HTTPGet.Path != "/readyz" {
				fault("the signer is not a native sidecar that is ready before the frontend starts")
			}
			if slices.Contains(skipped, "signer") {
				fault("the webhook skips the signer")
			}
		} else {
			if c.Name == "frontend" && !slices.Contains(skipped, c.Name) {
				fault("the webhook gives a token to %s", c.Name)
			}
			if c.RestartPolicy != nil || len(spec.Containers) > 1 {
				fault("%s runs beside the frontend and the signer", c.Name)
			}
		}
		if c.SecurityContext == nil || c.SecurityContext.RunAsUser == nil || *c.SecurityContext.RunAsUser == 0 {
			fault("%s has no user of its own", c.Name)
		} else if c.Name == "signer" || c.Name == "frontend" {
			if other, taken := users[*c.SecurityContext.RunAsUser]; taken {
				fault("%s and %s are the same user", other, c.Name)
			}
			users[*c.SecurityContext.RunAsUser] = c.Name
		}
		if c.Name != "frontend" {
			continue
		}
		for _, e := range c.Env {
			if strings.HasPrefix(e.Name, "AZURE_") || e.ValueFrom != nil {
				fault("the frontend gets %s", e.Name)
			}
		}
		if len(c.EnvFrom) > 0 {
			fault("the frontend gets variables from elsewhere")
		}
		if len(c.VolumeMounts) > 0 {
			fault("the frontend gets the volume %s", c.VolumeMounts[0].Name)
		}
	}
	if len(spec.Containers) != 1 || spec.Containers[0].Name != "frontend" || !slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool { return c.Name == "signer" }) {
		fault("the containers are not frontend and signer")
	}
	if spec.ServiceAccountName != "cats-api-sa" {
		fault("the service account is %q", spec.ServiceAccountName)
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		fault("every container gets a token for the Kubernetes API")
	}
	if (spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace) || spec.HostPID || spec.HostNetwork || spec.HostIPC {
		fault("the containers share more than the network")
	}
	if _, ok := pod.Annotations["azure.workload.identity/inject-proxy-sidecar"]; ok {
		fault("the proxy sidecar has a token for every process of the pod")
	}
	return faults
}

func TestTheSplitHolds(t *testing.T) {
	for name, objects := range variants(t) {
		for _, fault := range isolation(deployment(t, objects).Spec.Template) {
			t.Errorf("%s: %s", name, fault)
		}
		account := one(t, objects, func(a *corev1.ServiceAccount) bool { return a.Name == "cats-api-sa" })
		if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
			t.Errorf("%s: the service account mounts its token by itself", name)
		}
	}
}

func TestABrokenSplitIsNoticed(t *testing.T) {
	const skip = "azure.workload.identity/skip-containers"
	yes := true
	whole := deployment(t, build(t, tree(t), "base")).Spec.Template
	if faults := isolation(whole); len(faults) > 0 {
		t.Fatal(faults)
	}
	for name, breaks := range map[string]func(*corev1.PodTemplateSpec){
		"no skip-containers":           func(p *corev1.PodTemplateSpec) { delete(p.Annotations, skip) },
		"skip-containers with a comma": func(p *corev1.PodTemplateSpec) { p.Annotations[skip] = "frontend,other" },
		"skip-containers misspelt":     func(p *corev1.PodTemplateSpec) { p.Annotations[skip] = "front-end" },
		"skip-containers names both":   func(p *corev1.PodTemplateSpec) { p.Annotations[skip] = "frontend;signer" },
		"the frontend renamed":         func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].Name = "web" },
		"no label for the webhook":     func(p *corev1.PodTemplateSpec) { delete(p.Labels, "azure.workload.identity/use") },
		"the proxy sidecar, even off": func(p *corev1.PodTemplateSpec) {
			p.Annotations["azure.workload.identity/inject-proxy-sidecar"] = "false"
		},
		"another container": func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "log"})
		},
		"another sidecar": func(p *corev1.PodTemplateSpec) {
			c := p.Spec.InitContainers[0]
			c.Name = "log"
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		},
		"the signer is no sidecar": func(p *corev1.PodTemplateSpec) { p.Spec.InitContainers[0].RestartPolicy = nil },
		"no start-up probe":        func(p *corev1.PodTemplateSpec) { p.Spec.InitContainers[0].StartupProbe = nil },
		"a variable of Azure":      func(p *corev1.PodTemplateSpec) { addVariable(p, corev1.EnvVar{Name: "AZURE_CLIENT_ID", Value: "x"}) },
		"a variable from a secret": func(p *corev1.PodTemplateSpec) {
			addVariable(p, corev1.EnvVar{Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{}}})
		},
		"variables from a secret": func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].EnvFrom = make([]corev1.EnvFromSource, 1) },
		"a volume":                func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].VolumeMounts = make([]corev1.VolumeMount, 1) },
		"the same user": func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers[0].SecurityContext.RunAsUser = p.Spec.InitContainers[0].SecurityContext.RunAsUser
		},
		"no user":                 func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].SecurityContext.RunAsUser = nil },
		"processes in view":       func(p *corev1.PodTemplateSpec) { p.Spec.ShareProcessNamespace = &yes },
		"the node's processes":    func(p *corev1.PodTemplateSpec) { p.Spec.HostPID = true },
		"a service-account token": func(p *corev1.PodTemplateSpec) { p.Spec.AutomountServiceAccountToken = &yes },
		"one by default":          func(p *corev1.PodTemplateSpec) { p.Spec.AutomountServiceAccountToken = nil },
		"another service account": func(p *corev1.PodTemplateSpec) { p.Spec.ServiceAccountName = "default" },
	} {
		pod := whole.DeepCopy()
		breaks(pod)
		if len(isolation(*pod)) == 0 {
			t.Errorf("%s is not noticed", name)
		}
	}
}

func addVariable(p *corev1.PodTemplateSpec, e corev1.EnvVar) {
	p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, e)
}

// lets reports whether a rule's ports and peers let a connection through. from or
// to a pod, the address is zero and the labels are those of its namespace.
func lets(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, address netip.Addr, namespace string, number int32, name string) bool {
	if !slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		return p.EndPort == nil && p.Port != nil && (p.Port.IntVal == number || p.Port.StrVal == name && name != "")
	}) && len(ports) > 0 {
		return false
	}
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock == nil {
			return p.NamespaceSelector != nil && p.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] == namespace && namespace != ""
		}
		return address.IsValid() && netip.MustParsePrefix(p.IPBlock.CIDR).Contains(address) &&
			!slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(address) })
	})
}

func TestTheNetworkPolicyLetsThroughWhatIsNeededAndNothingElse(t *testing.T) {
	for variant, objects := range variants(t) {
		rules := one(t, objects, func(p *networkingv1.NetworkPolicy) bool { return p.Name == "cats-api" }).Spec
		if !slices.Equal(rules.PolicyTypes, []networkingv1.PolicyType{"Ingress", "Egress"}) {
			t.Errorf("%s: it is for %v", variant, rules.PolicyTypes)
		}
		in := func(namespace, port string) bool {
			return slices.ContainsFunc(rules.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
				return lets(r.Ports, r.From, netip.Addr{}, namespace, -1, port)
			})
		}
		out := func(address string, port int32) bool {
			return slices.ContainsFunc(rules.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
				return lets(r.Ports, r.To, netip.MustParseAddr(address), "", port, "")
			})
		}
		for _, row := range []struct {
			what      string
			got, want bool
		}{
			{"the public in", in("", "http"), true},
			{"anyone in to the frontend's ops", in("", "frontend-ops"), false},
			{"anyone in to the signer's ops", in("cats-api", "signer-ops"), false},
			{"Prometheus in to the frontend's ops", in("monitoring", "frontend-ops"), true},
			{"Prometheus in to the signer's ops", in("monitoring", "signer-ops"), true},
			{"out to Azure", out("20.60.1.2", 443), true},
			{"out to Azure by IPv6", out("2603:1030::1", 443), true},
			{"out to another port", out("20.60.1.2", 80), false},
			{"out to the metadata service", out("169.254.169.254", 443) || out("169.254.169.254", 80) || out("169.254.169.254", 53), false},
			{"out to the host's agent", out("168.63.129.16", 443) || out("168.63.129.16", 80), false},
			{"out to a DNS cache of the node", out("169.254.20.10", 53), true},
			{"out to DNS anywhere", out("20.60.1.2", 53), false},
			{"out to a collector of traces", slices.ContainsFunc(rules.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
				return lets(r.Ports, r.To, netip.Addr{}, "observability", 4318, "")
			}), traced(variant)},
			{"out to another namespace", slices.ContainsFunc(rules.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
				return lets(r.Ports, r.To, netip.Addr{}, "default", 4318, "")
			}), false},
			{"out to the cluster's DNS", slices.ContainsFunc(rules.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
				return lets(r.Ports, r.To, netip.Addr{}, "kube-system", 53, "")
			}), true},
		} {
			if row.got != row.want {
				t.Errorf("%s: %s: %v; want %v", variant, row.what, row.got, row.want)
			}
		}
	}
}
