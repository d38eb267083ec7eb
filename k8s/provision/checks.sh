# shellcheck shell=bash
# The checks that provision.sh runs before the first change.
# shellcheck disable=SC2034,SC2154 # provision.sh and lib.sh set and use these variables

# check_version sets VERSION, unless it is set, to the tag of SIGNER_IMAGE, or to "unknown" if the image has only a digest.
check_version() {
  local reference=${SIGNER_IMAGE%%@*}
  [[ -n $VERSION || ${reference##*/} != *:* ]] || VERSION=${reference##*:}
  VERSION=${VERSION:-unknown}
  [[ $VERSION =~ ^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$ ]] ||
    problem "VERSION is '$VERSION': want a label value, such as v1.0.0"
}

# check_authentication checks that the component authentication is on, or that anonymous access is allowed by ANONYMOUS_ACCESS
# or, if that is not set, by settings.env.
check_authentication() {
  local access=$ANONYMOUS_ACCESS where='ANONYMOUS_ACCESS' on=false
  if [ -z "$access" ]; then
    access=$(tr -d '\r' <"$overlay/settings.env" | sed -n 's/^[[:space:]]*ANONYMOUS_ACCESS=//p' | head -n 1)
    where="ANONYMOUS_ACCESS in $overlay/settings.env"
  fi
  ! grep -Eq '^[[:space:]]*-[[:space:]]+["'\'']?(\./)?\.\./\.\./components/authentication/?["'\'']?[[:space:]]*(#.*)?$' "$overlay/kustomization.yaml" || on=true
  case $on,$access in
  true,) at_least "$kubectl_version" 1.31 || ANONYMOUS_ACCESS=false ;; # see settings.env
  true,false | false,true) ;;
  true,true) problem "$where is true, and $overlay/kustomization.yaml has the component authentication: choose one of both" ;;
  false, | false,false)
    problem "neither authentication nor anonymous access is chosen: set ANONYMOUS_ACCESS=true to let every client store, replace," \
      "delete and read every picture, or switch on the component authentication in $overlay/kustomization.yaml" \
      "(docs/authentication.md)"
    ;;
  *) problem "$where is '$access': want true or false" ;;
  esac
}

# check_settings checks the settings. It does not read from Azure.
check_settings() {
  local name
  for name in STORAGE_ACCOUNT FRONTEND_IMAGE SIGNER_IMAGE; do
    [ -n "${!name}" ] || problem "$name is not set (see --help)"
  done
  if [ -n "$STORAGE_ACCOUNT" ] && ! [[ $STORAGE_ACCOUNT =~ ^[a-z0-9]{3,24}$ ]]; then
    problem "STORAGE_ACCOUNT is '$STORAGE_ACCOUNT': want 3 to 24 of a-z and 0-9"
  fi
  for name in FRONTEND_IMAGE SIGNER_IMAGE; do
    [[ ${!name} =~ ^$|^[a-z0-9./_-]+(:[0-9]+/[a-z0-9./_-]+)?[:@][A-Za-z0-9._:@-]+$ ]] ||
      problem "$name is '${!name}': want registry, name, and tag or digest"
  done
  case $REGISTRY_SERVER,$REGISTRY_USERNAME,$REGISTRY_PASSWORD_FILE in
  ,,) ;;
  ,* | *,,* | *,) problem 'REGISTRY_SERVER, REGISTRY_USERNAME and REGISTRY_PASSWORD_FILE: set all three or none' ;;
  *) [ -s "$REGISTRY_PASSWORD_FILE" ] || problem "REGISTRY_PASSWORD_FILE $REGISTRY_PASSWORD_FILE cannot be read or is empty" ;;
  esac
  check_version
  if [ -f "$overlay/settings.env" ] && [ -f "$overlay/kustomization.yaml" ]; then
    check_authentication
  else
    problem "$overlay/settings.env or kustomization.yaml is missing: run this from a complete checkout"
  fi
}

# check_azure checks what can be checked in Azure before the first change.
check_azure() {
  local provider state
  for provider in Microsoft.Storage Microsoft.ContainerService Microsoft.ManagedIdentity; do
    state=$(query provider show --namespace "$provider" --query registrationState) || state=NotRegistered
    [ "$state" = Registered ] || problem "the provider $provider is $state: az provider register --namespace $provider --wait"
  done
  local scope=/subscriptions/$subscription assignable version
  [ "$(query group exists --name "$RESOURCE_GROUP")" = true ] && scope+=/resourceGroups/$RESOURCE_GROUP
  # Contributor has the action * too, but its notActions exclude role assignments.
  assignable=$(az rest --method get --url "$scope/providers/Microsoft.Authorization/permissions?api-version=2022-04-01" --output tsv \
    --query "length(value[?(contains(actions, '*') || contains(actions, 'Microsoft.Authorization/*')
      || contains(actions, 'Microsoft.Authorization/roleAssignments/*') || contains(actions, 'Microsoft.Authorization/roleAssignments/write'))
      && !contains(notActions, 'Microsoft.Authorization/*/Write')])" 2>/dev/null) || assignable=unknown
  case $assignable in
  unknown) printf 'Your permission to assign roles cannot be checked; continuing.\n' >&2 ;;
  0) problem "you cannot assign roles in $scope: you need Owner, User Access Administrator or Role Based Access Control Administrator" ;;
  esac
  if ! query storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --query id >/dev/null &&
    [ "$(query storage account check-name --name "$STORAGE_ACCOUNT" --query nameAvailable)" != true ]; then
    problem "the storage account name $STORAGE_ACCOUNT is taken, and not in the resource group $RESOURCE_GROUP: choose another name, or set RESOURCE_GROUP"
  fi
  if version=$(query aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --query currentKubernetesVersion); then
    at_least "$version" 1.29 || problem "the cluster $CLUSTER is Kubernetes $version: 1.29 or newer is required for native sidecars"
  elif [ "$CLUSTER_RESOURCE_GROUP" != "$RESOURCE_GROUP" ] && [ "$(query group exists --name "$CLUSTER_RESOURCE_GROUP")" != true ]; then
    problem "the resource group $CLUSTER_RESOURCE_GROUP for the cluster does not exist: create it, or do not set CLUSTER_RESOURCE_GROUP"
  fi
  find_issuer || issuer=none
  find_credential
  [ -z "$credential" ] || return 0
  # A change would break the workload that uses it.
  [ -z "$taken_by" ] || problem "the federated credential $FEDERATED_CREDENTIAL of the identity $IDENTITY is for $taken_by:" \
    "set FEDERATED_CREDENTIAL to another name, or, if that cluster no longer exists," \
    "$(printf '%q ' az identity federated-credential delete --name "$FEDERATED_CREDENTIAL" --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP")"
  [ "$other_credentials" -lt 20 ] || problem "the identity $IDENTITY has 20 federated credentials, which is the limit:" \
    "set IDENTITY to another one, or use AKS identity bindings (docs/deploy.md)"
}
