"""One VNN-COMP instance: picks the category's configuration and runs the tool with it.

    vnncomp_main.py CATEGORY ONNX_FILE VNNLIB_FILE RESULTS_FILE TIMEOUT [--DEBUG] [--PREPARE] [--NOPGD] [--TRY_CROWN]

The table of categories is complete_verifier/vnncomp/categories.py. Exit code: 0 for a verdict (timeout too), 1 for an
unknown category, otherwise the tool's own exit code modulo 255, plus 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

_STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from complete_verifier.vnncomp.categories import UnknownCategoryError  # noqa: E402
from complete_verifier.vnncomp.command import Task, run_task  # noqa: E402


def main() -> int:
    arguments = _arguments()
    task = Task(
        category=arguments.category,
        network=arguments.onnx_file,
        specification=arguments.vnnlib_file,
        results=arguments.results_file,
        timeout_s=max(arguments.timeout - arguments.SPENT, 1.0),
        debug=arguments.DEBUG,
        prepare=arguments.PREPARE,
        no_pgd=arguments.NOPGD,
        try_crown=arguments.TRY_CROWN,
    )
    try:
        return run_task(task, ROOT, _STARTED)
    except UnknownCategoryError as error:
        sys.exit(f"vnncomp_main.py: {error}")  # to standard error; the exit code is 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category")
    parser.add_argument("onnx_file", type=Path)
    parser.add_argument("vnnlib_file", type=Path)
    parser.add_argument("results_file", type=Path)
    parser.add_argument("timeout", type=float, help="seconds")
    parser.add_argument("--DEBUG", action="store_true", help="check a saved counterexample once more")
    parser.add_argument("--PREPARE", action="store_true", help="read network and property only")
    parser.add_argument("--NOPGD", action="store_true", help="no attack")
    parser.add_argument("--TRY_CROWN", action="store_true", help="plain CROWN bounds, no output constraints")
    parser.add_argument("--SPENT", type=float, default=0.0, help="seconds of TIMEOUT that an earlier try has used")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
