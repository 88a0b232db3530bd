#!/bin/bash
# The driver of the pipeline as a job, for clusters that end long processes on the login node:
#   sbatch [OPTIONS OF SBATCH] workflow/driver.sh TARGET...
# Before its time limit it interrupts Snakemake and puts itself back into the queue. See docs/your-cluster.md.
#SBATCH --job-name=possam-driver
#SBATCH --output=driver-%j.log
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -euo pipefail
# Job control: Snakemake and its commands become one process group, which can be interrupted as in a terminal.
set -m
job=$SLURM_JOB_ID
export PATH="$PWD/.venv/bin:$PATH"

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  # An attempt whose node was lost left Snakemake's lock.
  snakemake --unlock "$@" --profile slurm
fi

ending=
trap 'ending=yes; kill -INT -- "-$driver"' USR1
snakemake "$@" --profile slurm &
driver=$!
code=0
wait "$driver" || code=$?
if [ -n "$ending" ]; then
  wait "$driver" || true
  echo "time limit: Snakemake has ended, trainings go on; the next attempt of job $job finds them"
  scontrol requeue "$job" || echo "job $job cannot be put back; type the same sbatch line again"
  exit 1
fi
exit "$code"
