#!/usr/bin/env bash
# The same mwork command on every host of a TPU pod slice.
#
#   bash scripts/launch_tpu_pod.sh NAME ZONE detect --model /mnt/model --corpus en=/mnt/en.txt --corpus de=/mnt/de.txt \
#     --out /mnt/results
#
# Needs gcloud, a slice NAME in ZONE whose hosts have this package and 'jax[tpu]' installed, and the same
# paths on every host: a mounted bucket or a network file system for the model, the documents and --out. JAX finds the
# other hosts by itself; the first one writes the results. MWORK_DIR (default: ~/mwork-jax) is the folder to run in.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: bash scripts/launch_tpu_pod.sh NAME ZONE COMMAND [OPTIONS]; COMMAND is what follows 'mwork'" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
printf -v command '%q ' "$@"
there="cd ${MWORK_DIR:-~/mwork-jax} && { [ ! -d .venv ] || . .venv/bin/activate; }"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "$there && mwork ${command}--coordinator auto"
