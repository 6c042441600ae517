#!/usr/bin/env bash
# Submit one dmd2 command to SLURM: one process a node, all of its GPUs.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/slurm.sh [--dry_run] NODES GPUS_PER_NODE COMMAND [FLAGS...]

Submits `dmd2 COMMAND FLAGS...` with sbatch. SLURM sends SIGTERM ten minutes before the time limit,
the run saves, and the job puts itself back into the queue until it is done.

  launch/slurm.sh 2 8 distill --config=configs/imagenet64.py --workdir=/shared/runs/imagenet64 ...
  SBATCH_ARGS="--partition=gpu --time=24:00:00 --account=x" VENV=/shared/venv launch/slurm.sh ...

--dry_run before NODES prints the job script. The environment (VENV, default .venv) must have
".[gpu]" installed and lie, like the work folder, where all nodes see it.
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
  echo "launch/slurm.sh: got $# arguments, expected NODES GPUS_PER_NODE COMMAND [FLAGS...]" >&2
  exit 2
fi
nodes="$1"
gpus="$2"
shift 2

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
job() {
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=dmd2
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
cd $(printf '%q' "$PWD")
export DMD2_DISTRIBUTED=1 DMD2_EXIT_WHEN_SAVED=85
srun --kill-on-bad-exit=1 $(printf '%q ' "$venv/bin/python" -m dmd2_jax.main "$@")
code=\$?
[ "\$code" = 85 ] && exec scontrol requeue "\$SLURM_JOB_ID"
exit "\$code"
JOB
}
if [[ -n "$show" ]]; then
  job "$@"
  exit 0
fi
read -r -a options <<<"${SBATCH_ARGS:-}"
job "$@" | sbatch "${options[@]}"
