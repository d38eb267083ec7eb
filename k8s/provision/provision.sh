#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=k8s/provision/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=k8s/provision/checks.sh
. "$here/checks.sh"

usage() {
  cat <<'HELP'
provision.sh creates everything that cats-api needs in Azure and deploys it. It uses
what already exists:

  1. resource group, storage account (no public access, no shared keys), container
  2. user-assigned identity with two roles: Storage Blob Delegator on the account,
     Storage Blob Data Contributor on the container
  3. AKS cluster with OIDC issuer, workload identity and enforced network policies
  4. federated credential
  5. k8s/overlays/aks, filled in and applied; signer doctor must report no failure

You can run it again at any time. It does not change existing resources whose
settings are less safe, but prints the command that corrects them. Resources that it
creates have the tag managed-by=cats-api; teardown.sh deletes no others.

  --dry-run   show what would be done; reads from Azure, so it needs a login, and
              changes nothing
  --help      print this text

Settings, from the environment, with their defaults:

  STORAGE_ACCOUNT          required; 3 to 24 of a-z and 0-9, unique in Azure
  FRONTEND_IMAGE           required; with registry and tag or digest, such as
                           REGISTRY/cats-api-frontend:v1.0.0
  SIGNER_IMAGE             required; such as REGISTRY/cats-api-signer:v1.0.0
  VERSION                  the tag of SIGNER_IMAGE; the label app.kubernetes.io/version
  ANONYMOUS_ACCESS         true: every client can store, replace, delete and read every
                           picture; required, unless settings.env has it or the
                           overlay's kustomization.yaml has the component authentication
  RESOURCE_GROUP           cats-api
  LOCATION                 westeurope
  STORAGE_SKU              Standard_ZRS, of a new account; use Standard_LRS in regions
                           without zones
  IDENTITY                 cats-api
  CLUSTER                  cats-api; an existing cluster must be 1.29 or newer
  CLUSTER_RESOURCE_GROUP   RESOURCE_GROUP
  FEDERATED_CREDENTIAL     CLUSTER; clusters that share an identity need different names
  NODE_COUNT               2, of a new cluster
  REGISTRY_SERVER          set these three for a private registry that the nodes cannot
  REGISTRY_USERNAME        pull from
  REGISTRY_PASSWORD_FILE
  DEPLOY_TIMEOUT           900; seconds until the roles and the federated credential take
                           effect and the pods are ready
HELP
}

for argument in "$@"; do
  case $argument in
  --help | -h) usage && exit ;;
  --dry-run) dry_run=true ;;
  *) die "unknown argument $argument; try --help" ;;
  esac
done

FRONTEND_IMAGE=${FRONTEND_IMAGE:-} SIGNER_IMAGE=${SIGNER_IMAGE:-} VERSION=${VERSION:-} ANONYMOUS_ACCESS=${ANONYMOUS_ACCESS:-}
NODE_COUNT=${NODE_COUNT:-2} STORAGE_SKU=${STORAGE_SKU:-Standard_ZRS} DEPLOY_TIMEOUT=${DEPLOY_TIMEOUT:-900}
REGISTRY_SERVER=${REGISTRY_SERVER:-} REGISTRY_USERNAME=${REGISTRY_USERNAME:-} REGISTRY_PASSWORD_FILE=${REGISTRY_PASSWORD_FILE:-}

resource_group() {
  local what="resource group $RESOURCE_GROUP"
  if [ "$(query group exists --name "$RESOURCE_GROUP")" = true ]; then
    report "$what" exists
  else
    change "$what" created az group create --name "$RESOURCE_GROUP" --location "$LOCATION" --tags "$tag"
  fi
}

storage_account() {
  local what="storage account $STORAGE_ACCOUNT" got
  local -a fields show=(storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP"
    --query '[id, primaryEndpoints.blob, allowBlobPublicAccess, allowSharedKeyAccess, enableHttpsTrafficOnly, minimumTlsVersion]')
  if got=$(query "${show[@]}"); then
    report "$what" exists
  else
    change "$what" created az storage account create --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --location "$LOCATION" \
      --kind StorageV2 --sku "$STORAGE_SKU" --https-only true --min-tls-version TLS1_2 \
      --allow-blob-public-access false --allow-shared-key-access false --tags "$tag"
    got=$(query "${show[@]}") || got=$(printf '%s\n' "/subscriptions/$subscription/resourceGroups/$RESOURCE_GROUP/providers/Microsoft.Storage/storageAccounts/$STORAGE_ACCOUNT" "https://$STORAGE_ACCOUNT.blob.core.windows.net/" false false true TLS1_2)
  fi
  mapfile -t fields <<<"$got"
  account_id=${fields[0]} account_url=${fields[1]%/}
  [ "${fields[2]}" = false ] || weak_account 'it allows public access' --allow-blob-public-access false
  [ "${fields[3]}" = false ] || weak_account 'it allows shared keys' --allow-shared-key-access false
  [ "${fields[4]}" = true ] || weak_account 'it allows HTTP without TLS' --https-only true
  [[ ${fields[5]} =~ ^TLS1_[23]$ ]] || weak_account 'it allows TLS older than 1.2' --min-tls-version TLS1_2

  what="container $container"
  # Through the control plane, since shared keys are off.
  if [ "$(query storage container-rm exists --storage-account "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --name "$container" --query exists)" = true ]; then
    report "$what" exists
  else
    change "$what" created az storage container-rm create --storage-account "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" \
      --name "$container" --public-access off
  fi
}

