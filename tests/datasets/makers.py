"""Small data sets, networks and configurations for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from complete_verifier.__main__ import main
from complete_verifier.reporting.table import read_table
from tests.end_to_end.runs import COMMON, mlp_model
from tests.nets import Dense, dense_layers, run_mlp

LOADER = '''
import numpy as np
import arguments


def data(spec, file="data.npz", as_tuple=False, **more):
    stored = np.load(__file__.replace("loader.py", file))
    result = {name: stored[name] for name in stored}
    result.update(more)
    if arguments.Config["data"]["num_outputs"] != 3:
        raise ValueError("three outputs")
    if as_tuple:
        return tuple(result[name] for name in ("X", "labels", "data_max", "data_min", "eps"))
    return result


def broken(spec):
    raise RuntimeError("out of\\nluck")
'''


@dataclass(frozen=True)
class Case:
    """A folder with a network, a loader and its data."""

    folder: Path
    layers: list[Dense]
    x: np.ndarray
    labels: np.ndarray

    @classmethod
    def make(cls, folder: Path, n: int = 4, eps: float = 0.05, **more: object) -> Case:
        """``n`` examples of 5 inputs for a network of 3 outputs; the second one has a wrong label."""
        layers = dense_layers([5, 16, 3], 7)
        onnx.save(mlp_model(layers), folder / "net.onnx")
        x = np.random.default_rng(1).uniform(0, 1, (n, 5)).astype(np.float32)
        y = run_mlp(layers)(torch.from_numpy(x).double()).numpy()
        labels, second = np.argsort(y, 1)[:, -1].copy(), np.argsort(y, 1)[:, -2]
        labels[1] = second[1]
        data = {
            "X": x, "labels": labels, "data_min": np.zeros((1, 5), np.float32), "data_max": np.ones((1, 5), np.float32),
            "eps": np.float64(eps), "runnerup": second, "target_label": (labels + 1) % 3,
        } | more  # fmt: skip
        np.savez(folder / "data.npz", **data)  # type: ignore[arg-type]
        (folder / "loader.py").write_text(LOADER)
        return cls(folder, layers, x, labels)

    def config(self, **settings: object) -> Path:
        """A configuration of the loader, with some settings by path (underscores for dots twice)."""
        lines: dict[str, dict[str, object]] = {
            "general": {"results_file": str(self.folder / "out.csv"), "device": "cpu"},
            "model": {"onnx_path": str(self.folder / "net.onnx")},
            "data": {"dataset": 'Customized("loader.py", "data")', "num_outputs": 3},
            "attack": {"pgd_restarts": 5, "pgd_steps": 20},
            "bab": {"timeout": 30},
        }
        for path, value in settings.items():
            section, key = path.split("__")
            lines.setdefault(section, {})[key] = value
        file = self.folder / "config.yaml"
        file.write_text(json.dumps(lines))
        return file


@dataclass(frozen=True)
class Ran:
    """What a run over examples left behind: statuses by index."""

    code: int
    out: str
    err: str
    statuses: dict[int, str]


def run(capsys: pytest.CaptureFixture[str], case: Case, flags: Sequence[str] = (), **settings: object) -> Ran:
    """One run in this process."""
    table = case.folder / "out.csv"
    table.unlink(missing_ok=True)
    capsys.readouterr()
    code = main(["--config", str(case.config(**settings)), *COMMON, *flags])
    printed = capsys.readouterr()
    rows = read_table(table) if table.exists() else []
    return Ran(code, printed.out, printed.err, {row.index: row.status for row in rows})
