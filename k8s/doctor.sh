#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'HELP'
doctor.sh runs "signer doctor" in the newest pod of the deployment's last revision,
ready or not. During a rollout, kubectl exec deployment/cats-api may choose an old
pod, which still has the old settings.

If the signer is not running, doctor.sh prints the reason and the last lines of its
log.

  doctor.sh [KUBECTL OPTION...]     such as --context staging, --namespace cats

The exit code is 0 if the doctor reports no failure, otherwise 1.
HELP
}

case ${1:-} in
--help | -h) usage && exit ;;
esac

options=(--namespace cats-api "$@")
kube() { kubectl "${options[@]}" "$@"; }

selector=app.kubernetes.io/name=cats-api
# By revision number: after "rollout undo", the last revision is an older ReplicaSet.
newest=$(kube get replicasets --selector "$selector" --output \
  'jsonpath={range .items[*]}{.metadata.annotations.deployment\.kubernetes\.io/revision} {.metadata.labels.pod-template-hash} {.metadata.name}{"\n"}{end}' |
  sort -n | tail -n 1)
read -r _ hash set <<<"$newest" || true
if [ -z "${set:-}" ]; then
  echo 'This namespace has no ReplicaSet of cats-api. Apply an overlay first (docs/deploy.md).' >&2
  exit 1
fi
pod=$(kube get pods --selector "$selector,pod-template-hash=$hash" --sort-by .metadata.creationTimestamp --output name | tail -n 1)
if [ -z "$pod" ]; then
  echo "The ReplicaSet $set has no pod:" >&2
  kube get replicaset "$set" --output 'jsonpath={range .status.conditions[*]}{.reason}: {.message}{"\n"}{end}' >&2
  exit 1
fi

running() {
  [ -n "$(kube get "$pod" --output 'jsonpath={.status.initContainerStatuses[?(@.name=="signer")].state.running.startedAt}')" ]
}

if running; then
  status=0
  kube exec "$pod" --container signer -- /signer doctor || status=$?
  if [ $status = 0 ] || running; then
    exit $status
  fi
fi

echo "The signer of $pod is not running." >&2
kube get "$pod" --output 'jsonpath={range .status.conditions[?(@.type=="PodScheduled")]}{.reason} {.message}{"\n"}{end}{range .status.initContainerStatuses[?(@.name=="signer")]}{.state.waiting.reason} {.state.waiting.message}{"\n"}{range .state.terminated}exit code {.exitCode} ({.reason}){"\n"}{end}{range .lastState.terminated}exit code {.exitCode} ({.reason}){"\n"}{end}{end}' |
  sed '/^ *$/d' >&2
echo 'The last lines of its log:' >&2
# The termination message holds the end of the log if the log itself is gone.
kube logs "$pod" --container signer --tail 20 >&2 ||
  kube get "$pod" --output 'jsonpath={range .status.initContainerStatuses[?(@.name=="signer")]}{.state.terminated.message}{.lastState.terminated.message}{"\n"}{end}' >&2
exit 1
