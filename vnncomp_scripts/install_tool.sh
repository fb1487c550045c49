#!/usr/bin/env bash
# install_tool.sh v1: installs the tool and what it needs. Wants Python 3.11 or newer and pip, and a package index.
#
# With VNNCOMP_PYTHON_PATH (a folder with a python) everything goes into that Python, else into .venv of the checkout,
# which also sees the packages of the machine. A PyTorch that is there already is kept: it fits the GPU's driver.
# Otherwise the versions that the tests run with are installed (constraints.txt).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
require_version "${1:-}"

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if [ -z "${VNNCOMP_PYTHON_PATH:-}" ] && [ ! -x "$ROOT/.venv/bin/python" ]; then
  base=
  for candidate in python3 python3.12 python3.11 python3.13; do
    if fits "$candidate"; then
      base=$candidate
      break
    fi
  done
  if [ -z "$base" ]; then
    echo "install_tool.sh: no Python 3.11 or newer is here; install one, or name its folder in VNNCOMP_PYTHON_PATH" >&2
    exit 1
  fi
  # A Python without ensurepip (Debian splits it off) still has venv and pip: pip then installs itself there.
  "$base" -m venv --system-site-packages "$ROOT/.venv" 2>/dev/null || {
    "$base" -m venv --system-site-packages --without-pip "$ROOT/.venv"
    "$base" -m pip --python "$ROOT/.venv/bin/python" install --quiet pip
  }
  PYTHON=$ROOT/.venv/bin/python
fi

if ! fits "$PYTHON"; then
  echo "install_tool.sh: $PYTHON is missing or older than Python 3.11" >&2
  exit 1
fi

constraints=()
if ! "$PYTHON" -c 'import torch' >/dev/null 2>&1; then
  constraints=(--constraint "$ROOT/constraints.txt")
fi
"$PYTHON" -m pip install --no-input --disable-pip-version-check --config-settings editable_mode=compat \
  "${constraints[@]}" --editable "$ROOT"

# The installation is good if the command starts.
"$PYTHON" "$ROOT/complete_verifier/abcrown.py" >/dev/null
echo "abcrown is installed for $PYTHON"
