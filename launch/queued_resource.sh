#!/usr/bin/env bash
# Ask for a TPU slice as a queued resource, wait until it is there, then run one dmd2 command.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/queued_resource.sh [--dry_run] NAME ZONE TYPE COMMAND [FLAGS...]

Creates the queued resource NAME of accelerator TYPE (v5litepod-64, v5p-128, v6e-256, ...), waits for
it and hands over to launch/tpu_pod.sh. A resource of that name that exists is used as it is.

  launch/queued_resource.sh my-v5p us-east5-a v5p-128 distill --config=configs/imagenet64.py ...
  RUNTIME=v2-alpha-tpuv5 SPOT=1 PROJECT=my-project launch/queued_resource.sh ...

RUNTIME is the TPU software version (default tpu-ubuntu2204-base); SPOT=1 asks for spot capacity:
a pre-empted run resumes by the same line. --dry_run before NAME prints the gcloud commands. Which
TYPE fits a recipe, and for how long: `dmd2 plan --help`.
TEXT
}

show=""
if [[ "${1:-}" == --dry_run ]]; then
  show=--dry_run
  shift
fi
if [[ $# -lt 4 ]]; then
  usage
  [[ "${1:-}" == -h || "${1:-}" == --help || $# -eq 0 ]] && exit 0
  echo "launch/queued_resource.sh: got $# arguments, expected NAME ZONE TYPE COMMAND [FLAGS...]" >&2
  exit 2
fi
name="$1"
zone="$2"
type="$3"
shift 3

cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=(--zone="$zone")
if [[ -n "${PROJECT:-}" ]]; then
  where+=(--project="$PROJECT")
fi
create=(gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name"
  --accelerator-type="$type" --runtime-version="${RUNTIME:-tpu-ubuntu2204-base}")
if [[ -n "${SPOT:-}" ]]; then
  create+=(--spot)
fi
state=(gcloud compute tpus queued-resources describe "$name" "${where[@]}"
  --format='value(state.state)')

if [[ -n "$show" ]]; then
  printf '%q ' "${create[@]}"
  echo
  printf '%q ' "${state[@]}"
  echo "  # every minute, until ACTIVE"
else
  "${state[@]}" >/dev/null 2>&1 || "${create[@]}"
  until [[ "$("${state[@]}")" == ACTIVE ]]; do
    now="$("${state[@]}")"
    if [[ "$now" == FAILED || "$now" == SUSPENDED ]]; then
      echo "launch/queued_resource.sh: $name is $now, expected ACTIVE; delete it and try again" >&2
      exit 1
    fi
    echo "$(date +%T) $name is ${now:-unknown}, waiting" >&2
    sleep 60
  done
fi
exec launch/tpu_pod.sh ${show:+"$show"} "$name" "$zone" "$@"
