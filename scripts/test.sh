#!/usr/bin/env bash
# Installs what is missing, builds twice (optimised with warnings as errors; AddressSanitizer and
# UndefinedBehaviorSanitizer) and runs every test of both builds. Ends with ctest's summary and its exit status.
# usage: scripts/test.sh [--no-install]
set -euo pipefail
cd "$(dirname "$0")/.."

setup=()
for argument in "$@"; do
  case "$argument" in
    --no-install) setup+=(--no-install) ;;
    *) echo "usage: scripts/test.sh [--no-install]" >&2; exit 2 ;;
  esac
done
scripts/setup.sh --with-onnxruntime "${setup[@]}"

jobs=$(nproc)
for preset in ci cpu-debug; do
  cmake --preset "$preset"
  cmake --build --preset "$preset" -j "$jobs"
done

# One ctest over both build folders, so that one summary tells all.
mkdir -p build/all
printf 'subdirs("%s" "%s")\n' "$PWD/build/ci" "$PWD/build/debug" > build/all/CTestTestfile.cmake
exec ctest --test-dir build/all --output-on-failure -j "$(((jobs + 1) / 2))"
