#!/usr/bin/env bash
# Ask for a TPU slice as a queued resource, and wait until it is there.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/queued_resource.sh [OPTIONS] NAME ZONE TYPE

Asks for a TPU of the accelerator TYPE (v5litepod-64, v5p-128, v6e-256, ...) as the queued resource
NAME, waits until it is ACTIVE and says how to run on it. A resource of that name that is there is
used as it is, so the same line waits again.

  launch/queued_resource.sh my-v5p us-east5-a v5p-128
  launch/queued_resource.sh --spot --project=my-project my-v5e us-west4-a v5litepod-64

options, before NAME:
  --spot              spot capacity: cheaper, and may be taken back; at most the work since the last
                      checkpoint is lost, and the same lines, this one first, go on
  --runtime=VERSION   the TPU software; default: the one for TYPE
  --project=PROJECT   of Google Cloud; default: the one that gcloud is set to
  --every=SECONDS     between looks; default 60
  --gcloud=FLAG       a further flag for `create`, such as --gcloud=--reserved; repeatable
  --dry_run           print the commands and ask for nothing

Which slice fits a recipe, for how long and at how many chip-hours: `dmd2 plan --help`. The number
in TYPE counts chips for v5litepod and v6e, and TensorCores, two a chip, for v4 and v5p.
TEXT
}

refuse() {
  echo "launch/queued_resource.sh: $1" >&2
  usage >&2
  exit 2
}

runtime="" every=60 dry_run="" where=() create_flags=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --spot) create_flags+=(--spot) ;;
    --runtime=?*) runtime="${1#*=}" ;;
    --project=?*) where+=("$1") ;;
    --every=?*)
      every="${1#*=}"
      [[ "$every" =~ ^[0-9]+$ ]] || refuse "got $1, expected seconds; try --every=60"
      ;;
    --gcloud=-?*) create_flags+=("${1#*=}") ;;
    --dry_run) dry_run=1 ;;
    *) refuse "got the option $1, which it does not know; see below" ;;
  esac
  shift
done
[[ $# == 3 ]] || refuse "got $# words, expected NAME ZONE TYPE"
name="$1" zone="$2" type="$3"
case "$type" in
  v[234]-*) default=tpu-ubuntu2204-base ;;
  v5litepod-*) default=v2-alpha-tpuv5-lite ;;
  v5p-*) default=v2-alpha-tpuv5 ;;
  v6e-*) default=v2-alpha-tpuv6e ;;
  tpu7x*) refuse "got TYPE=$type, which is lent through GKE only; see launch/gke.sh" ;;
  *) refuse "got TYPE=$type, expected an accelerator type such as v5litepod-16, v5p-128 or v6e-64" ;;
esac
where=("--zone=$zone" ${where[@]+"${where[@]}"})

resources=(gcloud compute tpus queued-resources)
create=("${resources[@]}" create "$name" "${where[@]}" "--node-id=$name"
  "--accelerator-type=$type" "--runtime-version=${runtime:-$default}"
  ${create_flags[@]+"${create_flags[@]}"})
state=("${resources[@]}" describe "$name" "${where[@]}" "--format=value(state.state)")
delete=("${resources[@]}" delete "$name" "${where[@]}" --force --quiet)
next=("$(dirname "$0")/tpu_pod.sh" "${where[@]:1}" "$name" "$zone")

shown() {
  printf '%q ' "$@"
  echo
}
if [[ -n "$dry_run" ]]; then
  shown "${create[@]}"
  shown "${state[@]}"
  shown "${next[@]}" COMMAND FLAGS...
  exit 0
fi

"${state[@]}" >/dev/null 2>&1 || "${create[@]}"
while true; do
  now="$("${state[@]}")"
  case "$now" in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      echo "launch/queued_resource.sh: $name is $now, expected ACTIVE. Delete it and ask again:" >&2
      shown "${delete[@]}" >&2
      exit 1
      ;;
  esac
  echo "$(date +%T) $name is ${now:-unknown}; the next look is in $every seconds" >&2
  sleep "$every"
done
echo "$name is ACTIVE. Run on it, and give it back:"
shown "${next[@]}" COMMAND FLAGS...
shown "${delete[@]}"
