#!/usr/bin/env bash
# prepare_instance.sh v1 CATEGORY ONNX VNNLIB: what may be done before an instance's clock starts. Always ends with 0.
#
# Ends processes that earlier runs of this checkout left behind (no others: see complete_verifier/vnncomp/prepare.py),
# simplifies the networks of the cgan categories in place, and reads network and property once, which fills caches.
# With ABCROWN_TEST_RUN=1 no process is touched and nothing is read in advance.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
require_version "${1:-}"
require_arguments 4 $# "v1 CATEGORY ONNX VNNLIB"

"$PYTHON" -m complete_verifier.vnncomp.prepare "$2" "$3" "$ROOT"
if [ "${ABCROWN_TEST_RUN:-}" != 1 ]; then
  results=$(mktemp)
  ABCROWN_HARNESS=$ROOT "$PYTHON" "$ROOT/vnncomp_scripts/vnncomp_main.py" "$2" "$3" "$4" "$results" 1 --PREPARE
  rm -f "$results"
fi
exit 0
