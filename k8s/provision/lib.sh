# shellcheck shell=bash
# What provision.sh and teardown.sh have in common: settings, and how commands are
# run and told. Sourced by both, and nothing by itself.
# shellcheck disable=SC2034 # used by those who source this

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
overlay=${OVERLAY:-$here/../overlays/aks}
namespace=cats-api
subject=system:serviceaccount:cats-api:cats-api-sa
audience=api://AzureADTokenExchange # of the public cloud; programs sets that of others
tag=managed-by=cats-api
delegator='Storage Blob Delegator'
contributor='Storage Blob Data Contributor'
container=cats # as the signer's STORAGE_CONTAINER

RESOURCE_GROUP=${RESOURCE_GROUP:-cats-api}
LOCATION=${LOCATION:-westeurope}
STORAGE_ACCOUNT=${STORAGE_ACCOUNT:-}
IDENTITY=${IDENTITY:-cats-api}
CLUSTER=${CLUSTER:-cats-api}
CLUSTER_RESOURCE_GROUP=${CLUSTER_RESOURCE_GROUP:-$RESOURCE_GROUP}
FEDERATED_CREDENTIAL=${FEDERATED_CREDENTIAL:-$CLUSTER}

dry_run=false
faults=()
kubectl_version=broken

fault() { faults+=("$*"); }

# stop_on_faults ends the script when there are faults, and tells them all.
stop_on_faults() {
  [ ${#faults[@]} -gt 0 ] || return 0
  printf 'Nothing was changed. To be put right first:\n' >&2
  printf '  * %s\n' "${faults[@]}" >&2
  exit 1
}

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# say tells of a thing what became of it.
say() { printf '%-58s %s\n' "$1" "$2"; }

# change runs a command that changes something, or only shows it. What it prints is
# of no interest; what it complains of is.
change() {
  if $dry_run; then
    printf '    %s\n' "$(printf '%q ' "$@")"
    return 0
  fi
  "$@" >/dev/null
}

# make runs a change and tells how it went: make WHAT OUTCOME COMMAND...
make() {
  local what=$1 outcome=$2 began=$SECONDS
  shift 2
  if $dry_run; then
    say "$what" "would be $outcome by"
    change "$@"
    return 0
  fi
  printf '%-58s ' "$what"
  "$@" >/dev/null || die "failed: $(printf '%q ' "$@")"
  printf '%s (%d s)\n' "$outcome" $((SECONDS - began))
}

# look runs a command of az that reads, and prints one value on each line. It
# returns 1 when there is no such thing; any other error ends the script.
look() {
  local status=0
  az "$@" --output tsv --only-show-errors 2>"$work/complaint" || status=$?
  case $status in
  0) return 0 ;;
  3) return 1 ;; # what az says when a resource is not there
  esac
  printf 'az %s: %s\n' "$(printf '%q ' "$@")" "$(cat "$work/complaint")" >&2
  kill -TERM $$ # also from within $(…)
  exit 1
}

# at_least A B: version A is B or newer.
at_least() { [[ $1 =~ ^[0-9] ]] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# programs checks what both scripts run, and who is logged in.
programs() {
  local version missing=false
  if ! command -v az >/dev/null; then
    fault 'the Azure CLI (az) is missing: https://aka.ms/install-azure-cli'
    missing=true
  else
    version=$(az version --query '"azure-cli"' --output tsv) || version=broken
    at_least "$version" 2.60.0 || fault "the Azure CLI is $version: 2.60.0 or newer is needed (az upgrade)"
  fi
  if ! command -v kubectl >/dev/null; then
    fault 'kubectl is missing: az aks install-cli'
  else
    version=$(kubectl version --client --output json | sed -n 's/.*"gitVersion": *"v\([0-9.]*\).*/\1/p') || version=
    kubectl_version=${version:-broken}
    at_least "$kubectl_version" 1.27 || fault "kubectl is $kubectl_version: 1.27 or newer is needed, for its kustomize"
  fi
  $missing && return
  local got
  local -a fields
  if got=$(az account show --query '[id, name]' --output tsv 2>/dev/null); then
    mapfile -t fields <<<"$got"
    subscription=${fields[0]} subscription_name=${fields[1]}
  else
    fault 'nobody is logged in: az login, and az account set --subscription … to choose'
    return
  fi
  case $(az cloud show --query name --output tsv) in
  AzureUSGovernment) audience+=USGov ;;
  AzureChinaCloud) audience+=China ;;
  esac
}

# find_issuer looks for the cluster's OIDC issuer, and returns 1 without a cluster.
find_issuer() {
  issuer=$(look aks show --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" --query "oidcIssuerProfile.issuerUrl || 'none'")
}

# find_credential looks at the federated credentials of the identity: the one, under
# whatever name, that is for the issuer and the service account; for whom the one is
# that has the name but is not for them; how many others there are. A national cloud
# takes the public cloud's audience, too, if the cluster's tokens have it.
find_credential() {
  local got name from whom to
  credential='' taken_by='' other_credentials=0
  got=$(look identity federated-credential list --identity-name "$IDENTITY" --resource-group "$RESOURCE_GROUP" \
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

# credentials gets those of the cluster into a file of its own: the user's
# kubeconfig stays as it is.
credentials() {
  export KUBECONFIG=$work/kubeconfig
  az aks get-credentials --name "$CLUSTER" --resource-group "$CLUSTER_RESOURCE_GROUP" \
    --file "$KUBECONFIG" --only-show-errors >/dev/null
  if grep -q kubelogin "$KUBECONFIG"; then # a cluster that people log in to by Entra ID
    command -v kubelogin >/dev/null || die "the cluster $CLUSTER wants a login by Entra ID, and kubelogin is missing: az aks install-cli, then run this again"
    kubelogin convert-kubeconfig --login azurecli --kubeconfig "$KUBECONFIG"
  fi
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' TERM INT HUP
