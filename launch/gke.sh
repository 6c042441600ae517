#!/usr/bin/env bash
# Run one dmd2 command on a TPU slice of a GKE cluster: a JobSet, applied with kubectl.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke.sh [--dry_run] NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS_PER_HOST COMMAND [FLAGS...]

Writes the manifest of a JobSet (the operator of XPK clusters) with HOSTS pods of CHIPS_PER_HOST
chips each and applies it.

  launch/gke.sh dmd2 eu-docker.pkg.dev/me/dmd2 tpu-v5-lite-podslice 4x8 8 4 \
      distill --config=configs/imagenet64.py --workdir=/gcs/runs/imagenet64 ...
  SERVICE_ACCOUNT=trainer launch/gke.sh ...

IMAGE must hold this package with the extra [tpu]; the work folder must be one that all pods see.
Evicted pods start again and resume. --dry_run before NAME prints the manifest.
TEXT
}

show=""
if [[ "${1:-}" == --dry_run ]]; then
  show=1
  shift
fi
if [[ $# -lt 7 ]]; then
  usage
  [[ "${1:-}" == -h || "${1:-}" == --help || $# -eq 0 ]] && exit 0
  echo "launch/gke.sh: got $# arguments, expected at least 7: see --help" >&2
  exit 2
fi
name="$1" image="$2" accelerator="$3" topology="$4" hosts="$5" chips="$6"
shift 6

# JSON strings are YAML strings.
quoted() {
  local text="${1//\\/\\\\}"
  printf '"%s"' "${text//\"/\\\"}"
}
manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: 100
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 600
              serviceAccountName: ${SERVICE_ACCOUNT:-default}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: dmd2
                  image: $image
                  env:
                    - name: DMD2_DISTRIBUTED
                      value: "1"
                  command: ["python", "-m", "dmd2_jax.main"]
                  args:
YAML
  for word in "$@"; do
    printf '                    - %s\n' "$(quoted "$word")"
  done
  cat <<YAML
                  resources:
                    limits:
                      google.com/tpu: $chips
YAML
}
if [[ -n "$show" ]]; then
  manifest "$@"
else
  manifest "$@" | kubectl apply -f -
fi
