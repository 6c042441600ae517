#!/usr/bin/env bash
# Run one dmd2 command on every host of a TPU VM or pod slice that exists already.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh [OPTIONS] NAME ZONE COMMAND [FLAGS...]
       launch/tpu_pod.sh [OPTIONS] --stop NAME ZONE

Copies this checkout (uncommitted changes too) to every host of the TPU called NAME, installs it
there, and runs `dmd2 COMMAND FLAGS...` on all hosts with
`gcloud compute tpus tpu-vm ssh --worker=all`.

  launch/tpu_pod.sh my-v5e us-west4-a distill --config=configs/imagenet64.py \
      --workdir=/mnt/shared/runs/imagenet64 --config.teacher.weights=/mnt/shared/edm.pkl
  launch/tpu_pod.sh --dry_run --detach my-v5e us-west4-a distill ...
  launch/tpu_pod.sh --stop my-v5e us-west4-a

options, before NAME:
  --project=PROJECT   of Google Cloud; default: the one that gcloud is set to
  --setup=COMMANDS    run first on every host, for example to mount the shared disk, or
                      --setup='sudo apt-get -qq install -y python3.11-venv' --python=python3.11
  --python=PYTHON     that makes the hosts' environment, 3.11 or newer; default python3
  --no_install        the hosts have this checkout and its environment from the last time
  --detach            return at once: a lost connection does not end the run. It speaks into
                      dmd2_jax/dmd2.log on every host
  --stop              ask the detached run to save and end
  --gcloud=FLAG       a further flag for gcloud, such as --gcloud=--tunnel-through-iap; repeatable
  --dry_run           print the commands and start nothing

The work folder must be one that all hosts see: a file share or a bucket, gs://... Run the same line
again to resume. A slice that does not exist yet: launch/queued_resource.sh.
TEXT
}

refuse() {
  echo "launch/tpu_pod.sh: $1" >&2
  usage >&2
  exit 2
}

setup="" python=python3 install=1 detach="" stop="" dry_run="" flags=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --project=?*) flags+=("$1") ;;
    --setup=?*) setup="${1#*=}" ;;
    --python=?*) python="${1#*=}" ;;
    --no_install) install="" ;;
    --detach) detach=1 ;;
    --stop) stop=1 ;;
    --gcloud=-?*) flags+=("${1#*=}") ;;
    --dry_run) dry_run=1 ;;
    *) refuse "got the option $1, which it does not know; see below" ;;
  esac
  shift
done
if [[ -n "$stop" ]]; then
  [[ $# == 2 ]] || refuse "got $# words, expected --stop NAME ZONE"
else
  [[ $# -ge 3 ]] || refuse "got $# words, expected NAME ZONE COMMAND [FLAGS...]"
fi
name="$1" zone="$2"
shift 2

run() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all \
    ${flags[@]+"${flags[@]}"} "--command=$1"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "$stop" ]]; then
  # shellcheck disable=SC2016 # the host's shell reads the file
  on_all_hosts 'kill -TERM "$(cat dmd2_jax/dmd2.pid)"'
  exit 0
fi

remote="set -e; ${setup:+$setup; }"
if [[ -n "$install" ]]; then
  archive=build/dmd2_jax.tar.gz
  run mkdir -p build
  tracked="git ls-files -z --cached --others --exclude-standard"
  run bash -c "$tracked | tar --create --gzip --null --files-from=- --file=$archive"
  run gcloud compute tpus tpu-vm scp "$archive" "$name:dmd2_jax.tar.gz" "--zone=$zone" \
    --worker=all ${flags[@]+"${flags[@]}"}
  remote+="mkdir -p dmd2_jax; tar -xzf dmd2_jax.tar.gz -C dmd2_jax; cd dmd2_jax; "
  remote+="test -x .venv/bin/pip || $(printf '%q' "$python") -m venv .venv; "
  remote+=".venv/bin/python -m pip install --quiet --editable '.[tpu]'; "
else
  remote+="cd dmd2_jax; "
fi
command="$(printf '%q ' env DMD2_DISTRIBUTED=1 .venv/bin/python -m dmd2_jax.commands.main "$@")"
if [[ -n "$detach" ]]; then
  remote+="nohup $command>dmd2.log 2>&1 </dev/null & echo \$! >dmd2.pid"
else
  remote+="exec ${command% }"
fi
on_all_hosts "$remote"
