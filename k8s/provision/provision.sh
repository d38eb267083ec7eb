#!/usr/bin/env bash
set -euo pipefail
if [ -z "${BASH_VERSINFO:-}" ] || [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -lt 44 ]; then
  echo "bash 4.4 or newer is needed, and this is ${BASH_VERSION:-none} (macOS: brew install bash)" >&2
  exit 1
fi

usage() {
  cat <<'HELP'
provision.sh makes all that cats-api needs in Azure, or takes what is there, and
deploys it:

  resource group, storage account (no public access, no shared keys), container,
  user-assigned identity with two roles (Storage Blob Delegator on the account,
  Storage Blob Data Contributor on the container alone), an AKS cluster with OIDC
  issuer, workload identity and enforced network policies, the federated credential;
  then k8s/overlays/aks is filled in and applied, and signer doctor must find nothing.

It can be run again at any time: what is there as it should be is left alone, and of
what was there it tells what is not as safe as it could be, with the command that
mends it. What it makes has the tag managed-by=cats-api, and teardown.sh deletes
nothing else.

  --dry-run   show what would be done; changes nothing, but asks Azure, so that a
              login is needed
  --help      this

Settings, from the environment:

  STORAGE_ACCOUNT          required; 3 to 24 of a-z and 0-9, unique in all of Azure
  FRONTEND_IMAGE           required; whole reference, such as REGISTRY/cats-api-frontend:v1.0.0
  SIGNER_IMAGE             required
  ANONYMOUS_ACCESS         true: anyone may store, replace, delete and read every picture;
                           required unless settings.env has it, or the component callers
                           is on in the overlay's kustomization.yaml
  RESOURCE_GROUP           cats-api
  LOCATION                 westeurope
  STORAGE_SKU              Standard_ZRS, of a new account; Standard_LRS where there are no zones
  IDENTITY                 cats-api
  CLUSTER                  cats-api; an existing one is taken, 1.29 or newer
  CLUSTER_RESOURCE_GROUP   RESOURCE_GROUP
  FEDERATED_CREDENTIAL     CLUSTER; clusters that share an identity need a name each
  NODE_COUNT               2, of a new cluster
  REGISTRY_SERVER          for a private registry that the nodes cannot pull from by
  REGISTRY_USERNAME        themselves: all three, the password in a file
  REGISTRY_PASSWORD_FILE
  PATIENCE                 900; seconds for roles and the federated credential to be
                           known everywhere, and for the pods to be ready
HELP
}

case ${1:-} in
--help | -h) usage && exit ;;
esac
# shellcheck source=k8s/provision/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for argument in "$@"; do
  case $argument in
  --dry-run) dry_run=true ;;
  *) die "unknown argument $argument; try --help" ;;
  esac
done

FRONTEND_IMAGE=${FRONTEND_IMAGE:-}
SIGNER_IMAGE=${SIGNER_IMAGE:-}
NODE_COUNT=${NODE_COUNT:-2}
STORAGE_SKU=${STORAGE_SKU:-Standard_ZRS}
REGISTRY_SERVER=${REGISTRY_SERVER:-}
REGISTRY_USERNAME=${REGISTRY_USERNAME:-}
REGISTRY_PASSWORD_FILE=${REGISTRY_PASSWORD_FILE:-}
PATIENCE=${PATIENCE:-900}
ANONYMOUS_ACCESS=${ANONYMOUS_ACCESS:-}

# authentication checks that callers are authenticated, or that anonymous access is
# wanted: by ANONYMOUS_ACCESS, or else by the line in settings.env.
authentication() {
  local access=$ANONYMOUS_ACCESS where='ANONYMOUS_ACCESS' callers=false
  if [ -z "$access" ]; then
    access=$(tr -d '\r' <"$overlay/settings.env" | sed -n 's/^[[:space:]]*ANONYMOUS_ACCESS=//p' | head -n 1)
    where="ANONYMOUS_ACCESS in $overlay/settings.env"
  fi
  ! grep -Eq '^[[:space:]]*-[[:space:]]+["'\'']?(\./)?\.\./\.\./components/callers/?["'\'']?[[:space:]]*(#.*)?$' "$overlay/kustomization.yaml" || callers=true
  case $callers,$access in
  true,) at_least "$kubectl_version" 1.31 || ANONYMOUS_ACCESS=false ;; # see settings.env
  true,false | false,true) ;;
  true,true) fault "$where is true, and the component callers is on in $overlay/kustomization.yaml: choose one of both" ;;
  false, | false,false) fault "neither authentication nor anonymous access is chosen: set ANONYMOUS_ACCESS=true to let anyone store, replace, delete and read every picture, or switch on the component callers in $overlay/kustomization.yaml (docs/operations.md, \"Who may call\")" ;;
  *) fault "$where is '$access': want true or false" ;;
  esac
}

