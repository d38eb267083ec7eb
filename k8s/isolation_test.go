package k8s

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// violations returns the rules of the split that a pod breaks: only the signer can get a token, and nothing else in the pod can use
// the signer's identity. shared is the data of the ConfigMap that both containers read.
func violations(pod corev1.PodTemplateSpec, shared map[string]string) (broken []string) {
	var skipped, names []string
	for name := range strings.SplitSeq(pod.Annotations["azure.workload.identity/skip-containers"], ";") { // as the webhook does
		skipped = append(skipped, strings.TrimSpace(name))
	}
	spec, users, own, sidecars := pod.Spec, map[int64]bool{}, map[string]corev1.Container{}, 0
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		names = append(names, c.Name)
		if own[c.Name] = c; c.RestartPolicy != nil {
			sidecars++
		}
		if s := c.SecurityContext; s != nil && s.RunAsUser != nil && (c.Name == "signer" || c.Name == "frontend") {
			users[*s.RunAsUser] = true
		}
	}
	signer, frontend := own["signer"], own["frontend"]
	azure := func(name string) bool { return strings.HasPrefix(name, "AZURE_") }
	_, proxy := pod.Annotations["azure.workload.identity/inject-proxy-sidecar"]
	for rule, kept := range map[string]bool{
		"the containers are frontend and signer":        len(spec.Containers) == 1 && spec.Containers[0].Name == "frontend" && slices.Contains(names, "signer") && sidecars == 1,
		"the signer is a native sidecar":                signer.RestartPolicy != nil && *signer.RestartPolicy == corev1.ContainerRestartPolicyAlways,
		"the frontend starts after the signer is ready": signer.StartupProbe != nil && signer.StartupProbe.HTTPGet.Path == "/readyz",
		"the webhook changes the pod":                   pod.Labels["azure.workload.identity/use"] == "true",
		"the webhook changes only the signer":           slices.Contains(skipped, "frontend") && !slices.Contains(skipped, "signer"),
		"the pod has no proxy sidecar":                  !proxy,
		"the frontend has no volume":                    len(frontend.VolumeMounts) == 0,
		"the frontend has no variable of Azure": !slices.ContainsFunc(slices.Collect(maps.Keys(shared)), azure) &&
			!slices.ContainsFunc(frontend.Env, func(e corev1.EnvVar) bool { return azure(e.Name) || e.ValueFrom != nil }),
		"the frontend reads one ConfigMap": len(frontend.EnvFrom) == 1 && frontend.EnvFrom[0].SecretRef == nil &&
			strings.HasPrefix(frontend.EnvFrom[0].ConfigMapRef.Name, "cats-api-shared-"),
		"the containers have different users":             len(users) == 2 && !users[0],
		"the service account is cats-api-sa":              spec.ServiceAccountName == "cats-api-sa",
		"no container has a token for the Kubernetes API": spec.AutomountServiceAccountToken != nil && !*spec.AutomountServiceAccountToken,
		"the containers share only the network": (spec.ShareProcessNamespace == nil || !*spec.ShareProcessNamespace) &&
			!spec.HostPID && !spec.HostNetwork && !spec.HostIPC,
	} {
		if !kept {
			broken = append(broken, rule)
		}
	}
	return broken
}

func TestOnlyTheSignerGetsAnIdentity(t *testing.T) {
	for name, m := range variants(t) {
		for _, rule := range violations(m.template(t), m.sharedSettings(t)) {
			t.Errorf("%s: want that %s", name, rule)
		}
		account := find(t, m, func(a *corev1.ServiceAccount) bool { return a.Name == "cats-api-sa" })
		if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
			t.Errorf("%s: the service account mounts its token", name)
		}
	}
}

func TestBrokenSplitIsDetected(t *testing.T) {
	const skip = "azure.workload.identity/skip-containers"
	yes := true
	type template = corev1.PodTemplateSpec
	whole := variants(t)["aks"].template(t)
	if list := violations(whole, nil); len(list) > 0 {
		t.Fatal(list)
	}
	if len(violations(whole, map[string]string{"AZURE_CLIENT_ID": "x"})) == 0 {
		t.Error("a variable AZURE_CLIENT_ID in the ConfigMap is not detected")
	}
	for name, breaks := range map[string]func(*template){
		"skip-containers missing":    func(p *template) { delete(p.Annotations, skip) },
		"skip-containers with comma": func(p *template) { p.Annotations[skip] = "frontend,other" },
		"skip-containers of both":    func(p *template) { p.Annotations[skip] = "frontend;signer" },
		"frontend renamed":           func(p *template) { p.Spec.Containers[0].Name = "web" },
		"webhook label missing":      func(p *template) { delete(p.Labels, "azure.workload.identity/use") },
		"proxy sidecar switched off": func(p *template) { p.Annotations["azure.workload.identity/inject-proxy-sidecar"] = "false" },
		"Azure variable":             func(p *template) { p.Spec.Containers[0].Env[0].Name = "AZURE_CLIENT_ID" },
		"variables from a secret":    func(p *template) { p.Spec.Containers[0].EnvFrom[0].SecretRef = &corev1.SecretEnvSource{} },
		"volume":                     func(p *template) { p.Spec.Containers[0].VolumeMounts = make([]corev1.VolumeMount, 1) },
		"same user":                  func(p *template) { *p.Spec.Containers[0].SecurityContext.RunAsUser = 65533 },
		"shared process namespace":   func(p *template) { p.Spec.ShareProcessNamespace = &yes },
		"service-account token":      func(p *template) { p.Spec.AutomountServiceAccountToken = &yes },
		"another sidecar": func(p *template) {
			p.Spec.InitContainers = append(p.Spec.InitContainers, p.Spec.InitContainers[0])
			p.Spec.InitContainers[1].Name = "log"
		},
	} {
		pod := whole.DeepCopy()
		breaks(pod)
		if len(violations(*pod, nil)) == 0 {
			t.Errorf("%s is not detected", name)
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
