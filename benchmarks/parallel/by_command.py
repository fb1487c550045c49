"""An experiment's configuration run by the command itself, as a user runs it, several times; one figure of all runs.

    python benchmarks/parallel/by_command.py --exp 6 --config exp_configs/parallel/exp6_bab_512.yaml --mode fsdp \
        --ranks 2 --repeats 3 --head net=256x6 --out figures.jsonl -- --set bab.max_iterations=2

The command starts its own ranks (`abcrown --nproc P`), each time in new processes. One run before the others is not
counted (`--warmup 0`: none). What stands behind `--` goes to the command. Time: of the phases after loading.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.parallel import measuring  # noqa: E402
from benchmarks.parallel.starting import gpus  # noqa: E402

Statistics = dict[str, Any]


def main() -> None:
    """Run and tell."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp", type=int, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--mode", choices=measuring.MODES, default="single")
    parser.add_argument("--domains", choices=("shard", "replicate"), default="replicate")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds of one run")
    parser.add_argument("--head", nargs="*", default=[], metavar="KEY=VALUE", help="goes into the figure, as text")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(words[:at])
    command = _command(options, words[at + 1 :])
    runs = [_run(command, options.timeout) for _ in range(options.warmup + options.repeats)][options.warmup :]
    told = {
        "what": "by_command",
        "exp": options.exp,
        **dict(pair.split("=", 1) for pair in options.head),
        "mode": options.mode,
        "domains_axis": options.domains,
        "world": options.ranks,
        **figures(runs),
        "date": time.strftime("%Y-%m-%d"),
        "command": "python " + " ".join(command[1:]),
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
    print(json.dumps({key: value for key, value in told.items() if key not in ("ranks", "command")}))


def _command(options: argparse.Namespace, more: list[str]) -> list[str]:
    section = measuring.settings_of(options.mode)
    chosen = [f"parallel.mode={section.mode}", f"parallel.rows={section.rows}", f"parallel.domains={options.domains}"]
    if section.tp_intermediate != "exact":
        chosen.append(f"parallel.tp_intermediate={section.tp_intermediate}")
    if measuring.cpu_threads() != "auto":
        chosen.append(f"parallel.threads={measuring.cpu_threads()}")
    if measuring.backend(options.ranks) != "auto":
        chosen.append(f"parallel.backend={measuring.backend(options.ranks)}")
    ranks = ["--nproc", str(options.ranks)] if options.ranks > 1 else []
    device = ["--device", "cuda" if gpus() else "cpu"]
    sets = [word for one in chosen for word in ("--set", one)]
    start = [sys.executable, "complete_verifier/abcrown.py", "--config", str(options.config)]
    return [*start, *ranks, *device, *sets, *more]


def _run(command: list[str], timeout_s: float) -> Statistics:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "statistics.json")
        done = subprocess.run(
            [*command, "--quiet", "--stats_file", str(path)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout[-3000:]}")
        statistics: Statistics = json.loads(path.read_text())
        return statistics


def figures(runs: list[Statistics]) -> Statistics:
    """Of all runs: the middle one by time, and every run's time, verdict and digest of its bounds."""
    times = [1e3 * sum(seconds for name, seconds in run["phases"].items() if name != "load") for run in runs]
    middle = sorted(range(len(runs)), key=lambda i: times[i])[len(runs) // 2]
    run, ms = runs[middle], times[middle]
    ranks = run["ranks"]
    busy = max(sum(one["seconds"] for one in rank["collectives"].values()) for rank in ranks)
    memory = {"peak_mib": "peak_allocated_mib", "reserved_mib": "peak_reserved_mib", "process_mib": "process_mib",
              "resident_mib": "resident_mib", "weight_mib": "weight_mib"}  # fmt: skip
    on_gpu = ranks[0]["device"] != "cpu"
    import torch

    return {
        "verdict": run["verdict"],
        "status": run["status"],
        "stopped_by": run["stopped_by"],
        "verdicts": sorted({one["verdict"] for one in runs}),
        "digests": sorted({digest(one) for one in runs}),
        "lb_sum": sum(run.get("bounds", {}).get("lower", [])),
        "rounds": run["bab"]["rounds"],
        "domains": run["bab"]["domains_visited"],
        "domains_per_s": run["bab"]["domains_per_s"],
        "worst_bound": run["bab"]["worst_bound"],
        "ms": round(ms, 1),
        "all_ms": [round(one, 1) for one in times],
        "phases": run["phases"],
        "wall_s": run["wall_s"],
        "timeout_s": run["timeout_s"],
        **{name: max(rank[key] for rank in ranks) for name, key in memory.items() if on_gpu or name == "weight_mib"},
        "traffic": ranks[0]["collectives"],
        "traffic_mib": round(sum(one["mib"] for one in ranks[0]["collectives"].values()), 1),
        "traffic_share": round(1e3 * busy / ms, 3) if ms else 0.0,
        "parallel": run["parallel"],
        "ranks": ranks,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "gpus": gpus(),
        "torch": torch.__version__,
    }


def digest(statistics: Statistics) -> str:
    """The first 16 letters of the SHA-256 of the bounds and counts that the statistics have."""
    facts = [statistics.get("bounds"), statistics["verdict"], statistics["bab"]["rounds"],
             statistics["bab"]["domains_visited"], statistics["bab"]["worst_bound"]]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
