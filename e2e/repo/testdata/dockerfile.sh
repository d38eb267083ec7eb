# shellcheck shell=bash
# Runs the instructions of a build stage as shell functions. ROOT takes the place of the image's root, and CHECKOUT is the build
# context. The test makes each RUN a subshell. COPY copies whole modules, or files of them, that .dockerignore allows.
set -exo pipefail
FROM() { :; }
WORKDIR() { mkdir "$ROOT$1" && cd "$ROOT$1"; }
ENV() { export "${@?}"; }
ARG() {
  local name=${1%%=*}
  [ -n "${!name:-}" ] || export "${1?}"
}
COPY() {
  local sources=("${@:1:$#-1}") source
  grep -qx '\*' "$CHECKOUT/.dockerignore"
  for source in "${sources[@]}"; do
    [[ ${!#} == "./${source%%/*}"* ]]
    grep -qx "!${source%%/*}" "$CHECKOUT/.dockerignore"
  done
  mapfile -t excluded < <(sed -n 's|^\*\*/|--exclude=|p' "$CHECKOUT/.dockerignore")
  tar -C "$CHECKOUT" -c "${excluded[@]}" "${sources[@]}" | tar -x
}