# preflight looks at everything that can be seen beforehand, and changes nothing.
preflight() {
  programs
  local name
  for name in STORAGE_ACCOUNT FRONTEND_IMAGE SIGNER_IMAGE; do
    [ -n "${!name}" ] || fault "$name is not set (--help says what it is)"
  done
  if [ -n "$STORAGE_ACCOUNT" ] && ! [[ $STORAGE_ACCOUNT =~ ^[a-z0-9]{3,24}$ ]]; then
    fault "STORAGE_ACCOUNT is '$STORAGE_ACCOUNT': want 3 to 24 of a-z and 0-9"
  fi
  for name in FRONTEND_IMAGE SIGNER_IMAGE; do
    [[ ${!name} =~ ^$|^[a-z0-9./_-]+(:[0-9]+/[a-z0-9./_-]+)?[:@][A-Za-z0-9._:-]+$ ]] ||
      fault "$name is '${!name}': want a whole reference with a tag or digest"
  done
  case $REGISTRY_SERVER,$REGISTRY_USERNAME,$REGISTRY_PASSWORD_FILE in
  ,,) ;;
  ,* | *,,* | *,) fault 'REGISTRY_SERVER, REGISTRY_USERNAME and REGISTRY_PASSWORD_FILE go together: all or none' ;;
  *) [ -s "$REGISTRY_PASSWORD_FILE" ] || fault "REGISTRY_PASSWORD_FILE $REGISTRY_PASSWORD_FILE cannot be read, or is empty" ;;
  esac
  if [ -f "$overlay/settings.env" ] && [ -f "$overlay/kustomization.yaml" ]; then
    authentication
  else
    fault "$overlay/settings.env or kustomization.yaml is missing: run this from a whole checkout"
  fi
  [ ${#faults[@]} -eq 0 ] || return 0 # the rest asks Azure with these

  local provider state
  for provider in Microsoft.Storage Microsoft.ContainerService Microsoft.ManagedIdentity; do
    state=$(look provider show --namespace "$provider" --query registrationState) || state=NotRegistered
    [ "$state" = Registered ] || fault "the provider $provider is $state: az provider register --namespace $provider --wait"
  done
  local scope=/subscriptions/$subscription may version
  [ "$(look group exists --name "$RESOURCE_GROUP")" = true ] && scope+=/resourceGroups/$RESOURCE_GROUP
  # Owner has the action *, and Contributor as well, but not to write these.
  may=$(az rest --method get --url "$scope/providers/Microsoft.Authorization/permissions?api-version=2022-04-01" --output tsv --query \
    "length(value[?(contains(actions, '*') || contains(actions, 'Microsoft.Authorization/*') || contains(actions, 'Microsoft.Authorization/roleAssignments/*') || contains(actions, 'Microsoft.Authorization/roleAssignments/write')) && !contains(notActions, 'Microsoft.Authorization/*/Write')])" 2>/dev/null) || may=unknown
  case $may in
  unknown) printf 'whether you may assign roles could not be found out; going on\n' >&2 ;;
  0) fault "you may not assign roles in $scope: you need Owner, User Access Administrator or Role Based Access Control Administrator" ;;
  esac
  if ! look storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --query id >/dev/null &&
    [ "$(look storage account check-name --name "$STORAGE_ACCOUNT" --query nameAvailable)" != true ]; then
    fault "the storage account name $STORAGE_ACCOUNT is taken, and not in the resource group $RESOURCE_GROUP: choose another, or set RESOURCE_GROUP"
  fi
  if version=$(look aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --query currentKubernetesVersion); then
    at_least "$version" 1.29 || fault "the cluster $CLUSTER is Kubernetes $version: 1.29 or newer is needed, for native sidecars"
  elif [ "$CLUSTER_RESOURCE_GROUP" != "$RESOURCE_GROUP" ] && [ "$(look group exists --name "$CLUSTER_RESOURCE_GROUP")" != true ]; then
    fault "there is no resource group $CLUSTER_RESOURCE_GROUP for the cluster: make it, or leave CLUSTER_RESOURCE_GROUP out"
  fi
  find_issuer || issuer=none
  find_credential
  [ -z "$credential" ] || return 0
  # To change it would cut off whom it is for.
  [ -z "$taken_by" ] || fault "the federated credential $FEDERATED_CREDENTIAL of the identity $IDENTITY is for $taken_by: set FEDERATED_CREDENTIAL to another name, or, if that cluster is gone, $(printf '%q ' az identity federated-credential delete --name "$FEDERATED_CREDENTIAL" --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP")"
  [ "$other_credentials" -lt 20 ] || fault "the identity $IDENTITY has 20 federated credentials, which is the limit: set IDENTITY to another one, or use AKS identity bindings (docs/operations.md)"
}

