#!/usr/bin/env bash
# Pretraining by mpirun, on this machine or on those of a host file. A SIGTERM to this script stops the run well: mpirun
# itself would kill its processes a second after one, so it is sent SIGUSR1, which it passes on.
#
#   scripts/cluster/mpirun.sh 8 --preset moco-v2-imagenet-r50-200ep --data folder:/data/imagenet --out runs/a
#   HOSTFILE=hosts PER_NODE=8 scripts/cluster/mpirun.sh 32 --preset … --out /shared/runs/a
#
# The first argument is the number of processes, the rest goes to `csml pretrain`. Exit code: csml's; 75: stopped after a
# checkpoint, the same command goes on.
# Environment: CSML (the binary; default csml), HOSTFILE, PER_NODE (processes on each machine; with HOSTFILE),
# CORES (of each process; default: all cores of the machine shared out), MPIRUN_OPTIONS (more options, split at blanks).
set -uo pipefail

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,12p' "$0" >&2
  exit 2
fi
processes=$1
shift

options=(-np "$processes" --bind-to none)
if [ -n "${HOSTFILE:-}" ]; then
  options+=(--hostfile "$HOSTFILE" --map-by "ppr:${PER_NODE:?PER_NODE is needed with HOSTFILE}:node")
fi
if [ "$(id -u)" = 0 ]; then options+=(--allow-run-as-root); fi
here=${PER_NODE:-$processes}
cores=${CORES:-$(($(nproc) > here ? $(nproc) / here : 1))}
if [ "$here" -gt "$(nproc)" ]; then options+=(--oversubscribe); fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}
# mpirun passes the environment on to its own machine only; -x to the others.
options+=(-x OMP_NUM_THREADS)
for name in $(compgen -e | grep -E '^(CSML_|NCCL_|OMP_WAIT_POLICY$|LD_LIBRARY_PATH$)'); do options+=(-x "$name"); done
read -r -a more <<<"${MPIRUN_OPTIONS:-}"

mpirun "${options[@]}" "${more[@]}" "${CSML:-csml}" pretrain "$@" &
job=$!
trap 'kill -USR1 "$job" 2>/dev/null' TERM USR1
wait "$job"
code=$?
while kill -0 "$job" 2>/dev/null; do  # a trapped signal ends the wait, not mpirun
  wait "$job"
  code=$?
done
exit "$code"