# weak_account WHY OPTION... prints the command that corrects an unsafe setting of the account. It does not run the command: other
# programs may rely on the setting.
weak_account() {
  printf '    %s: %s\n' "$1" "$(printf '%q ' az storage account update --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" "${@:2}")"
}

identity() {
  local what="identity $IDENTITY" got
  local -a fields show=(identity show --name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --query '[clientId, principalId, tenantId]')
  if got=$(query "${show[@]}"); then
    report "$what" exists
  else
    change "$what" created az identity create --name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --location "$LOCATION" --tags "$tag"
    got=$(query "${show[@]}") || got=$(printf '%s\n' CLIENT-ID-OF-THE-NEW-IDENTITY PRINCIPAL-ID-OF-THE-NEW-IDENTITY TENANT-ID)
  fi
  mapfile -t fields <<<"$got"
  client_id=${fields[0]} principal_id=${fields[1]} tenant_id=${fields[2]}
}

# role ROLE SCOPE assigns a role to the identity, on that scope only.
role() {
  local count=0
  [[ $principal_id == *-OF-THE-NEW-IDENTITY ]] ||
    count=$(query role assignment list --assignee "$principal_id" --role "$1" --scope "$2" --query 'length(@)') || count=0
  if [ "$count" != 0 ]; then
    report "role $1" exists
  else
    change "role $1" assigned az role assignment create --assignee-object-id "$principal_id" --assignee-principal-type ServicePrincipal \
      --role "$1" --scope "$2"
  fi
}

# wider_roles prints the commands that remove role assignments on more than the container.
wider_roles() {
  [[ $principal_id != *-OF-THE-NEW-IDENTITY ]] || return 0
  local scope
  while IFS= read -r scope; do
    printf '    the identity can write to all of %s: %s\n' "$scope" \
      "$(printf '%q ' az role assignment delete --assignee "$principal_id" --role "$contributor" --scope "$scope")"
  done < <(query role assignment list --assignee "$principal_id" --role "$contributor" --scope "$account_id" --include-inherited --query '[].scope')
}

