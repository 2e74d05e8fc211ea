#!/usr/bin/env bash
# Pretraining under Slurm. The same job goes on by itself after a time limit or a preemption: two minutes before the end
# Slurm signals the processes, csml finishes the step, writes a checkpoint and exits with 75, and the job is requeued
# with the same command.
#
#   sbatch --nodes=2 scripts/cluster/slurm.sh --preset moco-v2-imagenet-r50-200ep --data folder:/data/imagenet --out runs/a
#
# Everything behind the script's name goes to `csml pretrain`. sbatch's own options, before it, win over the lines below.
# Environment: CSML (the binary; default csml), CSML_MPI (srun's plugin; default pmix, as `srun --mpi=list` names it;
# none: the processes meet through a file beside the run folder, which takes CUDA devices and NCCL),
# CSML_RETRIES (3: how often a job that lost a process is started again).
#
#SBATCH --job-name=csml
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=csml-%j.log
set -uo pipefail

# Arrives here too when the job is preempted; srun passes it on, and the processes' exit code says what to do.
trap ':' TERM USR1

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
mpi=${CSML_MPI:-pmix}
if [ "$mpi" = none ]; then
  # A new file for every start of the job.
  export CSML_RENDEZVOUS=${CSML_RENDEZVOUS:-$PWD/.csml-rendezvous-${SLURM_JOB_ID}-${SLURM_RESTART_COUNT:-0}}
fi

# --wait ends what hangs on after a process is gone; csml's processes leave together.
srun --mpi="$mpi" --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${CSML:-csml}" pretrain "$@"
code=$?

requeue() {
  echo "slurm: $1: requeueing job ${SLURM_JOB_ID}"
  if scontrol requeue "${SLURM_JOB_ID}"; then exit 0; fi
  echo "slurm: scontrol requeue failed; submit the same command again to go on" >&2
  exit "$code"
}

case "$code" in
  0) echo "slurm: done" ;;
  75) requeue "stopped after a checkpoint" ;;
  70 | 137)  # another process was lost (csml's watchdog), or one was killed: memory, hardware
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${CSML_RETRIES:-3}" ]; then requeue "a process was lost (exit code $code)"; fi
    echo "slurm: a process was lost again (exit code $code); giving up after ${SLURM_RESTART_COUNT} restarts" >&2 ;;
  *) echo "slurm: failed with exit code $code" >&2 ;;
esac
exit "$code"
