"""The verifier's command with sharded weights under several ranks, and each rank's peak of GPU memory as the last line.

    torchrun --nproc_per_node=2 experiments/fsdp_crown/run_abcrown_fsdp.py --config X.yaml

All flags are `abcrown`'s. Several ranks mean `parallel.mode: fsdp` unless a mode is set, or FSDP_DISABLE=1 is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

MODE = "--parallel_mode"


def main() -> int:
    """Run the command; returns its exit code."""
    words, ranks = sys.argv[1:], int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and words and os.environ.get("FSDP_DISABLE") != "1" and not _mode_is_set(words):
        sys.argv += [MODE, "fsdp"]
    from complete_verifier.__main__ import main as run

    code = run()
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    who = f"[Rank {os.environ['RANK']}] " if ranks > 1 else ""
    sys.stdout.write(f"{who}Peak GPU memory: {peak:.1f} MB\n")  # in one piece: the ranks share the terminal
    sys.stdout.flush()
    return code


def _mode_is_set(words: list[str]) -> bool:
    from auto_LiRPA.errors import UserError
    from complete_verifier.config import load_config

    try:
        return load_config(words).is_set("parallel.mode")
    except UserError:
        return True  # the command itself says what is wrong


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as `abcrown` does: the tensor library takes its time to come down