cluster() {
  local what="cluster $CLUSTER" got
  local -a fields
  if got=$(query aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" \
    --query "[oidcIssuerProfile.enabled, securityProfile.workloadIdentity.enabled, networkProfile.networkPolicy || 'none']"); then
    mapfile -t fields <<<"$got"
    if [ "${fields[0]},${fields[1]}" = true,true ]; then
      report "$what" exists
    else
      change "$what, OIDC issuer and workload identity" enabled az aks update --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" \
        --enable-oidc-issuer --enable-workload-identity
    fi
    [ "${fields[2]}" != none ] || printf '    it does not enforce NetworkPolicy, so pods can reach the metadata service: https://learn.microsoft.com/azure/aks/use-network-policies\n'
  else
    $dry_run || printf 'The next step takes five to ten minutes.\n'
    # With Cilium, which enforces the NetworkPolicy.
    change "$what" created az aks create --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --location "$LOCATION" \
      --node-count "$NODE_COUNT" --enable-oidc-issuer --enable-workload-identity --no-ssh-key \
      --network-plugin azure --network-plugin-mode overlay --network-dataplane cilium --tags "$tag"
  fi
  find_issuer || issuer=none
  if [ "$issuer" = none ]; then
    $dry_run || die "the cluster $CLUSTER has no OIDC issuer yet: run this again"
    issuer=ISSUER-OF-THE-CLUSTER
  fi
}

federated_credential() {
  find_credential
  if [ -n "$credential" ]; then
    report "federated credential $credential" exists
  else
    change "federated credential $FEDERATED_CREDENTIAL" created az identity federated-credential create --name "$FEDERATED_CREDENTIAL" \
      --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --issuer "$issuer" --subject "$subject" --audiences "$audience"
  fi
}

# write_overlay fills in the overlay's settings, and switches on the component image-pull-secret if a registry is set. Other lines
# of the files do not change.
write_overlay() {
  local file=$overlay/settings.env new=$work/settings.env name value line found
  cp "$file" "$new"
  while IFS=$'\t' read -r name value; do
    [ -n "$name" ] || continue
    found=false
    while IFS= read -r line || [ -n "$line" ]; do
      if [[ $line =~ ^[[:space:]]*(#\ *)?$name= ]]; then
        $found && continue
        line=$name=$value found=true
      fi
      printf '%s\n' "$line"
    done <"$new" >"$new.next"
    $found || printf '%s=%s\n' "$name" "$value" >>"$new.next"
    mv "$new.next" "$new"
  done <<VALUES
AZURE_CLIENT_ID	$client_id
AZURE_TENANT_ID	$tenant_id
AZURE_STORAGE_ACCOUNT_URL	$account_url
FRONTEND_IMAGE	$FRONTEND_IMAGE
SIGNER_IMAGE	$SIGNER_IMAGE
VERSION	$VERSION
${ANONYMOUS_ACCESS:+ANONYMOUS_ACCESS	$ANONYMOUS_ACCESS}
VALUES
  write "$file" "$new"

  [ -n "$REGISTRY_SERVER" ] || return 0
  sed 's|^ *# *- \(../../components/image-pull-secret\)|  - \1|' "$overlay/kustomization.yaml" >"$work/kustomization.yaml"
  write "$overlay/kustomization.yaml" "$work/kustomization.yaml"
}

# write FILE NEW copies NEW to FILE if they differ.
write() {
  local what
  what="overlays/aks/$(basename "$1")"
  if cmp -s "$1" "$2"; then
    report "$what" unchanged
  elif $dry_run; then
    report "$what" 'would become'
    sed 's/^/    /' "$2"
  else
    cat "$2" >"$1"
    report "$what" written
  fi
}

registry_secret() {
  [ -n "$REGISTRY_SERVER" ] || return 0
  if $dry_run; then
    report 'secret registry-credentials' 'would be applied'
    return
  fi
  kubectl apply -f "$here/../base/namespace.yaml" >/dev/null
  # Through standard input: other users can read command lines.
  local auth config
  auth=$(printf '%s:%s' "$REGISTRY_USERNAME" "$(cat "$REGISTRY_PASSWORD_FILE")" | base64 | tr -d '\n')
  config=$(printf '{"auths":{"%s":{"auth":"%s"}}}' "$REGISTRY_SERVER" "$auth" | base64 | tr -d '\n')
  kubectl apply -f - >/dev/null <<SECRET
apiVersion: v1
kind: Secret
metadata:
  name: registry-credentials
  namespace: $namespace
type: kubernetes.io/dockerconfigjson
data:
  .dockerconfigjson: $config
SECRET
  report 'secret registry-credentials' applied
}

# deploy applies the overlay. It waits until all pods are of the new revision and ready, and the doctor reports no failure in the
# newest one. New roles and federated credentials take minutes to take effect.
deploy() {
  if $dry_run; then
    change 'overlay aks' applied kubectl apply -k "$overlay"
    return
  fi
  kubectl apply -k "$overlay" || die 'applying the overlay failed; the message of the API server is above'
  local began=$SECONDS reason
  while :; do
    reason=
    kubectl --namespace $namespace rollout status deployment/cats-api --timeout 15s >"$work/rollout" 2>&1 || reason=$(tail -n 1 "$work/rollout")
    if "$here/../doctor.sh" >"$work/doctor" 2>&1; then
      [ -n "$reason" ] || break
    else
      reason=$(grep -m 1 '^fail' "$work/doctor" || tail -n 1 "$work/doctor")
    fi
    if [ $((SECONDS - began)) -ge "$DEPLOY_TIMEOUT" ]; then
      cat "$work/rollout" "$work/doctor" >&2
      die "the deployment is not ready after $DEPLOY_TIMEOUT s; the reason is above. Correct it and run this again."
    fi
    printf 'waiting, %d s: %s\n' $((SECONDS - began)) "$reason" >&2
    sleep "${PAUSE:-10}"
  done
  report 'all pods are ready, and the doctor reports no failure' "($((SECONDS - began)) s)"
  cat "$work/doctor"
}

# show_address waits up to five minutes for the load balancer's address, and prints commands to try.
show_address() {
  ! $dry_run || return 0
  local ip='' tries=0
  while [ $tries -lt 30 ]; do
    ip=$(kubectl --namespace $namespace get service cats-api --output 'jsonpath={.status.loadBalancer.ingress[0].ip}')
    [ -z "$ip" ] || break
    [ $tries -gt 0 ] || printf 'waiting for the address of the load balancer\n' >&2
    tries=$((tries + 1))
    sleep "${PAUSE:-10}"
  done
  [ -n "$ip" ] || ip="ADDRESS (kubectl -n $namespace get service cats-api)"
  cat <<TRY

Try it:
  curl -T cat.png http://$ip:8080/cat/Davyd
  curl -s http://$ip:8080/cat/Davyd
TRY
}

check_tools
check_settings
[ ${#problems[@]} -gt 0 ] || check_azure # it uses the settings
stop_on_problems
report "subscription $subscription_name" "$subscription"
resource_group
storage_account
identity
role "$delegator" "$account_id"
role "$contributor" "$account_id/blobServices/default/containers/$container"
wider_roles
cluster
federated_credential
write_overlay
$dry_run || use_cluster
registry_secret
deploy
show_address
