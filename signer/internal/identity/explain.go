package identity

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// aadsts finds Entra ID's code and sentence in an answer of many lines.
var aadsts = regexp.MustCompile(`AADSTS(\d+): ?([^"\\\r\n]*)`)

// fixes says what to do about the codes that a wrong set-up leads to.
// Source: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var fixes = map[string]string{
	"70021":   federated,
	"700211":  federated + "; the issuer must be the cluster's own: az aks show --query oidcIssuerProfile.issuerUrl",
	"700212":  federated + "; the audience of both should be %s, as AZURE_AUTHORITY_HOST says, and must be the same",
	"700213":  federated + "; the subject must be system:serviceaccount:NAMESPACE:SERVICEACCOUNT of this pod",
	"7002138": federated + "; upper and lower case count",
	"700024":  "the federated token is outside its time: is the kubelet renewing it, and are the clocks right",
	"700027":  "the federated token is not signed by the cluster's key that Entra ID knows: did the cluster rotate its keys moments ago, or is the issuer another cluster's",
	"700016":  "AZURE_CLIENT_ID names no application in AZURE_TENANT_ID: check the ServiceAccount's annotation azure.workload.identity/client-id",
	"90002":   "AZURE_TENANT_ID names no tenant at AZURE_AUTHORITY_HOST",
	"50027":   "AZURE_FEDERATED_TOKEN_FILE does not hold a service-account token",
	"7000218": "AZURE_FEDERATED_TOKEN_FILE does not hold a service-account token",
	"700082":  "the login has expired: az login",
}

const federated = "compare issuer, subject and audience of the identity's federated credential with the pod's; a new one takes minutes to be known"

// explain turns an error of the token exchange into one line: what Entra ID said, and what to do about it. The SDK's own text
// repeats the whole answer over many lines. audience is the one that the cloud expects.
func explain(err error, audience string) error {
	if err == nil {
		return nil
	}
	m := aadsts.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("%.400s", strings.Join(strings.Fields(err.Error()), " "))
	}
	said := fmt.Sprintf("AADSTS%s: %s", m[1], strings.TrimSpace(m[2]))
	if fix := fixes[m[1]]; fix != "" {
		said += "; fix: " + strings.ReplaceAll(fix, "%s", audience)
	}
	return errors.New(said)
}
