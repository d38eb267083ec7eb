package k8s

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"
)

// Only the signer can get a token, and nothing else in the pod can use the signer's identity.
func TestOnlyTheSignerGetsAnIdentity(t *testing.T) {
	for variant, m := range variants(t) {
		pod := m.template(t)
		var skipped []string
		for name := range strings.SplitSeq(pod.Annotations["azure.workload.identity/skip-containers"], ";") { // as the webhook does
			skipped = append(skipped, strings.TrimSpace(name))
		}
		account := find(t, m, func(a *corev1.ServiceAccount) bool { return a.Name == "cats-api-sa" })
		spec, signer, frontend := pod.Spec, m.containers(t)[0], m.containers(t)[1]
		sidecar := func(c corev1.Container) bool { return c.RestartPolicy != nil }
		azure := func(name string) bool { return strings.HasPrefix(name, "AZURE_") }
		user := func(c corev1.Container) int64 { return ptr.Deref(c.SecurityContext.RunAsUser, 0) }
		_, proxy := pod.Annotations["azure.workload.identity/inject-proxy-sidecar"]
		for rule, kept := range map[string]bool{
			"the containers are frontend and signer": signer.Name == "signer" && frontend.Name == "frontend" && len(spec.Containers) == 1 &&
				!slices.ContainsFunc(spec.InitContainers[:len(spec.InitContainers)-1], sidecar),
			"the signer is a native sidecar":                  ptr.Deref(signer.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways,
			"the frontend starts after the signer is ready":   signer.StartupProbe != nil && signer.StartupProbe.HTTPGet.Path == "/readyz",
			"the webhook changes the pod":                     pod.Labels["azure.workload.identity/use"] == "true",
			"the webhook changes only the signer":             slices.Contains(skipped, "frontend") && !slices.Contains(skipped, "signer"),
			"the pod has no proxy sidecar":                    !proxy,
			"the frontend has no volume":                      len(frontend.VolumeMounts) == 0,
			"the frontend has no variable of Azure":           !slices.ContainsFunc(slices.Collect(maps.Keys(m.environment(t, frontend))), azure),
			"the frontend has variables from one ConfigMap":   len(frontend.EnvFrom) == 1 && frontend.EnvFrom[0].SecretRef == nil && strings.HasPrefix(frontend.EnvFrom[0].ConfigMapRef.Name, "cats-api-shared-"),
			"the frontend has no variable from elsewhere":     !slices.ContainsFunc(frontend.Env, func(e corev1.EnvVar) bool { return e.ValueFrom != nil }),
			"the containers have different users":             user(signer) != user(frontend) && user(signer) != 0 && user(frontend) != 0,
			"the service account is cats-api-sa":              spec.ServiceAccountName == account.Name,
			"no container has a token for the Kubernetes API": !ptr.Deref(spec.AutomountServiceAccountToken, true) && !ptr.Deref(account.AutomountServiceAccountToken, true),
			"the containers share only the network":           !ptr.Deref(spec.ShareProcessNamespace, false) && !spec.HostPID && !spec.HostNetwork && !spec.HostIPC,
		} {
			if !kept {
				t.Errorf("%s: want that %s", variant, rule)
			}
		}
	}
}

// allows reports whether the ports and peers of a rule allow a connection. The peer is an address, or a pod of a namespace.
func allows(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, peer, port string) bool {
	return (len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		return p.EndPort == nil && p.Port != nil && p.Port.String() == port
	})) && (len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		address, err := netip.ParseAddr(peer)
		if p.IPBlock == nil || err != nil {
			return p.NamespaceSelector != nil && p.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] == peer
		}
		in := func(prefix string) bool { return netip.MustParsePrefix(prefix).Contains(address) }
		return in(p.IPBlock.CIDR) && !slices.ContainsFunc(p.IPBlock.Except, in)
	}))
}

func TestNetworkPolicyAllowsOnlyNeededConnections(t *testing.T) {
	for variant, m := range variants(t) {
		rules := find(t, m, func(*networkingv1.NetworkPolicy) bool { return true }).Spec
		if !slices.Equal(rules.PolicyTypes, []networkingv1.PolicyType{"Ingress", "Egress"}) {
			t.Errorf("%s: the policy types are %v", variant, rules.PolicyTypes)
		}
		in := func(peer, port string) bool {
			return slices.ContainsFunc(rules.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return allows(r.Ports, r.From, peer, port) })
		}
		out := func(peer, port string) bool {
			return slices.ContainsFunc(rules.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return allows(r.Ports, r.To, peer, port) })
		}
		for connection, want := range map[string]bool{
			"internet http": true, "internet frontend-ops": false, "cats-api signer-ops": false, "monitoring frontend-ops": true, "monitoring signer-ops": true,
		} {
			if peer, port, _ := strings.Cut(connection, " "); in(peer, port) != want {
				t.Errorf("%s: from %s: allowed is %t", variant, connection, !want)
			}
		}
		for connection, want := range map[string]bool{
			"20.60.1.2 443": true, "2603:1030::1 443": true, "20.60.1.2 80": false, "20.60.1.2 53": false, // Azure
			"169.254.169.254 443": false, "169.254.169.254 80": false, "169.254.169.254 53": false, // instance metadata service
			"168.63.129.16 443": false, "168.63.129.16 80": false, // host
			"169.254.20.10 53": true, "kube-system 53": true, // DNS
			"observability 4318": with(variant, "traces"), "default 4318": false,
		} {
			if peer, port, _ := strings.Cut(connection, " "); out(peer, port) != want {
				t.Errorf("%s: to %s: allowed is %t", variant, connection, !want)
			}
		}
	}
}
