#!/usr/bin/env bash
# Installs what building and testing csml needs, from the distribution's own packages (Debian 12, Ubuntu 24.04 or newer).
# Installs only what is missing and says so first. Safe to run again.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/setup.sh [--no-install] [--with-python] [--with-onnxruntime] [--cuda]
  --no-install   only say what is missing
  --with-python  also PyTorch, torchvision, Pillow and NumPy, which write the reference values in tests/golden
                 (not needed to build, test or use csml)
  --with-onnxruntime  also onnxruntime and NumPy from PyPI, unpacked into .deps/onnxruntime, where the test of ONNX
                 export finds them; where they are not to be had, that test is skipped
  --cuda         also CUDA's compiler and libraries, where the machine has none: NVIDIA's packages from PyPI at pinned
                 versions (scripts/cuda.txt, 1 GB), unpacked into .deps/cuda, where CMake finds them. Never the driver.
TEXT
}

packages=(build-essential cmake ninja-build ccache git python3 clang-format
  libdnnl-dev libjpeg-dev libwebp-dev libtiff-dev libgif-dev zlib1g-dev libstb-dev
  libopenmpi-dev openmpi-bin
  libfmt-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libxxhash-dev liblinear-dev doctest-dev
  dataset-fashion-mnist)
install=yes
cuda=no
onnxruntime=no
for argument in "$@"; do
  case "$argument" in
    --no-install) install=no ;;
    --with-python) packages+=(python3-torch python3-torchvision python3-pil python3-numpy) ;;
    --with-onnxruntime) onnxruntime=yes; packages+=(python3-pip) ;;
    --cuda) cuda=yes; packages+=(python3-pip) ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup: unknown argument $argument" >&2; usage >&2; exit 2 ;;
  esac
done

here=$(cd "$(dirname "$0")/.." && pwd)

# CUDA into .deps/cuda, after the packages: called wherever this script is done with them.
install_cuda() {
  local nvcc folder=$here/.deps/cuda wheel
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  if [ -x "$nvcc" ] && [ -e "$(dirname "$(dirname "$(realpath "$nvcc")")")/include/cudnn.h" ]; then
    echo "setup: CUDA and cuDNN are there: $nvcc"
  elif [ -e "$folder/complete" ]; then
    echo "setup: CUDA is there: $folder"
  elif [ "$install" = no ]; then
    echo "setup: CUDA is missing, not installed (--no-install)"
  else
    echo "setup: downloading CUDA into $folder (1 GB)"
    rm -rf "$folder"
    mkdir -p "$folder/wheels"
    python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: --dest "$folder/wheels" \
      --requirement "$here/scripts/cuda.txt"
    for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder"; done
    rm -r "$folder/wheels"
    chmod -R +x "$folder"/nvidia/cu13/bin "$folder"/nvidia/cu13/nvvm/bin
    ln -s lib "$folder/nvidia/cu13/lib64"
    ln -s libcudart.so.13 "$folder/nvidia/cu13/lib/libcudart.so"
    touch "$folder/complete"
  fi
  [ -e /dev/nvidiactl ] || echo "setup: no NVIDIA driver is loaded here: the CUDA backend builds, and runs where one is"
}
install_onnxruntime() {
  local folder=$here/.deps/onnxruntime
  if [ -d "$folder" ]; then
    echo "setup: onnxruntime is there: $folder"
  elif [ "$install" = no ]; then
    echo "setup: onnxruntime is missing, not installed (--no-install)"
  elif python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --only-binary=:all: \
    --target "$folder.part" 'onnxruntime>=1.17' numpy; then
    mv "$folder.part" "$folder"
  else
    rm -rf "$folder.part"
    echo "setup: onnxruntime could not be installed; the test of ONNX export will be skipped" >&2
  fi
}
finish() {
  [ "$onnxruntime" = no ] || install_onnxruntime
  [ "$cuda" = no ] || install_cuda
  exit 0
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "setup: this is not Debian or Ubuntu; install these packages' counterparts yourself: ${packages[*]}" >&2
  [ "$install" = no ] && exit 0
  [ "$cuda" = no ] || install_cuda
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: everything is installed"
  finish
fi
if [ "$install" = no ]; then
  echo "setup: missing packages, not installed (--no-install): ${missing[*]}"
  finish
fi

echo "setup: installing ${missing[*]}"
root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: installing needs root, and sudo is absent; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
echo "setup: done"
finish
