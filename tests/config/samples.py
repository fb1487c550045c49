"""A value for each option that differs from its default: as command-line words, in YAML, and as it has to arrive."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from complete_verifier.config.options import Option
from complete_verifier.config.schema_parallel import Mesh


@dataclass(frozen=True, slots=True)
class UpstreamKey:
    """One line of the list of upstream's options. `default` and `values` are kept as text."""

    path: str
    flag: str
    default: str
    values: str
    priority: str


def upstream_keys() -> dict[str, UpstreamKey]:
    """Upstream's 300 options by path."""
    with (Path(__file__).parent / "upstream_keys.csv").open(newline="") as file:
        return {row["path"]: UpstreamKey(**row) for row in csv.DictReader(file)}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value in its three forms."""

    words: tuple[str, ...]
    yaml: object
    value: object


HOOK = 'Customized("tuning.py", "tune", 2, rate=0.5)'
BY_PATH = {
    "general.complete_verifier": Sample(("skip",), "skip", "skip"),
    "model.input_shape": Sample(("-1", "1", "28", "28"), [-1, 1, 28, 28], (-1, 1, 28, 28)),
    "model.onnx_quirks": Sample(('{"Gemm": {"x": 1}}',), {"Gemm": {"x": 1}}, "{'Gemm': {'x': 1}}"),
    "model.bound_opts": Sample(('{"conv_mode": "x"}',), "{'conv_mode': 'x'}", "{'conv_mode': 'x'}"),
    "model.name": Sample(("mnist_fc(width=256)",), "mnist_fc(width=256)", "mnist_fc(width=256)"),
    "model.onnx_optimization_flags": Sample(
        ("merge_bn", "merge_gemm"), ["merge_bn", "merge_gemm"], ("merge_bn", "merge_gemm")
    ),
    "specification.norm": Sample(("2",), 2, 2.0),
    "bab.max_domains": Sample(("1e6",), 1e6, 1_000_000),
    "bab.tree_traversal": Sample(("depth_first",), "depth_first", "depth_first"),
    "attack.input_split_check_adv.enabled": Sample(("false",), False, False),
    "bab.checkpoint": Sample(("30",), 30, 30.0),
    "bab.refine.attempt": Sample(("0.5",), 0.5, 0.5),
    "bab.refine.share": Sample(("0.75",), 0.75, 0.75),
    "parallel.mode": Sample(("fsdp",), "fsdp", "fsdp"),
    "parallel.rows": Sample(("shard",), "shard", "shard"),
    "parallel.domains": Sample(("replicate",), "replicate", "replicate"),
    "parallel.mesh": Sample(("weights=2,domains=4",), {"weights": 2, "domains": 4}, Mesh(weights=2, domains=4)),
    "parallel.backend": Sample(("gloo",), "gloo", "gloo"),
    "parallel.tile_rows": Sample(("128",), 128, 128),
    "parallel.block_mib": Sample(("0.5",), 0.5, 0.5),
    "parallel.tp_intermediate": Sample(("ibp",), "ibp", "ibp"),
    "parallel.timeout_s": Sample(("5",), 5, 5.0),
    "parallel.threads": Sample(("2",), 2, 2),
}
HOOKS = (
    "general.graph_optimizer general.adhoc_tuning model.onnx_loader model.optimize_graph data.dataset attack.adv_saver "
    "attack.adv_verifier attack.early_stop_condition attack.adv_example_finalizer attack.pgd_loss attack.attack_func"
).split()
BY_VALUES = {
    "int": Sample(("7",), 7, 7),
    "float": Sample(("0.75",), 0.75, 0.75),
    "float>=0": Sample(("0.75",), 0.75, 0.75),
    "str": Sample(("some_text",), "some_text", "some_text"),
    "[str]": Sample(("one", "two"), ["one", "two"], ("one", "two")),
    "[int]": Sample(("3", "5"), [3, 5], (3, 5)),
    "[float]": Sample(("0.25", "2"), [0.25, 2], (0.25, 2.0)),
}
FREE_TEXT_WITH_CHOICES = {"general.loss_reduction_func": "max", "solver.beta-crown.optimizer": "sgd"}
STEP_SIZES = {"attack.pgd_alpha", "attack.input_split.pgd_alpha", "attack.input_split_check_adv.pgd_alpha"}


def sample_of(option: Option, key: UpstreamKey | None) -> Sample:
    """A value of `option` that is not its default. Types come from the list of upstream's options, not from ours."""
    if option.path in BY_PATH:
        return BY_PATH[option.path]
    if option.path in HOOKS:
        return Sample((HOOK,), HOOK, HOOK)
    if option.path in STEP_SIZES:
        return Sample(("0.01",), "1e-2", 0.01)
    if option.path in FREE_TEXT_WITH_CHOICES:
        word = FREE_TEXT_WITH_CHOICES[option.path]
        return Sample((word,), word, word)
    if key is None or key.values == "bool":
        assert isinstance(option.default, bool)
        return Sample((), not option.default, not option.default)
    if option.default == 7:
        return Sample(("9",), 9, 9)
    if key.values in BY_VALUES:
        return BY_VALUES[key.values]
    word = next(word for word in key.values.split(", ") if word not in (key.default, "None"))
    return Sample((word,), word, word)
