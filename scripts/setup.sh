#!/usr/bin/env bash
# Installs what building and testing csml needs, from the distribution's own packages (Debian 12, Ubuntu 24.04 or newer).
# Installs only what is missing and says so first. Safe to run again.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/setup.sh [--no-install] [--with-python] [--cuda]
  --no-install   only say what is missing
  --with-python  also PyTorch, torchvision, Pillow and NumPy, which write the reference values in tests/golden
                 (not needed to build, test or use csml)
  --cuda         not part of this release
TEXT
}

packages=(build-essential cmake ninja-build ccache git python3 clang-format
  libdnnl-dev libjpeg-dev zlib1g-dev libstb-dev
  libfmt-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libxxhash-dev liblinear-dev doctest-dev
  dataset-fashion-mnist)
install=yes
for argument in "$@"; do
  case "$argument" in
    --no-install) install=no ;;
    --with-python) packages+=(python3-torch python3-torchvision python3-pil python3-numpy) ;;
    --cuda) echo "setup: the CUDA backend is not part of this release; run without --cuda" >&2; exit 1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup: unknown argument $argument" >&2; usage >&2; exit 2 ;;
  esac
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "setup: this is not Debian or Ubuntu; install these packages' counterparts yourself: ${packages[*]}" >&2
  [ "$install" = no ] && exit 0
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: everything is installed"
  exit 0
fi
if [ "$install" = no ]; then
  echo "setup: missing packages, not installed (--no-install): ${missing[*]}"
  exit 0
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
