#!/usr/bin/env bash
# Run one dmd2 command as several processes of this machine: a pod in miniature.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local_processes.sh [--dry_run] NUM COMMAND [FLAGS...]

Starts NUM processes of `dmd2 COMMAND FLAGS...` that find each other on this machine, as the hosts
of a pod do. On a CPU each gets DEVICES virtual devices (default 1).

  launch/local_processes.sh 2 distill --config=configs/digits.py --workdir=runs/student ...
  DEVICES=4 launch/local_processes.sh 2 ...     two processes with four devices each
  PORT=9911 VENV=/data/venv launch/local_processes.sh 2 ...

--dry_run before NUM prints what would be run. If one process fails, the others are stopped; run the
same line again (or with another NUM) to resume.
TEXT
}

show=""
if [[ "${1:-}" == --dry_run ]]; then
  show=1
  shift
fi
case "${1:-}" in
  "" | -h | --help)
    usage
    exit 0
    ;;
esac
if ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local_processes.sh: got NUM=$1, expected how many processes; try 2" >&2
  exit 2
fi
number="$1"
shift

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
port="${PORT:-9911}"
flags="${XLA_FLAGS:-}"
if [[ "${JAX_PLATFORMS:-}" == cpu ]]; then
  flags="$flags --xla_force_host_platform_device_count=${DEVICES:-1}"
fi
command=("$venv/bin/python" -m dmd2_jax.main "$@")
if [[ -z "$show" ]]; then
  make --no-print-directory --silent install VENV="$venv"
fi

pids=()
for ((i = 0; i < number; i++)); do
  settings=("DMD2_COORDINATOR=127.0.0.1:$port" "DMD2_NUM_PROCESSES=$number" "DMD2_PROCESS_ID=$i")
  if [[ -n "$show" ]]; then
    printf '%q ' env "XLA_FLAGS=$flags" "${settings[@]}" "${command[@]}"
    echo
    continue
  fi
  env "XLA_FLAGS=$flags" "${settings[@]}" "${command[@]}" &
  pids+=("$!")
done
if [[ -n "$show" ]]; then
  exit 0
fi

stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM
code=0
for ((i = 0; i < number; i++)); do
  # The first that ends with an error ends all.
  if ! wait -n "${pids[@]}"; then
    code=1
    stop
    break
  fi
done
wait || true
if [[ "$code" != 0 ]]; then
  echo "launch/local_processes.sh: a process failed; run the same line again to resume" >&2
fi
exit "$code"
