#!/usr/bin/env bash
# Run one dmd2 command on this machine: all of its local devices, one process.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh [--dry_run] COMMAND [FLAGS...]

Runs `dmd2 COMMAND FLAGS...` from the repository's root, on every accelerator of this machine
(or on its CPU), and creates the environment first if there is none.

  launch/local.sh train-teacher --config=configs/digits.py --workdir=runs/teacher
  launch/local.sh distill --config=configs/digits.py --workdir=runs/student --dry_run
  VENV=/data/venv launch/local.sh ...        another environment than .venv

--dry_run before COMMAND prints what would be run; after it, dmd2 checks config, data, weights and
disk. Hyperparameters live in configs/, never here. Run the same line again to resume.
TEXT
}

show=""
if [[ "${1:-}" == --dry_run ]]; then
  show=1
  shift
fi
case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  "" | -*)
    echo "launch/local.sh: got '${1:-}', expected a COMMAND such as demo; see below" >&2
    usage >&2
    exit 2
    ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
command=("$venv/bin/python" -m dmd2_jax.commands.main "$@")
if [[ -n "$show" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
make --no-print-directory --silent install VENV="$venv"
exec "${command[@]}"
