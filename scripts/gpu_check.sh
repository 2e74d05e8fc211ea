#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of under ten minutes: scripts/gpu/check.py, which has the options
# (--help) and says what the exit code means. Needs Python 3.8 and the driver; CUDA's libraries may live in a Python
# environment. Runs in a checkout or in a folder that scripts/gpu_pack.sh made.
set -uo pipefail
cd "$(dirname "$0")/.."
if ! command -v python3 >/dev/null; then
  echo "gpu_check: python3 is absent; install it" >&2
  exit 2
fi
exec python3 scripts/gpu/check.py "$@"
