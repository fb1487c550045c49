"""Runs a benchmark family through the command line, several instances at a time, and compares with expected.csv.

    python benchmarks/families.py --data ../shared/benchmarks --family mnist_fc --config exp_configs/mnist_fc.yaml \
        --processes 2 --threads 1 --out mnist_fc.csv

One row per instance as it finishes (resumable: rows that are there are not run again); ends with a summary and with
exit code 1 if any verdict contradicts the known one or a deadline was missed by more than 2 s.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("onnx", "vnnlib", "timeout", "expected", "verdict", "seconds", "peer_verdict", "peer_seconds", "note")
GRACE_S = 2.0


def instances(data: Path, family: str) -> list[dict[str, str]]:
    """The family's rows of expected.csv."""
    with open(data / "expected.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["family"] == family]


def run_one(row: dict[str, str], args: argparse.Namespace, path: Path) -> dict[str, str]:
    """One instance in its own process."""
    timeout = min(float(row["timeout"]), args.cap or float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.txt"
        command = [
            sys.executable, str(ROOT / "complete_verifier" / "abcrown.py"), "--config", args.config, "--quiet",
            "--onnx_path", str(path / row["onnx"]), "--vnnlib_path", str(path / row["vnnlib"]),
            "--timeout", str(timeout), "--results_file", str(result),
            "--set", f"parallel.threads={args.threads}", *args.extra,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        seconds = time.monotonic() - began
        verdict = result.read_text().split("\n", 1)[0] if result.exists() else f"error {done.returncode}"
    note = ""
    if {verdict, row["expected"]} == {"sat", "unsat"}:
        note = "WRONG"
    elif seconds > timeout + GRACE_S:
        note = "late"
    if done.returncode != 0:
        note += " " + done.stderr.strip()[-300:]
    return {
        "onnx": row["onnx"], "vnnlib": row["vnnlib"], "timeout": f"{timeout:g}", "expected": row["expected"],
        "verdict": verdict, "seconds": f"{seconds:.2f}", "peer_verdict": row["abcrown_result"],
        "peer_seconds": row["abcrown_seconds"], "note": note,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "benchmarks"))
    parser.add_argument("--family", required=True)
    parser.add_argument("--folder", help="the family's files, if not DATA/FAMILY")
    parser.add_argument("--config", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cap", type=float, help="seconds an instance gets at most")
    parser.add_argument("--only", help="run only instances whose name contains this")
    parser.add_argument("--stop_after", type=float, default=float("inf"), help="start no instance after this")
    parser.add_argument("--out", required=True)
    parser.add_argument("extra", nargs="*", help="further arguments of the command, after --")
    args = parser.parse_args()
    args.config = str(Path(args.config).resolve())
    path = Path(args.folder or Path(args.data) / args.family).resolve()
    out = Path(args.out)
    known: set[tuple[str, str]] = set()
    if out.exists():
        with open(out, encoding="utf-8") as file:
            known = {(r["onnx"], r["vnnlib"]) for r in csv.DictReader(file)}
    todo = [r for r in instances(Path(args.data), args.family) if (r["onnx"], r["vnnlib"]) not in known]
    todo = [r for r in todo if not args.only or args.only in r["onnx"] + r["vnnlib"]]
    began = time.monotonic()
    with open(out, "a", encoding="utf-8", newline="") as file, ThreadPoolExecutor(args.processes) as pool:
        writer = csv.DictWriter(file, FIELDS)
        if not known:
            writer.writeheader()

        def work(row: dict[str, str]) -> None:
            if time.monotonic() - began > args.stop_after:
                return
            found = run_one(row, args, path)
            writer.writerow(found)
            file.flush()
            print(*(found[k] for k in FIELDS), flush=True)  # noqa: T201 (a script's own output)

        list(pool.map(work, todo))
    with open(out, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    solved = [r for r in rows if r["verdict"] in ("sat", "unsat")]
    decidable = [r for r in rows if r["expected"] in ("sat", "unsat")]
    bad = [r for r in rows if r["note"].startswith(("WRONG", "late"))]
    print(f"{args.family}: {len(solved)} of {len(decidable)} known solved, {len(bad)} wrong or late")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
