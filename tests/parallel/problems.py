"""Files of two instances for tests of commands: one that bounds prove, one that nothing settles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.end_to_end.runs import hopeless, mlp_model, property_text, write
from tests.nets import dense_layers

COMMON = (
    "--device", "cpu", "--parallel_threads", "1", "--parallel_mode", "single", "--parallel_rows", "shard",
    "--pgd_order", "skip",
)  # fmt: skip


@dataclass(frozen=True)
class Problems:
    """Both, and a folder for what runs write."""

    folder: Path
    easy: tuple[str, str]
    searched: tuple[str, str]  # some ten rounds of branch and bound
    endless: tuple[str, str]
    violated: tuple[str, str]  # by every input

    @classmethod
    def make(cls, folder: Path) -> Problems:
        for name in ("easy", "searched", "endless", "violated", "out"):
            (folder / name).mkdir()
        easy = _below(folder / "easy", [3, 8, 8, 2], -99.0)
        searched = _below(folder / "searched", [3, 16, 16, 2], -1.5578)
        violated = _below(folder / "violated", [3, 8, 8, 2], 99.0)
        return cls(folder, easy, searched, hopeless(folder / "endless"), violated)

    @classmethod
    def names_only(cls) -> Problems:
        """For the names of cases, which are known before any file is."""
        nothing = ("", "")
        return cls(Path("nowhere"), nothing, nothing, nothing, nothing)

    def words(self, name: str, *more: str, files: tuple[str, str] | None = None) -> tuple[str, ...]:
        """A command line that writes to ``NAME.txt``; ``files``: the easy ones."""
        network, specification = files or self.easy
        results = ("--results_file", str(self.results(name)))
        return ("--onnx_path", network, "--vnnlib_path", specification, *results, *COMMON, *more)

    def results(self, name: str) -> Path:
        return self.folder / "out" / f"{name}.txt"


def _below(folder: Path, sizes: list[int], value: float) -> tuple[str, str]:
    """A random network, and the question whether its first output gets below a value on [-1, 1]^n."""
    text = property_text(
        -np.ones(sizes[0]), np.ones(sizes[0]), sizes[-1], [[(np.eye(1, sizes[-1])[0].tolist(), value)]]
    )
    return write(folder, mlp_model(dense_layers(sizes, 0)), text)
