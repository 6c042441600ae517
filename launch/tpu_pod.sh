#!/usr/bin/env bash
# Run one dmd2 command on every host of a TPU VM or pod slice that exists already.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh [--dry_run] TPU_NAME ZONE COMMAND [FLAGS...]

Copies this checkout to every host of the slice, installs it there and runs
`dmd2 COMMAND FLAGS...` on all of them with `gcloud compute tpus tpu-vm ssh --worker=all`.

  launch/tpu_pod.sh my-v5e us-west4-a distill --config=configs/imagenet64.py \
      --workdir=/mnt/shared/runs/imagenet64 ...
  PROJECT=my-project launch/tpu_pod.sh ...

--dry_run before TPU_NAME prints the gcloud commands. The work folder must be one that all hosts
see (a mounted bucket or file share). Run the same line again to resume.
TEXT
}

show=""
if [[ "${1:-}" == --dry_run ]]; then
  show=1
  shift
fi
if [[ $# -lt 3 ]]; then
  usage
  [[ "${1:-}" == -h || "${1:-}" == --help || $# -eq 0 ]] && exit 0
  echo "launch/tpu_pod.sh: got $# arguments, expected TPU_NAME ZONE COMMAND [FLAGS...]" >&2
  exit 2
fi
name="$1"
zone="$2"
shift 2

cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=(--zone="$zone" --worker=all)
if [[ -n "${PROJECT:-}" ]]; then
  where+=(--project="$PROJECT")
fi
run() {
  if [[ -n "$show" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

archive="${TMPDIR:-/tmp}/dmd2_jax.tar.gz"
remote="mkdir -p dmd2_jax && tar -xzf dmd2_jax.tar.gz -C dmd2_jax && cd dmd2_jax"
remote+=" && (test -d .venv || python3 -m venv .venv) && .venv/bin/pip install -q -e '.[tpu]'"
remote+=" && DMD2_DISTRIBUTED=1 .venv/bin/python -m dmd2_jax.main$(printf ' %q' "$@")"
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:dmd2_jax.tar.gz" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$remote"
