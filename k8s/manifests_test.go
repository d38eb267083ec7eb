package k8s

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func wantRules(t *testing.T, name string) {
	t.Helper()
	for variant, m := range variants(t) {
		m.wantRules(t, variant, name)
	}
}

func TestOnlyTheSignerGetsAnIdentity(t *testing.T) { wantRules(t, "identity") }

func TestServiceExposesOnlyTheFrontend(t *testing.T) { wantRules(t, "service") }

func TestOverlayChoosesAuthenticationOrAnonymousAccess(t *testing.T) { wantRules(t, "authentication") }

func TestRolloutsLoseNoRequests(t *testing.T) { wantRules(t, "rollout") }

func TestObjectsHaveLabelsAndNamespace(t *testing.T) { wantRules(t, "labels") }

func TestPodsMeetPodSecurityRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for variant, m := range variants(t) {
		for _, pod := range m.pods {
			for _, r := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
				if !r.Allowed {
					t.Errorf("%s: %v: %s, %s", variant, pod.Labels, r.ForbiddenReason, r.ForbiddenDetail)
				}
			}
		}
	}
	wantRules(t, "pods")
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
		if !slices.Equal(m.policy.PolicyTypes, []networkingv1.PolicyType{"Ingress", "Egress"}) {
			t.Errorf("%s: the policy types are %v", variant, m.policy.PolicyTypes)
		}
		for connection, want := range map[string]bool{
			"from internet http": true, "from internet frontend-ops": false, "from cats-api signer-ops": false,
			"from monitoring frontend-ops": true, "from monitoring signer-ops": true,
			"to 20.60.1.2 443": true, "to 2603:1030::1 443": true, "to 20.60.1.2 80": false, "to 20.60.1.2 53": false, // Azure
			"to 169.254.169.254 443": false, "to 169.254.169.254 80": false, "to 169.254.169.254 53": false, // instance metadata service
			"to 168.63.129.16 443": false, "to 168.63.129.16 80": false, // host
			"to 169.254.20.10 53": true, "to kube-system 53": true, // DNS
			"to observability 4318": strings.HasSuffix(variant, "traces") || strings.HasSuffix(variant, "everything"), "to default 4318": false,
		} {
			c := strings.Fields(connection)
			got := c[0] == "from" && slices.ContainsFunc(m.policy.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
				return allows(r.Ports, r.From, c[1], c[2])
			}) || c[0] == "to" && slices.ContainsFunc(m.policy.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
				return allows(r.Ports, r.To, c[1], c[2])
			})
			if got != want {
				t.Errorf("%s: %s: allowed is %t", variant, connection, got)
			}
		}
	}
}

func TestChangesOfSettingsChangeThePodTemplate(t *testing.T) {
	f := filled(t)
	f.set(shared, "MAX_PIXELS", "1000")
	all := maps.Clone(variants(t))
	all["aks with another shared setting"] = f.build(aks)
	for _, change := range []string{"another shared setting", "authentication", "traces", "image-pull-secret", "identity-bindings"} {
		if reflect.DeepEqual(all["aks"].pods, all["aks with "+change].pods) {
			t.Errorf("%s does not change the pod template", change)
		}
	}
}

func TestClusterTestOverlayIsSeparate(t *testing.T) {
	m, err := build("../e2e/cluster/testdata/overlay")
	if err != nil {
		t.Fatal(err)
	}
	m.wantRules(t, "cluster-test", "cluster-test")
}
