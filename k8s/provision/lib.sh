# shellcheck shell=bash
# Settings and functions of provision.sh and teardown.sh, which source this file.
# shellcheck disable=SC2034 # the scripts use these variables

if [ -z "${BASH_VERSINFO:-}" ] || [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -lt 44 ]; then
  echo "bash 4.4 or newer is required; this is ${BASH_VERSION:-unknown} (macOS: brew install bash)" >&2
  exit 1
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
overlay=${OVERLAY:-$here/../overlays/aks}
namespace=cats-api
subject=system:serviceaccount:cats-api:cats-api-sa
audience=api://AzureADTokenExchange # of the public cloud; check_tools changes it for national clouds
tag=managed-by=cats-api
delegator='Storage Blob Delegator'
contributor='Storage Blob Data Contributor'
container=cats # the signer's STORAGE_CONTAINER

RESOURCE_GROUP=${RESOURCE_GROUP:-cats-api}
LOCATION=${LOCATION:-westeurope}
STORAGE_ACCOUNT=${STORAGE_ACCOUNT:-}
IDENTITY=${IDENTITY:-cats-api}
CLUSTER=${CLUSTER:-cats-api}
CLUSTER_RESOURCE_GROUP=${CLUSTER_RESOURCE_GROUP:-$RESOURCE_GROUP}
FEDERATED_CREDENTIAL=${FEDERATED_CREDENTIAL:-$CLUSTER}

dry_run=false
problems=()
kubectl_version=unknown

problem() { problems+=("$*"); }

# stop_on_problems prints all problems and ends the script, if there are any.
stop_on_problems() {
  [ ${#problems[@]} -gt 0 ] || return 0
  printf 'Nothing was changed. Correct this first:\n' >&2
  printf '  * %s\n' "${problems[@]}" >&2
  exit 1
}

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# report WHAT STATE prints one line about a resource.
report() { printf '%-58s %s\n' "$1" "$2"; }

# change WHAT OUTCOME COMMAND... runs a command that changes something, and reports its outcome. In a dry run it only prints
# the command.
change() {
  local what=$1 outcome=$2 began=$SECONDS
  shift 2
  if $dry_run; then
    report "$what" "would be $outcome by"
    printf '    %s\n' "$(printf '%q ' "$@")"
    return 0
  fi
  printf '%-58s ' "$what"
  "$@" >/dev/null || die "failed: $(printf '%q ' "$@")"
  printf '%s (%d s)\n' "$outcome" $((SECONDS - began))
}

# query runs an az command that reads, and prints one value per line. It returns 1 if the resource does not exist. Any other
# error ends the script.
query() {
  local status=0
  az "$@" --output tsv --only-show-errors 2>"$work/error" || status=$?
  case $status in
  0) return 0 ;;
  3) return 1 ;; # the exit code of az if a resource does not exist
  esac
  printf 'az %s: %s\n' "$(printf '%q ' "$@")" "$(cat "$work/error")" >&2
  kill -TERM $$ # ends the script from within $(…) too
  exit 1
}

# at_least A B returns 0 if version A is B or newer.
at_least() { [[ $1 =~ ^[0-9] ]] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# check_tools checks the versions of az and kubectl, and the login of az.
check_tools() {
  local version missing=false
  if ! command -v az >/dev/null; then
    problem 'the Azure CLI (az) is missing: https://aka.ms/install-azure-cli'
    missing=true
  else
    version=$(az version --query '"azure-cli"' --output tsv) || version=unknown
    at_least "$version" 2.60.0 || problem "the Azure CLI is $version; 2.60.0 or newer is required: az upgrade"
  fi
  if ! command -v kubectl >/dev/null; then
    problem 'kubectl is missing: az aks install-cli'
  else
    version=$(kubectl version --client --output json | sed -n 's/.*"gitVersion": *"v\([0-9.]*\).*/\1/p') || version=
    kubectl_version=${version:-unknown}
    at_least "$kubectl_version" 1.27 || problem "kubectl is $kubectl_version; 1.27 or newer is required for its kustomize"
  fi
  $missing && return
  local got
  local -a fields
  if got=$(az account show --query '[id, name]' --output tsv 2>/dev/null); then
    mapfile -t fields <<<"$got"
    subscription=${fields[0]} subscription_name=${fields[1]}
  else
    problem 'az is not logged in: az login, and az account set --subscription … to choose the subscription'
    return
  fi
  case $(az cloud show --query name --output tsv) in
  AzureUSGovernment) audience+=USGov ;;
  AzureChinaCloud) audience+=China ;;
  esac
}

# find_issuer sets issuer to the cluster's OIDC issuer. It returns 1 if the cluster does not exist.
find_issuer() {
  issuer=$(query aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --query "oidcIssuerProfile.issuerUrl || 'none'")
}

# find_credential reads the federated credentials of the identity. It sets
#   credential         the name of the one for this issuer and service account, or nothing
#   taken_by           what the credential named FEDERATED_CREDENTIAL is for, if it is not for these
#   other_credentials  the number of the others
# Clusters of a national cloud may issue tokens with the audience of the public cloud, so that audience is accepted too.
find_credential() {
  local got name from whom to
  credential='' taken_by='' other_credentials=0
  got=$(query identity federated-credential list --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP" \
    --query '[].[name, issuer, subject, audiences[0]]') || return 0
  while IFS=$'\t' read -r name from whom to; do
    [ -n "$name" ] || continue
    if [ "$from,$whom" = "$issuer,$subject" ] && [[ $to = "$audience" || $to = api://AzureADTokenExchange ]]; then
      credential=$name
      continue
    fi
    other_credentials=$((other_credentials + 1))
    [ "$name" != "$FEDERATED_CREDENTIAL" ] || taken_by="$whom of $from"
  done <<<"$got"
}

# use_cluster gets credentials for the cluster into a file of its own. The user's kubeconfig does not change.
use_cluster() {
  export KUBECONFIG=$work/kubeconfig
  az aks get-credentials --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --file "$KUBECONFIG" --only-show-errors >/dev/null
  if grep -q kubelogin "$KUBECONFIG"; then # the cluster requires a login by Entra ID
    command -v kubelogin >/dev/null || die "the cluster $CLUSTER requires a login by Entra ID, and kubelogin is missing: az aks install-cli, then run this again"
    kubelogin convert-kubeconfig --login azurecli --kubeconfig "$KUBECONFIG"
  fi
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' TERM INT HUP
