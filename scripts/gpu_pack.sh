#!/usr/bin/env bash
# Puts what scripts/gpu_check.sh needs on another machine into one folder: the stripped program and the test programs that
# run on a device with their shared libraries (build.tar.xz), golden values, PyTorch's side, scripts, the commit. There:
#   OUT/scripts/gpu_check.sh --build OUT
# usage: scripts/gpu_pack.sh BUILD OUT [--any-processor]
#   BUILD            a build with the CUDA backend, configured with -DCSML_NATIVE=OFF. It must be of the CUDA major version
#                    whose libraries are there, and that machine's glibc must not be older than this one's.
#   --any-processor  take a build that was made for this machine's processor (-march=native)
set -euo pipefail
usage() { sed -n '2,9p' "$0" >&2; exit 2; }

most_bytes=$((64 << 20))
build="" out="" native=no
for argument in "$@"; do
  case "$argument" in
    --any-processor) native=yes ;;
    -*) usage ;;
    *) if [ -z "$build" ]; then build=$argument; elif [ -z "$out" ]; then out=$argument; else usage; fi ;;
  esac
done
[ -n "$out" ] || usage
root=$(cd "$(dirname "$0")/.." && pwd)

fail() { echo "gpu_pack: $1" >&2; exit 1; }
[ -x "$build/csml" ] || fail "$build has no csml; build it first"
[ ! -e "$out" ] || fail "$out is there already; name a new folder"
if [ $native = no ] && grep -q '^CSML_NATIVE:BOOL=ON' "$build/CMakeCache.txt" 2>/dev/null; then
  fail "$build is for this machine's processor; configure with -DCSML_NATIVE=OFF, or say --any-processor"
fi

programs=(csml)
for program in "$build"/*_test; do
  if grep -q CSML_TEST_BACKEND "$program" 2>/dev/null; then programs+=("$(basename "$program")"); fi
done
[ ${#programs[@]} -gt 1 ] || fail "$build has no test program that runs on a device; build with -DCSML_TESTS=ON"
if [ -x "$build/plan_test" ]; then programs+=(plan_test); fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/lib"
for program in "${programs[@]}"; do
  strip -o "$work/$program" "$build/$program" 2>/dev/null || cp "$build/$program" "$work/$program"
done
# Their shared libraries, but for those of the C library and the driver, which are the other machine's own.
for library in $(cd "$build" && ldd "${programs[@]}" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u); do
  case "$(basename "$library")" in
    ld-linux* | libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libresolv.so* | libutil.so* | libcuda.so*) ;;
    *) cp -L "$library" "$work/lib/" ;;
  esac
done

mkdir -p "$out/tests/golden" "$out/bench"
# The programs hold the same kernels and libraries: a dictionary that reaches back over several keeps one copy.
tar -C "$work" -cf - . | xz --lzma2=preset=3,dict=192MiB >"$out/build.tar.xz"
cp "$root"/tests/golden/*.safetensors "$out/tests/golden/"
cp -r "$root/bench/pytorch" "$out/bench/"
mkdir "$out/scripts"
cp -r "$root/scripts/gpu" "$root/scripts/gpu_check.sh" "$out/scripts/"
find "$out" -name __pycache__ -prune -exec rm -r {} +
{
  git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown
} | tr -d '\n' >"$out/COMMIT"
if [ -n "$(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null)" ]; then printf -- -modified >>"$out/COMMIT"; fi

bytes=$(du -sb "$out" | cut -f1)
echo "gpu_pack: $out: $((bytes >> 20)) MiB, ${programs[*]}"
[ "$bytes" -le $most_bytes ] || fail "$out is larger than $((most_bytes >> 20)) MiB; build for one card (-DCSML_CUDA_ARCHITECTURES=90a-real)"
