#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=k8s/provision/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
teardown.sh deletes what provision.sh created. Run it with the same settings (see
provision.sh --help). It deletes the namespace, the federated credential, the two
role assignments, the identity, the cluster, and the resource group if it is empty.

It deletes an identity, a cluster, an account or a group only if it has the tag
managed-by=cats-api. Of your own identity and cluster it removes only the
credential, the role assignments and the namespace. If the identity has other
federated credentials, the identity and its roles stay. The storage account holds
the pictures and stays, unless you give --delete-pictures.

  --delete-pictures   delete the storage account and all pictures too
  --yes               do not ask for confirmation
  --dry-run           show what would be deleted; reads from Azure, changes nothing
  --help              print this text
HELP
}

yes=false pictures=false
for argument in "$@"; do
  case $argument in
  --help | -h) usage && exit ;;
  --dry-run) dry_run=true ;;
  --yes) yes=true ;;
  --delete-pictures) pictures=true ;;
  *) die "unknown argument $argument; try --help" ;;
  esac
done

# created_by_provision WHAT TAG returns 0 if provision.sh created the resource. Otherwise it reports that the resource stays.
created_by_provision() {
  [ "$2" = cats-api ] && return
  report "$1" 'kept: provision.sh did not create it'
  return 1
}

delete_namespace() {
  local cluster_tag=$1 what="namespace $namespace"
  if [ "$cluster_tag" = cats-api ]; then
    report "$what" 'deleted with the cluster'
    return
  fi
  if $dry_run; then
    report "$what" 'would be deleted'
    return
  fi
  use_cluster
  # Delete the pods first. Otherwise the namespace waits for half of their grace period.
  change "$what, pods" deleted kubectl --namespace $namespace delete deployment cats-api --ignore-not-found
  change "$what" deleted kubectl delete namespace $namespace --ignore-not-found
}

# delete_identity PRINCIPAL TAG deletes the role assignments, and the identity if provision.sh created it.
delete_identity() {
  local assignment role scope
  if [ -n "$account_id" ]; then
    for assignment in "$delegator|$account_id" "$contributor|$account_id/blobServices/default/containers/$container"; do
      role=${assignment%%|*} scope=${assignment#*|}
      [ "$(query role assignment list --assignee "$1" --role "$role" --scope "$scope" --query 'length(@)')" != 0 ] || continue
      change "role $role" removed az role assignment delete --assignee "$1" --role "$role" --scope "$scope"
    done
  fi
  if created_by_provision "identity $IDENTITY" "$2"; then
    change "identity $IDENTITY" deleted az identity delete --name "$IDENTITY" --resource-group "$RESOURCE_GROUP"
  fi
}

check_tools
[ -n "$STORAGE_ACCOUNT" ] || problem 'STORAGE_ACCOUNT is not set'
stop_on_problems
exists=false
for group in "$RESOURCE_GROUP" "$CLUSTER_RESOURCE_GROUP"; do
  [ "$(query group exists --name "$group")" != true ] || exists=true
done
if ! $exists; then
  report "resource group $RESOURCE_GROUP" 'does not exist: nothing to delete'
  exit
fi
if ! $yes && ! $dry_run; then
  printf 'This deletes cats-api from the subscription %s, resource group %s' "$subscription" "$RESOURCE_GROUP"
  $pictures && printf ', and ALL PICTURES in %s' "$STORAGE_ACCOUNT"
  printf '. Continue? [y/N] '
  read -r answer || answer=
  [ "$answer" = y ] || die 'Nothing was deleted.'
fi

account_id=$(query storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --query id) || account_id=
account_tag=$(query storage account show --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --query 'tags."managed-by"') || account_tag=
cluster_tag=$(query aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --query 'tags."managed-by"') || cluster_tag=none

[ "$cluster_tag" = none ] || delete_namespace "$cluster_tag"
if found=$(query identity show --name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --query '[principalId, tags."managed-by"]'); then
  mapfile -t fields <<<"$found"
  find_issuer || issuer=none
  find_credential
  # Without the cluster, only the name identifies its credential.
  if [ "$cluster_tag" = none ] && [[ $taken_by == "$subject of "* ]]; then
    credential=$FEDERATED_CREDENTIAL other_credentials=$((other_credentials - 1))
  fi
  if [ "$credential" = "$FEDERATED_CREDENTIAL" ]; then
    change "federated credential $credential" deleted az identity federated-credential delete --name "$credential" \
      --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP" --yes
  fi
  if [ "$other_credentials" -gt 0 ]; then
    report "identity $IDENTITY and its roles" "kept: it has $other_credentials other federated credentials"
  else
    delete_identity "${fields[@]}"
  fi
fi
if [ "$cluster_tag" != none ] && created_by_provision "cluster $CLUSTER" "$cluster_tag"; then
  change "cluster $CLUSTER" deleted az aks delete --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --yes
fi
if [ -n "$account_id" ]; then
  if ! $pictures; then
    report "storage account $STORAGE_ACCOUNT" 'kept: it holds the pictures (--delete-pictures)'
  elif created_by_provision "storage account $STORAGE_ACCOUNT" "$account_tag"; then
    change "storage account $STORAGE_ACCOUNT" deleted az storage account delete --name "$STORAGE_ACCOUNT" --resource-group "$RESOURCE_GROUP" --yes
  fi
fi
if group_tag=$(query group show --name "$RESOURCE_GROUP" --query 'tags."managed-by"') && created_by_provision "resource group $RESOURCE_GROUP" "$group_tag"; then
  if [ "$(query resource list --resource-group "$RESOURCE_GROUP" --query 'length(@)')" = 0 ]; then
    change "resource group $RESOURCE_GROUP" deleted az group delete --name "$RESOURCE_GROUP" --yes
  else
    report "resource group $RESOURCE_GROUP" 'kept: it is not empty'
  fi
fi
