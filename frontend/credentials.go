package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// tokenFiles are the paths at which the pod mounts a token: the workload identity webhook up to 1.5, the webhook since 1.6, and
// Kubernetes itself.
var tokenFiles = []string{
	"/var/run/secrets/azure/tokens/azure-identity-token",
	"/var/run/secrets/azure/wi/token/azure-identity-token",
	"/var/run/secrets/kubernetes.io/serviceaccount/token",
}

// tokenVariables are the variables of token endpoints that azidentity's ManagedIdentityCredential reads (App Service, Azure Arc,
// Service Fabric, Azure ML, Cloud Shell). Names that begin with AZURE_ are not listed.
var tokenVariables = []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET"}

const credentialsFix = "the public container must have no credential: " +
	"in Kubernetes, the pod needs the annotation azure.workload.identity/skip-containers with the name of this container " +
	"(several names are separated by a semicolon), automountServiceAccountToken: false, and no annotation azure.workload.identity/inject-proxy-sidecar"

// checkNoCredentials returns an error if this process could obtain a token: a variable of environ belongs to a credential, one of
// files exists, or endpoints, the addresses of token endpoints, is not empty.
//
// The webhook's annotation skip-containers has the name of the container. If the container is renamed, it gets a token, and
// nothing else would report that. The error is one line that has all names and no values.
func checkNoCredentials(environ, files, endpoints []string) error {
	var found []string
	for _, v := range environ {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AZURE_") || slices.Contains(tokenVariables, name) {
			found = append(found, "variable "+name)
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			found = append(found, "token file "+f)
		}
	}
	for _, e := range endpoints {
		found = append(found, "token endpoint "+e)
	}
	if found == nil {
		return nil
	}
	slices.Sort(found)
	return fmt.Errorf("the frontend finds credentials and does not start: %s; %s", strings.Join(slices.Compact(found), ", "), credentialsFix)
}
