#!/usr/bin/env bash
# Submit one dmd2 command to SLURM's GPU nodes.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/slurm.sh [OPTIONS] NODES GPUS_PER_NODE COMMAND [FLAGS...]

Submits `dmd2 COMMAND FLAGS...` with sbatch as one run on NODES nodes with GPUS_PER_NODE GPUs each.
Before the time limit the run saves and ends, and the job goes back into the queue, until the run
has finished. A pre-empted job saves too, and SLURM requeues it.

  launch/slurm.sh 2 8 distill --config=configs/imagenet64.py --workdir=/shared/runs/imagenet64 \
      --config.teacher.weights=/shared/edm.pkl
  launch/slurm.sh --sbatch=--partition=gpu --sbatch=--time=24:00:00 2 8 distill ...

options, before NODES:
  --task_per=node     (default) one process a node, with all of its GPUs
  --task_per=gpu      one process a GPU
  --save_within=SECONDS  how long before the time limit the run is told to save; default 600
  --sbatch=FLAG       a further flag for sbatch: --sbatch=--account=x; repeatable
  --dry_run           print the sbatch command and the job script, submit nothing
  VENV=DIR            (environment) another environment than .venv

The environment must have ".[gpu]" installed and lie, like this checkout and the work folder, where
all nodes see it. `scancel --signal=TERM JOB` saves and requeues, `scancel JOB` ends for good.
TEXT
}

refuse() {
  echo "launch/slurm.sh: $1" >&2
  usage >&2
  exit 2
}

task_per=node save_within=600 dry_run="" flags=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --task_per=node | --task_per=gpu) task_per="${1#*=}" ;;
    --save_within=?*)
      save_within="${1#*=}"
      [[ "$save_within" =~ ^[0-9]+$ ]] || refuse "got $1, expected seconds; try --save_within=600"
      ;;
    --sbatch=-?*) flags+=("${1#*=}") ;;
    --dry_run) dry_run=1 ;;
    *) refuse "got the option $1, which it does not know; see below" ;;
  esac
  shift
done
[[ $# -ge 3 ]] || refuse "got $# words, expected NODES GPUS_PER_NODE COMMAND [FLAGS...]"
nodes="$1" gpus="$2"
[[ "$nodes" =~ ^[1-9][0-9]*$ ]] || refuse "got NODES=$nodes, expected a number from 1; try 2"
[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || refuse "got GPUS_PER_NODE=$gpus, expected a number from 1; try 8"
shift 2

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# In a SLURM job JAX takes one GPU a process, the one with the process's number on its node, unless
# it is told.
if [[ "$task_per" == node ]]; then
  tasks=1 local_devices="JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))"
else
  tasks="$gpus" local_devices=""
fi
saved=75 # EX_TEMPFAIL of sysexits.h: what the run exits with when it was stopped and has saved
command=(env DMD2_DISTRIBUTED=1 "DMD2_EXIT_WHEN_SAVED=$saved" ${local_devices:+"$local_devices"}
  "${VENV:-.venv}/bin/python" -m dmd2_jax.commands.main "$@")

job() {
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=dmd2
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --gpus-per-node=$gpus
#SBATCH --signal=TERM@$save_within
#SBATCH --requeue
#SBATCH --open-mode=append
cd $(printf '%q' "$PWD") || exit 1
# scancel and pre-emption tell this shell too: then it is SLURM's to end or requeue the job. The
# warning before the time limit reaches the run alone.
told=""
trap 'told=1' TERM
srun --kill-on-bad-exit=0 $(printf '%q ' "${command[@]}")
code=\$?
if [ "\$code" = $saved ] && [ -z "\$told" ]; then
  echo "saved; back into the queue"
  exec scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
JOB
}
submit=(sbatch ${flags[@]+"${flags[@]}"})
if [[ -n "$dry_run" ]]; then
  printf '# %s <<JOB\n' "$(printf '%q ' "${submit[@]}")"
  job
else
  job | "${submit[@]}"
fi
