package identity

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// aadsts matches code and sentence in an error response of Entra ID.
var aadsts = regexp.MustCompile(`AADSTS(\d+): ?([^"\\\r\n]*)`)

// fixes has the advice for the error codes of wrong configurations; %s is the audience of the cloud.
// Source: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var fixes = map[string]string{
	"70021":   federated,
	"700211":  federated + "; the issuer must be the cluster's own: az aks show --query oidcIssuerProfile.issuerUrl",
	"700212":  federated + "; the audience of both should be %s, as AZURE_AUTHORITY_HOST says, and must be the same",
	"700213":  federated + "; the subject must be system:serviceaccount:NAMESPACE:SERVICEACCOUNT of this pod",
	"7002138": federated + "; the comparison is case-sensitive",
	"700024":  "the federated token is expired or not valid yet: check that the kubelet renews it, and the clocks",
	"700027":  "Entra ID does not know the key that signed the federated token: the cluster has rotated its keys moments ago, or the issuer is that of another cluster",
	"700016":  "AZURE_CLIENT_ID names no application in AZURE_TENANT_ID: check the ServiceAccount's annotation azure.workload.identity/client-id",
	"90002":   "AZURE_TENANT_ID names no tenant at AZURE_AUTHORITY_HOST",
	"50027":   "AZURE_FEDERATED_TOKEN_FILE does not hold a service-account token",
	"7000218": "AZURE_FEDERATED_TOKEN_FILE does not hold a service-account token",
	"700082":  "the login has expired: az login",
}

const federated = "compare issuer, subject and audience of the identity's federated credential with the pod's; a new one takes minutes to take effect"

// explain returns the error of a token exchange as one line: the error of Entra ID and, after "; fix: ", what to do. The SDK's text
// contains the whole response. audience is the one that the cloud expects.
func explain(err error, audience string) error {
	if err == nil {
		return nil
	}
	m := aadsts.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("%.400s", strings.Join(strings.Fields(err.Error()), " "))
	}
	text := fmt.Sprintf("AADSTS%s: %s", m[1], strings.TrimSpace(m[2]))
	if fix := fixes[m[1]]; fix != "" {
		text += "; fix: " + strings.ReplaceAll(fix, "%s", audience)
	}
	return errors.New(text)
}
