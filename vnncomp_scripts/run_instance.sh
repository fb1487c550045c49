#!/usr/bin/env bash
# run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT: decides one instance and writes RESULTS. Ends with 0.
#
# A run that fails and leaves no verdict is followed by a second one with cheaper bounds, in the time that is left.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
require_version "${1:-}"
require_arguments 6 $# "v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT"
results=$5
export ABCROWN_HARNESS=$ROOT  # how prepare_instance.sh knows our processes again
SECONDS=0                     # bash counts from here

child=
stopped=
# A signal to this script is meant for the tool, which writes what it knows and ends.
forward() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap forward TERM INT

# run ARGUMENTS...: vnncomp_main.py on the instance; its exit code is in `code`.
run() {
  "$PYTHON" "$ROOT/vnncomp_scripts/vnncomp_main.py" "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do  # a signal ended the wait, not the child
    wait "$child"
    code=$?
  done
  child=
}

verdict_missing() {
  local first=
  [ ! -e "$results" ] || read -r first <"$results"
  [ -z "$first" ]
}

rm -f "$results"
run "${@:2}"
if [ "$code" -ne 0 ] && [ -z "$stopped" ] && verdict_missing; then
  echo "run_instance.sh: exit code $code and no verdict; once more with plain CROWN bounds" >&2
  run "${@:2}" --TRY_CROWN --SPENT "$SECONDS"
fi
exit 0
