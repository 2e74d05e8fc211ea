#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: tests on the card, timings, a short run on CPU and card from one seed.
# Writes a folder of logs and ends with a table; exits with 0 where everything passed, 1 where something failed, 3 where
# there is no GPU.
# usage: scripts/gpu_check.sh [--build DIR] [--device cuda:N] [--out DIR] [--quick] [--no-pytorch]
#   --build       a build folder with the CUDA backend (default build/cuda; configured and built when absent)
#   --quick       tests only
#   --no-pytorch  leave out bench/pytorch_gpu.py
set -uo pipefail
cd "$(dirname "$0")/.."

build=build/cuda device=cuda:0 out="" quick=no pytorch=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --quick) quick=yes; shift ;;
    --no-pytorch) pytorch=no; shift ;;
    *) sed -n '2,9p' "$0" >&2; exit 2 ;;
  esac
done

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo "gpu_check: no GPU (nvidia-smi is absent or lists none)" >&2
  exit 3
fi

out=${out:-runs/gpu_check-$(date -u +%Y%m%d-%H%M%S)}
mkdir -p "$out"
# Where PyTorch brought CUDA's libraries and the system has none, csml uses PyTorch's.
folders=$(python3 - 2>/dev/null <<'PY'
import glob, os, sysconfig
root = os.path.join(sysconfig.get_paths()["purelib"], "nvidia")
print(":".join(sorted({os.path.dirname(f) for pattern in ("libcudnn.so.*", "libcublasLt.so.*")
                       for f in glob.glob(os.path.join(root, "*", "lib", pattern))})))
PY
) || folders=""
export CSML_CUDA_LIBRARIES=${CSML_CUDA_LIBRARIES:-$folders}

names=() codes=() seconds=()
step() {  # step NAME COMMAND...: runs it, its output in $out/NAME.log
  local name=$1 start code
  shift
  start=$(date +%s)
  echo "gpu_check: $name: $*"
  "$@" >"$out/$name.log" 2>&1
  code=$?
  [ $code -eq 0 ] || tail -n 5 "$out/$name.log"
  names+=("$name") codes+=("$code") seconds+=($(($(date +%s) - start)))
  return $code
}

about() {
  date -u
  git log -1 --format='commit %H' 2>/dev/null
  git status --short 2>/dev/null
  nvidia-smi
  nvidia-smi -q -d CLOCK,POWER
  nvcc --version 2>/dev/null || /usr/local/cuda/bin/nvcc --version
  lscpu | head -20
  echo "CSML_CUDA_LIBRARIES=$CSML_CUDA_LIBRARIES"
}
step about about

if [ ! -x "$build/csml" ]; then
  step configure cmake --preset cuda -B "$build" -DCSML_TESTS=ON || exit 1
  step build cmake --build "$build" -j "$(nproc)" || exit 1
fi

# Tests, on the card.
for area in kernels grad replay golden precision; do
  [ -x "$build/${area}_test" ] && step "test_$area" env CSML_TEST_BACKEND="$device" "$build/${area}_test"
done
step test_plan "$build/plan_test"
step test_kernels_sync env CSML_TEST_BACKEND="$device" CSML_SYNC=1 CSML_EAGER=1 "$build/kernels_test"
step test_kernels_tf32_off_deterministic env CSML_TEST_BACKEND="$device" CSML_DETERMINISTIC=1 "$build/kernels_test"
if command -v compute-sanitizer >/dev/null; then
  step memcheck env CSML_TEST_BACKEND="$device" compute-sanitizer --error-exitcode 9 "$build/kernels_test"
  step racecheck env CSML_TEST_BACKEND="$device" compute-sanitizer --tool racecheck --error-exitcode 9 \
    "$build/kernels_test"
  step synccheck env CSML_TEST_BACKEND="$device" compute-sanitizer --tool synccheck --error-exitcode 9 \
    "$build/kernels_test"
fi

# The same short run on both, from one seed: losses and accuracy side by side.
run() {
  "$build/csml" pretrain --preset cifar10-small --data 'synthetic:shapes?limit=512' --set train.seed=1 \
    --set train.log_every_steps=1 --set train.batch_size=64 --set schedule.lr=0.03 --epochs 2 --device "$1" \
    --out "$out/run-${1%%:*}" --json
}
step pretrain_cpu run cpu
step pretrain_cuda run "$device"
compare() {
  python3 - "$out/run-cpu/metrics.jsonl" "$out/run-cuda/metrics.jsonl" <<'PY'
import json, sys
losses = [{line["step"]: line["loss"] for line in map(json.loads, open(path)) if line.get("kind") == "step"}
          for path in sys.argv[1:]]
steps = sorted(set(losses[0]) & set(losses[1]))
for step in steps:
    print(step, losses[0][step], losses[1][step], abs(losses[0][step] - losses[1][step]))
first = steps[:3]
# The first steps must agree to f32 rounding (before training amplifies it); later ones are for reading.
sys.exit(not first or any(abs(losses[0][s] - losses[1][s]) > 2e-3 * abs(losses[0][s]) for s in first))
PY
}
step compare_losses compare

if [ "$quick" = no ]; then
  step bench_ops "$build/csml" bench --op all --device "$device" --json
  for batch in 32 256; do
    step "bench_resnet50_b$batch" "$build/csml" bench --step resnet50 --batch "$batch" --device "$device" --json
    step "bench_resnet50_b${batch}_tf32" env CSML_TF32=1 "$build/csml" bench --step resnet50 --batch "$batch" \
      --device "$device" --json
    step "bench_moco_b$batch" env CSML_TF32=1 "$build/csml" bench --step moco \
      --preset moco-v2-imagenet-r50-200ep --data 'synthetic:shapes?size=224' --batch "$batch" --device "$device" --json
    step "bench_resnet50_b${batch}_eager" env CSML_TF32=1 CSML_EAGER=1 "$build/csml" bench --step resnet50 \
      --batch "$batch" --device "$device" --json
  done
  step plans env CSML_CUDA_PLANS=1 CSML_TF32=1 "$build/csml" bench --step resnet50 --batch 256 --windows 1 \
    --device "$device" --json
  [ "$pytorch" = no ] || step pytorch python3 bench/pytorch_gpu.py
fi

failed=0
{
  printf '%-40s %6s %8s\n' step exit seconds
  for i in "${!names[@]}"; do
    printf '%-40s %6s %8s\n' "${names[$i]}" "${codes[$i]}" "${seconds[$i]}"
    [ "${codes[$i]}" = 0 ] || failed=1
  done
} >"$out/summary.txt"
cat "$out/summary.txt"
echo "gpu_check: logs in $out"
exit $failed
