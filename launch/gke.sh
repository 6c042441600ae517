#!/usr/bin/env bash
# Run one dmd2 command on a TPU slice of a GKE cluster: a JobSet, applied with kubectl.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke.sh [OPTIONS] NAME IMAGE TOPOLOGY CLAIM COMMAND [FLAGS...]

Writes the manifest of a JobSet (as XPK clusters run them; elsewhere install the JobSet operator)
called NAME with a pod for every host of the TPU slice TOPOLOGY, named as `dmd2 plan` names it, and
applies it. CLAIM is a PersistentVolumeClaim (ReadWriteMany) that all pods see as /shared.

  launch/gke.sh dmd2 us-docker.pkg.dev/my-project/images/dmd2 v5e:4x8 shared-files \
      distill --config=configs/imagenet64.py --workdir=/shared/runs/imagenet64 \
      --config.teacher.weights=/shared/edm.pkl
  launch/gke.sh --dry_run --spot dmd2 IMAGE v5p:2x2x2 shared-files distill ...

options, before NAME:
  --spot                 on spot nodes
  --namespace=NAMESPACE  default: kubectl's
  --service_account=NAME of the pods; default: default
  --queue=NAME           of Kueue, where the cluster has it
  --chips_per_host=N     where the node pool is another than the usual one
  --max_restarts=N       how often a pre-empted or failed run goes on; default 100
  --dry_run              print the manifest and apply nothing

IMAGE: this checkout as its WORKDIR, with the extra [tpu]; launch/README.md has a Dockerfile. A pod
that is taken back saves, and all pods start again from there. `kubectl logs --follow
--selector=jobset.sigs.k8s.io/jobset-name=NAME` shows the run, `kubectl delete jobset NAME` ends it.
TEXT
}

refuse() {
  echo "launch/gke.sh: $1" >&2
  usage >&2
  exit 2
}

number() { # NAME=VALUE -> VALUE
  [[ "${1#*=}" =~ ^[1-9][0-9]{0,4}$ ]] || refuse "got $1, expected a whole number from 1; try ${1%%=*}=4"
  echo "${1#*=}"
}

spot="" account=default queue="" chips="" restarts=100 dry_run="" flags=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --spot) spot=1 ;;
    --namespace=?*) flags+=("$1") ;;
    --service_account=?*) account="${1#*=}" ;;
    --queue=?*) queue="${1#*=}" ;;
    --chips_per_host=*) chips="$(number "$1")" ;;
    --max_restarts=*) restarts="$(number "$1")" ;;
    --dry_run) dry_run=1 ;;
    *) refuse "got the option $1, which it does not know; see below" ;;
  esac
  shift
done
[[ $# -ge 5 ]] || refuse "got $# words, expected NAME IMAGE TOPOLOGY CLAIM COMMAND [FLAGS...]"
name="$1" image="$2" topology="$3" claim="$4"
shift 4

shape="${topology#*:}" usual=4
case "$topology" in
  v5e:*x*x* | v6e:*x*x*) accelerator="" ;;
  v5e:*x*) accelerator=tpu-v5-lite-podslice ;;
  v6e:*x*) accelerator=tpu-v6e-slice ;;
  v4:*x*x*) accelerator=tpu-v4-podslice ;;
  v5p:*x*x*) accelerator=tpu-v5p-slice ;;
  tpu7x:*x*x*) accelerator=tpu7x ;;
  *) accelerator="" ;;
esac
if [[ -z "$accelerator" ]] || ! [[ "$shape" =~ ^[1-9][0-9]?(x[1-9][0-9]?){1,2}$ ]]; then
  refuse "got TOPOLOGY=$topology, expected CHIP:SHAPE such as v5e:4x8, v6e:4x4 or v5p:2x2x2"
fi
total=$((${shape//x/*}))
# The small slices of v5e and v6e are one machine; all else is machines of four chips.
case "$topology" in
  v[56]e:1x1 | v[56]e:2x4) usual="$total" ;;
esac
chips="${chips:-$usual}"
[[ $((total % chips)) == 0 ]] ||
  refuse "got $total chips with $chips a host, expected a whole number of hosts; try $usual"
hosts=$((total / chips))

quoted() { # JSON strings are YAML strings.
  local text="${1//\\/\\\\}"
  text="${text//$'\n'/\\n}"
  text="${text//$'\t'/\\t}"
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quoted "$name")
YAML
  [[ -z "$queue" ]] || cat <<YAML
  labels:
    kueue.x-k8s.io/queue-name: $(quoted "$queue")
YAML
  cat <<YAML
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
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
              serviceAccountName: $(quoted "$account")
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $shape
YAML
  [[ -z "$spot" ]] || cat <<YAML
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
YAML
  cat <<YAML
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: $(quoted "$claim")
              containers:
                - name: dmd2
                  image: $(quoted "$image")
                  volumeMounts:
                    - name: shared
                      mountPath: /shared
                  env:
                    - name: DMD2_DISTRIBUTED
                      value: "1"
                    # A pod that was stopped has not succeeded: the job would be done.
                    - name: DMD2_EXIT_WHEN_SAVED
                      value: "75"
                  resources:
                    requests:
                      google.com/tpu: $chips
                    limits:
                      google.com/tpu: $chips
                  command: ["python", "-m", "dmd2_jax.commands.main"]
                  args:
YAML
  local word
  for word in "$@"; do
    printf '                    - %s\n' "$(quoted "$word")"
  done
}
if [[ -n "$dry_run" ]]; then
  manifest "$@"
else
  manifest "$@" | kubectl apply ${flags[@]+"${flags[@]}"} -f -
fi
