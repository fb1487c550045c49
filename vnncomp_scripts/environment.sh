# Sourced by the other scripts: where the checkout is, which Python runs the tool, and the variables that it runs with.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The organisers' choice first, then what install_tool.sh made, then whatever is there.
if [ -n "${VNNCOMP_PYTHON_PATH:-}" ]; then
  PYTHON=$VNNCOMP_PYTHON_PATH/python
elif [ -x "$ROOT/.venv/bin/python" ]; then
  PYTHON=$ROOT/.venv/bin/python
else
  PYTHON=python3
fi

export PYTHONPATH=$ROOT
# Bounding sets its own number of threads; other libraries must not add theirs to it.
export OMP_NUM_THREADS=1

# The first argument of every script is the version of the interface.
require_version() {
  if [ "${1:-}" != v1 ]; then
    echo "$(basename "$0"): version '${1:-}': only v1 is known; the first argument is v1" >&2
    exit 1
  fi
}

# require_arguments WANTED GIVEN USAGE
require_arguments() {
  if [ "$2" -ne "$1" ]; then
    echo "usage: $(basename "$0") $3" >&2
    exit 1
  fi
}
