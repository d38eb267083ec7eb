#!/usr/bin/env bash
set -euo pipefail
if [ -z "${BASH_VERSINFO:-}" ] || [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -lt 44 ]; then
  echo "bash 4.4 or newer is needed, and this is ${BASH_VERSION:-none} (macOS: brew install bash)" >&2
  exit 1
fi

usage() {
  cat <<'HELP'
teardown.sh takes away what provision.sh has made, with the same settings (see
provision.sh --help): the namespace, the federated credential, the two roles, the
identity, the cluster, and the resource group if nothing is left in it. Identity,
cluster, account and group are deleted only with the tag managed-by=cats-api; of an
identity or a cluster of your own, only the credential, the roles and the namespace
go. While the identity has other federated credentials, it stays with its roles. The
storage account holds the pictures, and stays unless you say otherwise.

  --delete-pictures   delete the storage account too, with all that is in it
  --yes               do not ask
  --dry-run           show what would be done; only asks Azure, changes nothing
  --help              this
HELP
}

case ${1:-} in
--help | -h) usage && exit ;;
esac
# shellcheck source=k8s/provision/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
yes=false pictures=false
for argument in "$@"; do
  case $argument in
  --dry-run) dry_run=true ;;
  --yes) yes=true ;;
  --delete-pictures) pictures=true ;;
  *) die "unknown argument $argument; try --help" ;;
  esac
done

# ours WHAT TAG: whether it was made by provision.sh; says so if it was not.
ours() {
  [ "$2" = cats-api ] && return
  say "$1" 'left alone: it was there before'
  return 1
}

workload() {
  local made=$1 what="namespace $namespace"
  if [ "$made" = cats-api ]; then
    say "$what" 'goes with the cluster'
    return
  fi
  if $dry_run; then
    say "$what" 'would be deleted'
    return
  fi
  credentials
  # Pods first, or the namespace waits for half of their grace period.
  make "$what, the pods" deleted kubectl --namespace $namespace delete deployment cats-api --ignore-not-found
  make "$what" deleted kubectl delete namespace $namespace --ignore-not-found
}

# no_identity PRINCIPAL TAG takes the roles away, and the identity if it is ours.
no_identity() {
  local assignment role scope
  if [ -n "$account_id" ]; then
    for assignment in "$delegator|$account_id" "$contributor|$account_id/blobServices/default/containers/$container"; do
      role=${assignment%%|*} scope=${assignment#*|}
      [ "$(look role assignment list --assignee "$1" --role "$role" --scope "$scope" --query 'length(@)')" != 0 ] || continue
      make "role $role" 'taken away' az role assignment delete --assignee "$1" --role "$role" --scope "$scope"
    done
  fi
  if ours "identity $IDENTITY" "$2"; then
    make "identity $IDENTITY" deleted az identity delete --name "$IDENTITY" --resource-group "$RESOURCE_GROUP"
  fi
}

programs
[ -n "$STORAGE_ACCOUNT" ] || fault 'STORAGE_ACCOUNT is not set'
stop_on_faults
there=false
for group in "$RESOURCE_GROUP" "$CLUSTER_RESOURCE_GROUP"; do
  [ "$(look group exists --name "$group")" != true ] || there=true
done
if ! $there; then
  say "resource group $RESOURCE_GROUP" 'is not there: nothing to do'
  exit
fi
if ! $yes && ! $dry_run; then
  printf 'This deletes cats-api from the subscription %s, resource group %s' "$subscription" "$RESOURCE_GROUP"
  $pictures && printf ', and ALL PICTURES in %s' "$STORAGE_ACCOUNT"
  printf '. Go on? [y/N] '
  read -r answer || answer=
  [ "$answer" = y ] || die 'nothing was deleted'
fi

account_id=$(look storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --query id) || account_id=
account_tag=$(look storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --query 'tags."managed-by"') || account_tag=
cluster_tag=$(look aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --query 'tags."managed-by"') || cluster_tag=none

[ "$cluster_tag" = none ] || workload "$cluster_tag"
if found=$(look identity show --name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --query '[principalId, tags."managed-by"]'); then
  mapfile -t fields <<<"$found"
  find_issuer || issuer=none
  find_credential
  # Without the cluster, its name is all that is left to know it by.
  if [ "$cluster_tag" = none ] && [[ $taken_by == "$subject of "* ]]; then
    credential=$FEDERATED_CREDENTIAL other_credentials=$((other_credentials - 1))
  fi
  if [ "$credential" = "$FEDERATED_CREDENTIAL" ]; then
    make "federated credential $credential" deleted az identity federated-credential delete --name "$credential" \
      --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --yes
  fi
  if [ "$other_credentials" -gt 0 ]; then
    say "identity $IDENTITY, and its roles" "left alone: it has $other_credentials other federated credentials"
  else
    no_identity "${fields[@]}"
  fi
fi
if [ "$cluster_tag" != none ] && ours "cluster $CLUSTER" "$cluster_tag"; then
  make "cluster $CLUSTER" deleted az aks delete --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --yes
fi
if [ -n "$account_id" ]; then
  if ! $pictures; then
    say "storage account $STORAGE_ACCOUNT" 'left alone: it has the pictures (--delete-pictures)'
  elif ours "storage account $STORAGE_ACCOUNT" "$account_tag"; then
    make "storage account $STORAGE_ACCOUNT" deleted az storage account delete --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --yes
  fi
fi
if group_tag=$(look group show --name "$RESOURCE_GROUP" --query 'tags."managed-by"') && ours "resource group $RESOURCE_GROUP" "$group_tag"; then
  if [ "$(look resource list --resource-group "$RESOURCE_GROUP" --query 'length(@)')" = 0 ]; then
    make "resource group $RESOURCE_GROUP" deleted az group delete --name "$RESOURCE_GROUP" --yes
  else
    say "resource group $RESOURCE_GROUP" 'left alone: something is in it'
  fi
fi
