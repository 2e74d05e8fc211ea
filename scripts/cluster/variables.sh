#!/usr/bin/env bash
# Pretraining without MPI, started as torchrun starts its workers: one process for each card, told by RANK, WORLD_SIZE,
# LOCAL_RANK and LOCAL_WORLD_SIZE. CUDA devices only (the processes talk over NCCL); they find each other through a file
# on a file system that all machines see.
#
#   scripts/cluster/variables.sh --preset moco-v2-imagenet-r50-200ep --data folder:/data/imagenet --out runs/a   # 8 cards
#   NODES=4 NODE=0 CSML_RENDEZVOUS=/shared/meet-17 scripts/cluster/variables.sh …            # on each machine, NODE=0 … 3
#
# Everything goes to `csml pretrain`. When one process fails, the others are ended; exit code: that of the first that
# failed, 75: all stopped after a checkpoint.
# Environment: CSML (the binary; default csml), PER_NODE (processes here; default: the cards of nvidia-smi), NODES (1),
# NODE (0), CSML_RENDEZVOUS (a new file for every start; default on one machine: in the temporary folder), GRACE (30:
# seconds from the polite end of the others to the hard one).
set -uo pipefail

nodes=${NODES:-1} node=${NODE:-0}
per_node=${PER_NODE:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')}
if [ "$per_node" -lt 1 ]; then
  echo "variables: no card here (nvidia-smi -L lists none); PER_NODE=N says how many processes" >&2
  exit 2
fi
if [ "$nodes" -gt 1 ]; then
  : "${CSML_RENDEZVOUS:?several machines meet through a new file that all of them see}"
else
  CSML_RENDEZVOUS=${CSML_RENDEZVOUS:-$(mktemp -u "${TMPDIR:-/tmp}/csml-rendezvous-XXXXXX")}
fi
export CSML_RENDEZVOUS
export WORLD_SIZE=$((nodes * per_node)) LOCAL_WORLD_SIZE=$per_node
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > per_node ? $(nproc) / per_node : 1))}

workers=()
for ((local = 0; local < per_node; ++local)); do
  RANK=$((node * per_node + local)) LOCAL_RANK=$local "${CSML:-csml}" pretrain "$@" &
  workers+=($!)
done
trap 'kill -USR1 "${workers[@]}" 2>/dev/null' TERM USR1 INT

code=0
left=$per_node
while [ "$left" -gt 0 ]; do
  wait -n "${workers[@]}"
  status=$?
  alive=()
  for worker in "${workers[@]}"; do
    if kill -0 "$worker" 2>/dev/null; then alive+=("$worker"); fi
  done
  if [ "${#alive[@]}" -eq "$left" ]; then continue; fi  # a signal ended the wait, no process
  left=${#alive[@]}
  workers=("${alive[@]}")
  if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$status
    # Stopped processes leave together; after a failure the others wait in vain, inside calls that hear no signal.
    if [ "$status" -ne 75 ] && [ "$left" -gt 0 ]; then
      kill -TERM "${workers[@]}" 2>/dev/null
      (sleep "${GRACE:-30}" && kill -KILL "${workers[@]}") 2>/dev/null &
      reaper=$!
    fi
  fi
done
if [ -n "${reaper:-}" ]; then kill "$reaper" 2>/dev/null; fi
exit "$code"
