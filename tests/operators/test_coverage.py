"""Every operator class has a case, so that each new one meets all the properties on the day it arrives."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import torch

import auto_LiRPA.operators
from auto_LiRPA.operators.base import Input, Operator
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Enter, Exit
from tests.operators.cases import CASES, Dice


def _concrete(kind: type[Operator]) -> set[type[Operator]]:
    below = set().union(*(_concrete(k) for k in kind.__subclasses__()))
    own = kind.__module__.startswith("auto_LiRPA.") and "__dataclass_fields__" in vars(kind)
    return below | ({kind} if own and not inspect.isabstract(kind) else set())


def test_every_operator_has_a_case() -> None:
    for module in pkgutil.walk_packages(auto_LiRPA.operators.__path__, "auto_LiRPA.operators."):
        importlib.import_module(module.name)
    covered = {type(make(Dice(0, torch.float64)).op) for make in CASES.values()}
    spread = {ColumnLinear, Enter, Exit}  # need several ranks: tests/parallel/test_tensor_parallel.py
    missing = _concrete(Operator) - covered - spread - {Input}  # type: ignore[type-abstract]
    assert not missing, f"add to CASES: {sorted(k.__name__ for k in missing)}"
    assert len(covered) >= 20
