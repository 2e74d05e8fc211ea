#!/usr/bin/env bash
# Installs what is missing, builds csml and runs its tests. Ends with ctest's summary and its exit status.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: scripts/test.sh [--all] [--no-install]
  (nothing)     the optimised build, warnings as errors, and all of its tests but those labelled slow
  --all         what continuous integration runs: the slow tests too, and the build with AddressSanitizer and
                UndefinedBehaviorSanitizer with its tests
  --no-install  install nothing
TEXT
}

setup=()
presets=(ci)
folders=("$PWD/build/ci")
chosen=(-LE slow)
for argument in "$@"; do
  case "$argument" in
    --all) presets+=(cpu-debug); folders+=("$PWD/build/debug"); chosen=() ;;
    --no-install) setup+=(--no-install) ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test: unknown argument $argument" >&2; usage >&2; exit 2 ;;
  esac
done
scripts/setup.sh --with-onnxruntime "${setup[@]}"

jobs=$(nproc)
for preset in "${presets[@]}"; do
  cmake --preset "$preset"
  cmake --build --preset "$preset" -j "$jobs"
done

# One ctest over the build folders, so that one summary tells all. A test uses two threads that wait without spinning:
# as many tests as processors keep these busy.
mkdir -p build/all
{ printf 'subdirs('; printf '"%s" ' "${folders[@]}"; echo ')'; } > build/all/CTestTestfile.cmake
exec ctest --test-dir build/all --output-on-failure -j "$jobs" "${chosen[@]}"
