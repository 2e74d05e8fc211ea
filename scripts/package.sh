#!/usr/bin/env bash
# Makes a binary that travels: build/package/csml-VERSION-linux-x86_64.tar.gz and .deb. It starts on any x86-64 with
# glibc of this machine's version or newer (build on Debian 12 for Debian 12, Ubuntu 24.04 and later), needs nothing
# installed, and takes the kernels for the processor's instruction set (csml --version says which).
# usage: scripts/package.sh [--no-install] [--cuda]
set -euo pipefail
cd "$(dirname "$0")/.."

setup=() cuda=OFF
for argument in "$@"; do
  case "$argument" in
    --no-install) setup+=(--no-install) ;;
    --cuda) cuda=ON ;;  # the CUDA backend too; cuDNN and cuBLASLt stay the machine's
    *) echo "usage: scripts/package.sh [--no-install] [--cuda]" >&2; exit 2 ;;
  esac
done
scripts/setup.sh "${setup[@]}"

cmake -S . -B build/package -G Ninja -DCMAKE_BUILD_TYPE=Release -DCSML_PACKAGE=ON -DCSML_NATIVE=OFF -DCSML_TESTS=OFF \
  -DWITH_MPI=OFF -DWITH_NCCL=OFF -DWITH_CUDA="$cuda"
cmake --build build/package -j "$(nproc)"
(cd build/package && cpack -G TGZ && cpack -G DEB -D CPACK_PACKAGING_INSTALL_PREFIX=/opt/csml)
ls -l build/package/csml-*.tar.gz build/package/csml-*.deb