resource_group() {
  local what="resource group $RESOURCE_GROUP"
  if [ "$(look group exists --name "$RESOURCE_GROUP")" = true ]; then
    say "$what" exists
  else
    make "$what" created az group create --name "$RESOURCE_GROUP" --location "$LOCATION" --tags "$tag"
  fi
}

storage_account() {
  local what="storage account $STORAGE_ACCOUNT" got
  local -a query=(storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP"
    --query '[id, primaryEndpoints.blob, allowBlobPublicAccess, allowSharedKeyAccess, enableHttpsTrafficOnly, minimumTlsVersion]')
  if got=$(look "${query[@]}"); then
    say "$what" exists
  else
    make "$what" created az storage account create --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --location "$LOCATION" \
      --kind StorageV2 --sku "$STORAGE_SKU" --https-only true --min-tls-version TLS1_2 \
      --allow-blob-public-access false --allow-shared-key-access false --tags "$tag"
    got=$(look "${query[@]}") || got=$(printf '%s\n' "/subscriptions/$subscription/resourceGroups/$RESOURCE_GROUP/providers/Microsoft.Storage/storageAccounts/$STORAGE_ACCOUNT" "https://$STORAGE_ACCOUNT.blob.core.windows.net/" false false true TLS1_2)
  fi
  local -a fields
  mapfile -t fields <<<"$got"
  account_id=${fields[0]} account_url=${fields[1]%/}
  [ "${fields[2]}" = false ] || account_should 'it allows public access' --allow-blob-public-access false
  [ "${fields[3]}" = false ] || account_should 'it allows shared keys' --allow-shared-key-access false
  [ "${fields[4]}" = true ] || account_should 'it allows HTTP without TLS' --https-only true
  [[ ${fields[5]} =~ ^TLS1_[23]$ ]] || account_should 'it allows TLS older than 1.2' --min-tls-version TLS1_2

  what="container $container"
  # Through the control plane: the shared keys are off.
  if [ "$(look storage container-rm exists --storage-account "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --name "$container" --query exists)" = true ]; then
    say "$what" exists
  else
    make "$what" created az storage container-rm create --storage-account "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" \
      --name "$container" --public-access off
  fi
}

# account_should tells what is not safe about the account. It does not change it,
# since somebody else may rely on it.
account_should() {
  printf '    %s: %s\n' "$1" "$(printf '%q ' az storage account update --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" "${@:2}")"
}

identity() {
  local what="identity $IDENTITY" got
  local -a query=(identity show --name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --query '[clientId, principalId, tenantId]')
  if got=$(look "${query[@]}"); then
    say "$what" exists
  else
    make "$what" created az identity create --name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --location "$LOCATION" --tags "$tag"
    got=$(look "${query[@]}") || got=$(printf '%s\n' CLIENT-ID-OF-THE-NEW-IDENTITY PRINCIPAL-ID-OF-THE-NEW-IDENTITY TENANT-ID)
  fi
  local -a fields
  mapfile -t fields <<<"$got"
  client_id=${fields[0]} principal_id=${fields[1]} tenant_id=${fields[2]}
}

# role ROLE SCOPE gives the identity a role, and that scope alone.
role() {
  local what="role $1" scope=$2 count=0
  case $principal_id in
  *-OF-THE-NEW-IDENTITY) ;;
  *) count=$(look role assignment list --assignee "$principal_id" --role "$1" --scope "$scope" --query 'length(@)') || count=0 ;;
  esac
  if [ "$count" != 0 ]; then
    say "$what" exists
    return
  fi
  make "$what" assigned az role assignment create --assignee-object-id "$principal_id" --assignee-principal-type ServicePrincipal \
    --role "$1" --scope "$scope"
}

# wider_roles tells of grants by which the identity can write to more than the
# container.
wider_roles() {
  local scope
  while IFS= read -r scope; do
    printf '    the identity can write to all of %s: %s\n' "$scope" \
      "$(printf '%q ' az role assignment delete --assignee "$principal_id" --role "$contributor" --scope "$scope")"
  done < <(case $principal_id in
    *-OF-THE-NEW-IDENTITY) ;;
    *) look role assignment list --assignee "$principal_id" --role "$contributor" --scope "$account_id" --include-inherited --query '[].scope' ;;
    esac)
}

