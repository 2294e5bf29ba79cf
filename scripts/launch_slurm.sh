#!/usr/bin/env bash
# The same mwork command on every node of a Slurm allocation, one process for each GPU.
#
#   sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-task 1 --cpus-per-task 8 scripts/launch_slurm.sh \
#     evaluate --model /shared/model --table 2 --neurons /shared/results --out /shared/tables
#
# JAX reads the nodes from Slurm; the first process writes the results. The model, the documents and --out must have the
# same path on every node. Submitted again, the same command goes on where it stopped, also with other --nodes.
#SBATCH --job-name=mwork
#SBATCH --output=mwork-%j.log
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: sbatch [...] scripts/launch_slurm.sh COMMAND [OPTIONS]; COMMAND is what follows 'mwork'" >&2
  exit 2
fi
cd "${MWORK_DIR:-${SLURM_SUBMIT_DIR:-.}}"
if [ -z "${VIRTUAL_ENV:-}" ] && [ -d .venv ]; then
  . .venv/bin/activate
fi
exec srun --kill-on-bad-exit=1 mwork "$@" --coordinator auto
