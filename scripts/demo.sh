#!/usr/bin/env bash
# Installs what is missing, builds, pretrains on 10,000 images of Fashion-MNIST, compares k-NN accuracy before and after,
# and writes a report. Run again, it goes on where it stopped.
# usage: scripts/demo.sh [--no-install] [--out DIR]     (default runs/fashion-mnist-demo)
set -euo pipefail
cd "$(dirname "$0")/.."

setup=()
out=runs/fashion-mnist-demo
while [ $# -gt 0 ]; do
  case "$1" in
    --no-install) setup+=(--no-install); shift ;;
    --out) out=${2:?demo: --out needs a folder}; shift 2 ;;
    *) echo "usage: scripts/demo.sh [--no-install] [--out DIR]" >&2; exit 2 ;;
  esac
done
data=/usr/share/datasets/fashion-mnist

scripts/setup.sh "${setup[@]}"
if [ ! -d "$data" ]; then
  echo "demo: $data is absent; install the package dataset-fashion-mnist (scripts/setup.sh does)" >&2
  exit 1
fi
cmake --preset cpu
cmake --build --preset cpu --target csml -j "$(nproc)"

csml=build/cpu/csml
train="idx:$data?limit=10000"
test="idx:$data?split=test&limit=2000"
"$csml" pretrain --preset fashion-mnist-cpu --data "$train" --test-data "$test" --out "$out"

# The same question to three representations: how many of 2,000 unseen images do their 20 nearest among a few labelled
# ones classify correctly? And when every one of them stands three pixels off?
knn() {  # labelled images, pixels moved, then what they are seen by
  local labelled=$1 moved=$2
  shift 2
  "$csml" knn --train "idx:$data?limit=$labelled" --test "$test" --k 20 --temperature 0.07 --shift "$moved" --json \
    --quiet "$@" | sed -n 's/.*"top1":\([0-9.]*\).*/\1/p'
}
echo
echo "k-NN accuracy (k = 20, T = 0.07) on 2,000 test images, percent"
printf '%-24s %13s %14s %30s\n' "seen by" "1,000 labels" "10,000 labels" "10,000 labels, moved by 3 px"
row() {
  local name=$1
  shift
  printf '%-24s %13s %14s %30s\n' "$name" "$(knn 1000 0 "$@")" "$(knn 10000 0 "$@")" "$(knn 10000 3 "$@")"
}
row "raw pixels" --features pixels --size 28
row "the untrained encoder" --checkpoint "$out" --encoder init
row "the pretrained encoder" --checkpoint "$out"
cat <<'TEXT'

Pretraining without labels lifts the encoder by several points in minutes. Raw pixels are hard to beat while every garment
stands at the same place; moved by three pixels (last column) they fall apart, and so does the untrained encoder. The
pretrained one has learned that a shirt three pixels further is the same shirt. On natural images (CIFAR-10, README) it
is ahead of pixels outright.
TEXT

# The report's result table lists every knn*.json of the run folder.
"$csml" knn --checkpoint "$out" --train "$train" --test "$test" --k 20 --temperature 0.07 --json --quiet > "$out/knn.json"
"$csml" report "$out"
