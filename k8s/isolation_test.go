package k8s

import (
	"maps"
	"net/netip"
	"regexp"
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
		yaml := ""
		for _, r := range m.all {
			yaml += r.MustYaml()
		}
		account := find[*corev1.ServiceAccount](t, m, "cats-api-sa")
		signer, frontend := m.containers(t)
		spec, inits := pod.Spec, pod.Spec.InitContainers
		sidecar := func(c corev1.Container) bool { return c.RestartPolicy != nil }
		azure := func(name string) bool { return strings.HasPrefix(name, "AZURE_") }
		user := func(c corev1.Container) int64 { return ptr.Deref(c.SecurityContext.RunAsUser, 0) }
		mounts := func(a *bool) bool { return ptr.Deref(a, true) }
		_, proxy := pod.Annotations["azure.workload.identity/inject-proxy-sidecar"]
		want(t, variant, map[string]bool{
			"the containers are frontend and signer": signer.Name == "signer" && frontend.Name == "frontend" &&
				len(spec.Containers) == 1 && !slices.ContainsFunc(inits[:len(inits)-1], sidecar),
			"the signer is a native sidecar":                ptr.Deref(signer.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways,
			"the frontend starts after the signer is ready": signer.StartupProbe != nil && signer.StartupProbe.HTTPGet.Path == "/readyz",
			"the webhook changes the pod":                   pod.Labels["azure.workload.identity/use"] == "true",
			"the webhook changes only the signer":           slices.Contains(skipped, "frontend") && !slices.Contains(skipped, "signer"),
			"the pod has no proxy sidecar":                  !proxy,
			// The path differs between versions of the webhook, which sets AZURE_FEDERATED_TOKEN_FILE.
			"the token has the path of the webhook": variant == "emulator" ||
				!regexp.MustCompile(`azure-identity-token|FEDERATED_TOKEN_FILE`).MatchString(yaml),
			"the frontend has no volume":            len(frontend.VolumeMounts) == 0,
			"the frontend has no variable of Azure": !slices.ContainsFunc(slices.Collect(maps.Keys(m.environment(t, frontend))), azure),
			"the frontend has variables from one ConfigMap": len(frontend.EnvFrom) == 1 && frontend.EnvFrom[0].SecretRef == nil &&
				strings.HasPrefix(frontend.EnvFrom[0].ConfigMapRef.Name, "cats-api-shared-"),
			"the frontend has no variable from elsewhere":     !slices.ContainsFunc(frontend.Env, func(e corev1.EnvVar) bool { return e.ValueFrom != nil }),
			"the containers have different users":             user(signer) != user(frontend) && user(signer) != 0 && user(frontend) != 0,
			"the service account is cats-api-sa":              spec.ServiceAccountName == account.Name,
			"no container has a token for the Kubernetes API": !mounts(spec.AutomountServiceAccountToken) && !mounts(account.AutomountServiceAccountToken),
			"the containers share only the network":           !ptr.Deref(spec.ShareProcessNamespace, false) && !spec.HostPID && !spec.HostNetwork && !spec.HostIPC,
		})
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
		policy := find[*networkingv1.NetworkPolicy](t, m, "").Spec
		if !slices.Equal(policy.PolicyTypes, []networkingv1.PolicyType{"Ingress", "Egress"}) {
			t.Errorf("%s: the policy types are %v", variant, policy.PolicyTypes)
		}
		for connection, want := range map[string]bool{
			"from internet http": true, "from internet frontend-ops": false, "from cats-api signer-ops": false,
			"from monitoring frontend-ops": true, "from monitoring signer-ops": true,
			"to 20.60.1.2 443": true, "to 2603:1030::1 443": true, "to 20.60.1.2 80": false, "to 20.60.1.2 53": false, // Azure
			"to 169.254.169.254 443": false, "to 169.254.169.254 80": false, "to 169.254.169.254 53": false, // instance metadata service
			"to 168.63.129.16 443": false, "to 168.63.129.16 80": false, // host
			"to 169.254.20.10 53": true, "to kube-system 53": true, // DNS
			"to observability 4318": with(variant, "traces"), "to default 4318": false,
		} {
			c := strings.Fields(connection)
			got := c[0] == "from" && slices.ContainsFunc(policy.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
				return allows(r.Ports, r.From, c[1], c[2])
			}) || c[0] == "to" && slices.ContainsFunc(policy.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
				return allows(r.Ports, r.To, c[1], c[2])
			})
			if got != want {
				t.Errorf("%s: %s: allowed is %t", variant, connection, got)
			}
		}
	}
}
