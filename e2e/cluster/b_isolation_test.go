//go:build cluster

package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const tokenFile = "/var/run/secrets/azure/tokens/azure-identity-token"

func TestFrontendHasNoCredential(t *testing.T) {
	p := onePod(t)
	saw := inside(t, p, "frontend", `
tr '\0' '\n' </proc/1/environ | sed 's/^/environ /'
cut -d' ' -f2 /proc/1/mounts | sed 's/^/mount /'
root=/proc/1/root
for place in /var/run/secrets /run/secrets; do [ ! -e "$root$place" ] || echo "found $place"; done
find "$root/" -xdev -type f 2>/dev/null | grep -iE 'token|secret|serviceaccount' | sed 's/^/found /'
`)
	if len(lines(saw, "environ DRAIN_DELAY")) != 1 || len(lines(saw, "mount /proc")) == 0 {
		t.Fatalf("the script did not see the frontend's process:\n%s", saw)
	}
	for _, bad := range append(lines(saw, "environ AZURE_"), append(lines(saw, "mount ", "secrets"), lines(saw, "found ")...)...) {
		t.Errorf("the frontend has %s", bad)
	}
}

func TestOnlySignerHasTheProjectedToken(t *testing.T) {
	p := onePod(t)
	saw := inside(t, p, "signer", `
root=/proc/1/root
tr '\0' '\n' </proc/1/environ | sed 's/^/environ /'
[ ! -e "$root/var/run/secrets/kubernetes.io" ] || echo "found a service-account token"
stat -L -c 'token %a %u' "$root`+tokenFile+`"
cut -d. -f2 "$root`+tokenFile+`" | tr '_-' '/+' | base64 -d 2>/dev/null | sed 's/^/claims /'
`)
	for _, want := range [][]string{
		{"environ AZURE_FEDERATED_TOKEN_FILE=" + tokenFile},
		{"claims ", "system:serviceaccount:" + namespace + ":cats-api-sa", "api://AzureADTokenExchange"},
		{"token "},
	} {
		if len(lines(saw, want...)) == 0 {
			t.Errorf("the signer has no %q:\n%s", want, saw)
		}
	}
	if len(lines(saw, "found ")) > 0 {
		t.Error("the signer has a token for the Kubernetes API too")
	}
}

// In a pod with another service account, the signer does not become ready, and the frontend does not start.
func TestAnotherServiceAccountIsRejected(t *testing.T) {
	other := get[struct {
		Spec struct{ Template map[string]any }
	}](t, "deployment", "cats-api").Spec.Template
	other["apiVersion"], other["kind"], other["metadata"] = "v1", "Pod", map[string]any{"name": "other"}
	spec, _ := other["spec"].(map[string]any)
	spec["serviceAccountName"], spec["serviceAccount"] = "default", "default"
	manifest, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kubectl(t.Context(), strings.NewReader(string(manifest)), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	defer do(t, "delete", "pod", "other", "--grace-period", "1")
	eventually(t, func() error {
		log, err := kubectl(t.Context(), nil, "logs", "other", "-c", "signer")
		if err == nil && len(lines(log, "AADSTS700213", `"token exchange failed"`)) == 0 {
			err = fmt.Errorf("the signer's log has no AADSTS700213:\n%s", log)
		}
		return err
	})
	if len(lines(do(t, "logs", "deployment/azure", "-c", "issuer"), "system:serviceaccount:"+namespace+":default", "rejected")) == 0 {
		t.Error("the log of the issuer has no rejected exchange")
	}
	if shown := do(t, "get", "pod", "other"); len(lines(shown, "Init:")) != 1 {
		t.Errorf("the frontend of the pod has started:\n%s", shown)
	}
}