cluster() {
  local what="cluster $CLUSTER" got
  local -a query=(aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP"
    --query "[oidcIssuerProfile.enabled, securityProfile.workloadIdentity.enabled, networkProfile.networkPolicy || 'none']")
  local -a fields
  if got=$(look "${query[@]}"); then
    mapfile -t fields <<<"$got"
    if [ "${fields[0]},${fields[1]}" = true,true ]; then
      say "$what" exists
    else
      make "$what, OIDC issuer and workload identity" 'switched on' az aks update --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" \
        --enable-oidc-issuer --enable-workload-identity
    fi
    [ "${fields[2]}" != none ] || printf '    it enforces no NetworkPolicy, so that pods reach the metadata service: https://learn.microsoft.com/azure/aks/use-network-policies\n'
  else
    $dry_run || printf 'this takes some five to ten minutes:\n'
    # Cilium, so that the NetworkPolicy is enforced.
    make "$what" created az aks create --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --location "$LOCATION" \
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
    say "federated credential $credential" exists
    return
  fi
  make "federated credential $FEDERATED_CREDENTIAL" created az identity federated-credential create --name "$FEDERATED_CREDENTIAL" \
    --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --issuer "$issuer" --subject "$subject" --audiences "$audience"
}

# settings fills in the overlay, as a person would by hand, and keeps all else.
settings() {
  local file=$overlay/settings.env new=$work/settings.env name value line found
  cp "$file" "$new"
  while IFS=$'\t' read -r name value; do
    [ -n "$name" ] || continue # the file's choice stays
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
${ANONYMOUS_ACCESS:+ANONYMOUS_ACCESS	$ANONYMOUS_ACCESS}
VALUES
  write "$file" "$new"

  [ -n "$REGISTRY_SERVER" ] || return 0
  sed 's|^ *# *- \(../../components/image-pull-secret\)|  - \1|' "$overlay/kustomization.yaml" >"$work/kustomization.yaml"
  write "$overlay/kustomization.yaml" "$work/kustomization.yaml"
}

# write FILE NEW replaces the content of FILE, if that is another.
write() {
  local what
  what="overlays/aks/$(basename "$1")"
  if cmp -s "$1" "$2"; then
    say "$what" 'as it should be'
  elif $dry_run; then
    say "$what" 'would become'
    sed 's/^/    /' "$2"
  else
    cat "$2" >"$1"
    say "$what" written
  fi
}

registry_secret() {
  [ -n "$REGISTRY_SERVER" ] || return 0
  if $dry_run; then
    say 'secret registry-credentials' 'would be applied'
    return
  fi
  kubectl apply -f "$here/../base/namespace.yaml" >/dev/null
  # Through standard input: on a command line everybody could read it.
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
  say 'secret registry-credentials' applied
}

# deploy applies the overlay, and waits until all pods are of the new revision and ready,
# and the doctor finds nothing in the newest. Roles and federated credentials take
# minutes to be known.
deploy() {
  if $dry_run; then
    make "overlay aks" applied kubectl apply -k "$overlay"
    return
  fi
  kubectl apply -k "$overlay" || die "the overlay was not applied; what the API server said is above"
  local began=$SECONDS reason
  while :; do
    reason=
    kubectl --namespace $namespace rollout status deployment/cats-api --timeout 15s >"$work/rollout" 2>&1 || reason=$(tail -n 1 "$work/rollout")
    if "$here/../doctor.sh" >"$work/doctor" 2>&1; then
      [ -n "$reason" ] || break
    else
      reason=$(grep -m 1 '^fail' "$work/doctor" || tail -n 1 "$work/doctor")
    fi
    if [ $((SECONDS - began)) -ge "$PATIENCE" ]; then
      cat "$work/rollout" "$work/doctor" >&2
      die "it does not work after $PATIENCE s; above is what is wrong. Run this again when it is mended."
    fi
    printf 'waiting, %d s: %s\n' $((SECONDS - began)) "$reason" >&2
    sleep "${PAUSE:-10}"
  done
  say 'all pods are ready, and the doctor finds nothing' "($((SECONDS - began)) s)"
  cat "$work/doctor"
}

# address waits a little for the load balancer, and says what to try.
address() {
  if $dry_run; then
    return
  fi
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

preflight
stop_on_faults
say "subscription $subscription_name" "$subscription"
resource_group
storage_account
identity
role "$delegator" "$account_id"
role "$contributor" "$account_id/blobServices/default/containers/$container"
wider_roles
cluster
federated_credential
settings
$dry_run || credentials
registry_secret
deploy
address
