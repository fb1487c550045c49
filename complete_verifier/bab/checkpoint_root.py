"""What a search over activation splits starts from, and its ledger, as named tensors and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import NeuronList
from auto_LiRPA.bounds.intermediate import Intermediate, StartNode, cut_rows
from auto_LiRPA.values import Interval
from complete_verifier.bab.ledger import Leaf, Ledger
from complete_verifier.incomplete.regions import relax_all
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem


def root_tensors(start: IncompleteResult) -> dict[str, Tensor]:
    """Bounds, boxes, slopes and start nodes, in host memory. Relaxations follow from the boxes."""
    out = {"lower": start.lower, "proven": start.proven}
    for place, (node, box) in enumerate(start.intermediate.boxes.items()):
        out[f"box.{place:05d}.{node}.lower"] = box.lower
        out[f"box.{place:05d}.{node}.upper"] = box.upper
    for place, first in enumerate(start.intermediate.starts):
        out[f"start.{place:05d}.{first.node}"] = first.index
    for node, slopes in start.slopes.items():
        out[f"slopes.{node}"] = slopes
    return {name: tensor.detach().cpu().contiguous() for name, tensor in out.items()}


def root_result(problem: Problem, tensors: Mapping[str, Tensor]) -> IncompleteResult:
    """Inverse of `root_tensors`, on the problem's device: bit for bit what the search began with."""
    here = {name: tensor.to(problem.clauses.c.device) for name, tensor in tensors.items()}
    boxes: dict[int, Interval] = {}
    for name in sorted(n for n in here if n.startswith("box.") and n.endswith(".lower")):
        boxes[int(name.split(".")[2])] = Interval(here[name], here[name.removesuffix("lower") + "upper"])
    starts = []
    for name in sorted(n for n in here if n.startswith("start.")):
        node, index = int(name.split(".")[2]), here[name]
        batch, itemsize = boxes[node].lower.shape[0], boxes[node].lower.element_size()
        tiles = cut_rows(problem.graph, node, len(index), batch, problem.context, itemsize)
        starts.append(StartNode(node, NeuronList.of(index, boxes[node].lower.dtype), tiles))
    slopes = {int(n.split(".")[1]): t for n, t in here.items() if n.startswith("slopes.")}
    intermediate = Intermediate(boxes, relax_all(problem.graph, boxes), tuple(starts))
    return IncompleteResult(here["lower"], here["proven"], intermediate, slopes)


def ledger_tensors(ledger: Ledger) -> dict[str, Tensor]:
    """All leaves: clause and reason of each, and its splits one behind the other (``column``, ``sign``)."""
    reasons = sorted({leaf.reason for leaf in ledger.leaves})
    splits = [sorted(leaf.splits) for leaf in ledger.leaves]
    return {
        "ledger.clause": torch.tensor([leaf.clause for leaf in ledger.leaves], dtype=torch.int64),
        "ledger.reason": torch.tensor([reasons.index(leaf.reason) for leaf in ledger.leaves], dtype=torch.int64),
        "ledger.reasons": torch.tensor(list("\n".join(reasons).encode()), dtype=torch.uint8),
        "ledger.count": torch.tensor([len(mine) for mine in splits], dtype=torch.int64),
        "ledger.column": torch.tensor([column for mine in splits for column, _ in mine], dtype=torch.int64),
        "ledger.sign": torch.tensor([sign for mine in splits for _, sign in mine], dtype=torch.int8),
    }


def ledger_of(tensors: Mapping[str, Tensor]) -> Ledger:
    """Inverse of `ledger_tensors`; empty where none was recorded."""
    if "ledger.clause" not in tensors:
        return Ledger()
    reasons = bytes(tensors["ledger.reasons"].tolist()).decode().split("\n")
    columns, signs = tensors["ledger.column"].tolist(), tensors["ledger.sign"].tolist()
    leaves, at = [], 0
    for clause, reason, count in zip(
        tensors["ledger.clause"].tolist(), tensors["ledger.reason"].tolist(), tensors["ledger.count"].tolist(),
        strict=True,
    ):  # fmt: skip
        splits = frozenset(zip(columns[at : at + count], signs[at : at + count], strict=True))
        leaves.append(Leaf(clause, splits, reasons[reason]))
        at += count
    return Ledger(leaves)
