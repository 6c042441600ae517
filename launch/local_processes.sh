#!/usr/bin/env bash
# Run one dmd2 command as several processes of this machine: a pod in miniature.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local_processes.sh [OPTIONS] COMMAND [FLAGS...]

Runs `dmd2 COMMAND FLAGS...` from the repository's root as several processes that find each other on
this machine, as the hosts of a pod do, and creates the environment first if there is none.

  launch/local_processes.sh train-teacher --config=configs/digits.py --workdir=runs/teacher
  launch/local_processes.sh --processes=2 --devices_per_process=4 \
      train-teacher --config=configs/digits.py --workdir=runs/teacher
  launch/local_processes.sh --processes=4 --gpus_per_process=2 distill ...

options, before COMMAND:
  --processes=N            how many; default 2
  --devices_per_process=N  run on the CPU, and let each process have N virtual devices
  --gpus_per_process=N     let process 0 see the first N GPUs, process 1 the next N, ...
  --port=N                 where process 0 listens; default: a free one
  --grace=SECONDS          what the others get to end after one has failed; default 10
  --dry_run                print the commands and start nothing
  VENV=DIR                 (environment) another environment than .venv

Process 0 speaks as if it were alone, lines of the others begin with their number. Ctrl-C and
SIGTERM reach all of them, and the script waits until they have saved. When one fails, the others
are stopped. Run the same line again to resume, also with another number of processes.
TEXT
}

refuse() {
  echo "launch/local_processes.sh: $1" >&2
  usage >&2
  exit 2
}

number() { # NAME=VALUE -> VALUE
  [[ "${1#*=}" =~ ^[1-9][0-9]{0,4}$ ]] || refuse "got $1, expected a whole number from 1; try ${1%%=*}=2"
  echo "${1#*=}"
}

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000)) # below the ports that systems give to outgoing connections
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}

processes=2 devices="" gpus="" port="" grace=10 dry_run=""
line=("$0" "$@")
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --processes=*) processes="$(number "$1")" ;;
    --devices_per_process=*) devices="$(number "$1")" ;;
    --gpus_per_process=*) gpus="$(number "$1")" ;;
    --port=*) port="$(number "$1")" ;;
    --grace=*) grace="$(number "$1")" ;;
    --dry_run) dry_run=1 ;;
    *) refuse "got the option $1, which it does not know; see below" ;;
  esac
  shift
done
[[ $# -ge 1 ]] || refuse "got no COMMAND, expected one such as train-teacher; see below"
[[ -z "$devices" || -z "$gpus" ]] ||
  refuse "got --devices_per_process and --gpus_per_process, expected one of them; leave one away"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
port="${port:-$(free_port)}"
command=("$venv/bin/python" -m dmd2_jax.commands.main "$@")

# Sets `environment` to what process $1 is told.
tell() {
  environment=("DMD2_COORDINATOR=127.0.0.1:$port" "DMD2_NUM_PROCESSES=$processes"
    "DMD2_PROCESS_ID=$1")
  if [[ -n "$devices" ]]; then
    local flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    environment+=("JAX_PLATFORMS=cpu" "XLA_FLAGS=$flags")
  elif [[ -n "$gpus" ]]; then
    environment+=("CUDA_VISIBLE_DEVICES=$(seq -s, $(($1 * gpus)) $(($1 * gpus + gpus - 1)))")
  fi
}

if [[ -n "$dry_run" ]]; then
  for ((i = 0; i < processes; i++)); do
    tell "$i"
    printf '%q ' env "${environment[@]}" "${command[@]}"
    echo
  done
  exit 0
fi
make --no-print-directory --silent install VENV="$venv"

prefixed() {
  local text
  while IFS= read -r text || [[ -n "$text" ]]; do
    printf '[%s] %s\n' "$1" "$text"
  done
}

folder="$(mktemp -d)"
pids=() readers=() asked=""
forward() { # SIGNAL: to every process that still runs
  asked="$1"
  local pid
  for pid in "${pids[@]}"; do
    [[ -z "$pid" ]] || kill -s "$1" "$pid" 2>/dev/null || true
  done
}
trap 'rm -rf "$folder"' EXIT
trap 'forward INT' INT
trap 'forward TERM' TERM HUP

# A process group each: a terminal's Ctrl-C then comes from `forward` alone, once.
set -m
for ((i = 0; i < processes; i++)); do
  tell "$i"
  if [[ "$i" == 0 ]]; then
    env "${environment[@]}" "${command[@]}" </dev/null &
    pids+=("$!")
    continue
  fi
  mkfifo "$folder/$i"
  prefixed "$i" <"$folder/$i" &
  readers+=("$!")
  env "${environment[@]}" "${command[@]}" </dev/null >"$folder/$i" 2>&1 &
  pids+=("$!")
done

# Asked before all were there.
[[ -z "$asked" ]] || forward "$asked"

# Whether exit code $1 is an end that was meant, or asked for: a run that saved, and a process that
# was stopped before it had anything to save.
meant() {
  [[ "$1" == 0 || "$1" == "${DMD2_EXIT_WHEN_SAVED:-0}" ]] && return
  [[ "$asked" == INT && "$1" == 130 ]] || [[ "$asked" == TERM && "$1" == 143 ]]
}

code=0 failed="" deadline=""
running="$processes"
while [[ "$running" -gt 0 ]]; do
  for i in "${!pids[@]}"; do
    pid="${pids[i]}"
    if [[ -z "$pid" ]] || kill -0 "$pid" 2>/dev/null; then
      continue
    fi
    ended=0
    wait "$pid" 2>/dev/null || ended=$?
    pids[i]=""
    running=$((running - 1))
    [[ "$ended" == 0 || -n "$failed" ]] || code="$ended"
    if [[ -z "$failed" ]] && ! meant "$ended"; then
      failed="process $i of $processes ended with exit code $ended"
      deadline=$((SECONDS + grace))
      echo "launch/local_processes.sh: $failed; stopping the others" >&2
      forward TERM
    fi
  done
  if [[ -n "$deadline" && "$SECONDS" -ge "$deadline" ]]; then
    forward KILL # without their peer they may wait for ever; finished checkpoints stay intact
  fi
  # Interruptible, unlike a sleep in the foreground.
  sleep 0.1 &
  wait "$!" || true
done
[[ "${#readers[@]}" == 0 ]] || wait "${readers[@]}" || true
if [[ -n "$failed" ]]; then
  {
    printf 'launch/local_processes.sh: %s; see what it said above. To resume:\n ' "$failed"
    printf ' %q' "${line[@]}"
    echo
  } >&2
fi
exit "$code"
