"""User code: what it can import and see, that its changes are checked and stay with one instance, how it fails."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from auto_LiRPA.errors import ConfigError, SpecError
from complete_verifier.__main__ import main
from complete_verifier.compat.config_view import tree_of
from complete_verifier.compat.handler import SpecHandler
from complete_verifier.compat.hooks import SHIMS, Hooks, tuned, with_changes
from complete_verifier.compat.onnx_model import OnnxModel
from complete_verifier.compat.read_vnnlib import compiled_form, property_from
from complete_verifier.config import Config, load_mapping
from complete_verifier.spec.compile import read_vnnlib_text
from tests.end_to_end.runs import COMMON, mlp_model
from tests.nets import dense_layers, run_mlp

DECLARED = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0", "Y_1"))
TEXT = DECLARED + (
    "(assert (>= X_0 -1)) (assert (<= X_0 1)) (assert (>= X_1 0)) (assert (<= X_1 0.5))\n"
    "(assert (or (and (<= Y_0 -3.5) (<= Y_1 0.25)) (and (>= Y_0 7)) (and (<= X_0 0.5) (<= Y_1 -9))))\n"
)


def config(**general: object) -> Config:
    return load_mapping({"general": general}).config


def hooks(folder: Path, code: str) -> Hooks:
    (folder / "hook.py").write_text(code)
    return Hooks("", folder)


def test_the_expected_modules_can_be_imported_only_while_a_hook_runs(tmp_path: Path) -> None:
    code = (
        "import arguments\nfrom read_vnnlib import read_vnnlib\nfrom load_model import load_model_onnx\n"
        "def f():\n    import arguments as again\n    return again is arguments, arguments.Config['bab']['timeout']\n"
    )
    found = hooks(tmp_path, code).call("a.key", 'Customized("hook.py", "f")', tree_of(config()))
    assert found == (True, 360.0)
    for name in SHIMS:
        assert name not in sys.modules
        with pytest.raises(ImportError):
            importlib.import_module(name)
    with pytest.raises(ConfigError, match="outside a hook"):
        importlib.import_module("complete_verifier.compat.arguments").Config["bab"]


def test_a_module_of_the_user_by_such_a_name_is_put_back(tmp_path: Path) -> None:
    own = type(sys)("arguments")
    sys.modules["arguments"] = own
    try:
        hooks(tmp_path, "def f():\n    pass\n").call("k", 'Customized("hook.py", "f")', tree_of(config()))
        assert sys.modules["arguments"] is own
    finally:
        del sys.modules["arguments"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("arguments.Config['bab']['tmeout'] = 1", "bab.tmeout: unknown key"),
        ("arguments.Config['solver']['batch_size'] = -3", "solver.batch_size = -3"),
        ("arguments.Config['model']['onnx_path'] = 'x'", "sets model.onnx_path, which has acted before"),
        ("arguments.Config['general']['buffer_has_batchdim'] = True", "not supported"),
        ("arguments.Config['bab'] = 3", "expected a section"),
        ("del arguments.Config['bab']", "deletes bab"),
    ],
)
def test_what_a_tuning_hook_does_wrong_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    code = f"import arguments\ndef tune(model, vnnlib):\n    {line}\n"
    with pytest.raises(ConfigError, match=message) as caught:
        tuned(config(adhoc_tuning='Customized("hook.py", "tune")'), hooks(tmp_path, code), None, None)
    assert "\n" not in str(caught.value)


def test_a_tuning_hook_changes_a_copy(tmp_path: Path) -> None:
    code = (
        "import arguments\ndef tune(model, vnnlib):\n"
        "    arguments.Config['solver']['alpha-crown']['share_alphas'] = True\n"
        "    arguments.Config['bab']['branching']['candidates'] += model\n"
    )
    before = config(adhoc_tuning='Customized("hook.py", "tune")', double_fp=True)
    after, changed = tuned(before, hooks(tmp_path, code), 4, None)
    assert set(changed) == {"solver.alpha-crown.share_alphas", "bab.branching.candidates"}
    assert after.solver.alpha_crown.share_alphas and after.bab.branching.candidates == 7
    assert after.general == before.general  # the rest is as it was
    assert not before.solver.alpha_crown.share_alphas and before.bab.branching.candidates == 3
    assert with_changes(before, {}, "x") == before


def test_handler_and_compiled_form_say_what_the_property_says() -> None:
    prop = read_vnnlib_text(TEXT)
    handler = SpecHandler(prop, (2,))
    assert handler.x.shape == handler.data_min.shape == (3, 2) and handler.input_shape == [-1, 2]
    assert handler.or_spec_size.tolist() == [2, 1, 1] and handler.c.shape == (4, 2)
    specs = handler.all_specs
    assert specs.c.shape == (3, 2, 2) and specs.rhs[1, 1] == torch.inf and not specs.same_or_spec_size
    assert not specs.same_x_range and handler.is_linf_norm
    again = property_from(compiled_form(prop), "again")
    generator = np.random.default_rng(0)
    for x, y in zip(generator.uniform(-1, 1, (300, 2)), generator.uniform(-10, 10, (300, 2)), strict=True):
        assert again.violated_by(x.tolist(), y.tolist()) == prop.violated_by(x.tolist(), y.tolist())
    assert again.regions[0].clauses[0].rows[0].rhs == Decimal("-3.5")
    for wrong in (3, [], [([[0, 1]], [(np.zeros((1, 2)), np.zeros(2))])], [([[0]], [(np.eye(2), np.zeros(2))])]):
        with pytest.raises(SpecError):
            property_from(wrong, "wrong")


# -- whole runs -------------------------------------------------------------------------------------------------------
HOOKS = """
import arguments
import numpy as np
import torch
from torch import nn


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(2 * x)


def loader(root, onnx_path, vnnlib_path):
    from load_model import load_model_onnx
    from read_vnnlib import read_vnnlib
    import os
    model, shape = load_model_onnx(os.path.join(root, onnx_path))
    scaled = []
    for box, clauses in read_vnnlib(os.path.join(root, vnnlib_path)):
        scaled.append(([[lo / 2, hi / 2] for lo, hi in box], clauses))
    return Doubled(model), shape, scaled


def tune(model, vnnlib):
    kinds = [type(part).__name__ for part in model.modules()]
    assert kinds.count("ReLU") == 1 and kinds.count("Linear") == 2, kinds
    assert model(vnnlib.x).shape == (1, 2)
    arguments.Config["general"]["complete_verifier"] = "skip"


def attack(model, data_min, data_max, vnnlib):
    corners = torch.stack([data_min[0], data_max[0]])
    return corners if model(corners).shape == (2, 2) else None


def outside(data_max):
    return data_max + 1


def veto(adv_example, adv_output, vnnlib):
    assert adv_example.shape == (1, 2) and adv_output.shape == (1, 2)
    return False


def save(adv_example, res_path):
    with open(res_path, "w") as file:
        file.write("mine " + " ".join(str(v) for v in adv_example.reshape(-1).tolist()))


def verifier(model, vnnlib, onnx_path, answer):
    assert onnx_path.endswith("net.onnx") and len(vnnlib) == 1
    return answer
"""


def ask(folder: Path, threshold: float, *flags: str) -> tuple[int, str, dict[str, object]]:
    """One run: is Y_0 > threshold on a corner-to-corner box? Results word (and more), statistics."""
    layers = dense_layers([2, 6, 2], 0)
    onnx.save(mlp_model(layers), folder / "net.onnx")
    box = "(assert (>= X_0 -1)) (assert (<= X_0 1)) (assert (>= X_1 -1)) (assert (<= X_1 1))\n"
    (folder / "p.vnnlib").write_text(DECLARED + box + f"(assert (<= Y_0 {threshold:.9f}))\n")
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "c.yaml").write_text(json.dumps({"bab": {"timeout": 60}}))
    files = ["--onnx_path", str(folder / "net.onnx"), "--vnnlib_path", str(folder / "p.vnnlib")]
    results, stats = folder / "out.txt", folder / "s.json"
    results.unlink(missing_ok=True)
    files += ["--results_file", str(results), "--stats_file", str(stats), "--config", str(folder / "c.yaml")]
    code = main([*files, *COMMON, "--cex_path", str(folder / "cex.txt"), *flags])
    text = results.read_text() if results.exists() else ""
    return code, text, json.loads(stats.read_text()) if code == 0 else {}


def least(points: int = 40_000) -> float:
    """The least Y_0 over the box, by a grid."""
    axis = torch.linspace(-1, 1, int(points**0.5), dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return float(run_mlp(dense_layers([2, 6, 2], 0))(grid)[:, 0].min())


def hook(name: str) -> str:
    return f'Customized("hooks.py", "{name}")'


def test_tuning_acts_in_a_run(tmp_path: Path) -> None:
    code, text, stats = ask(tmp_path, least() - 1e-3, "--adhoc_tuning", hook("tune"), "--bound_prop_method", "ibp")
    assert code == 0 and text == "unknown" and "complete_verifier: skip" in str(stats["stopped_by"])


def test_a_users_attack_needs_our_confirmation(tmp_path: Path) -> None:
    corners = torch.tensor([[-1.0, -1], [1, 1]], dtype=torch.float64)
    corner = float(run_mlp(dense_layers([2, 6, 2], 0))(corners)[:, 0].min())
    skip = ("--complete_verifier", "skip")
    _, text, stats = ask(tmp_path, corner + 1e-3, "--attack_func", hook("attack"), *skip)
    assert text.startswith("sat\n") and stats["status"] == "unsafe-pgd"
    _, text, _ = ask(tmp_path, corner + 1e-3, "--attack_func", hook("outside"), *skip)
    assert text == "unknown"
    code, _, _ = ask(tmp_path, 0.0, "--attack_func", hook("verifier"))
    assert code == 2  # its parameter `answer` is none that an attack is offered


def test_a_user_may_refuse_a_counterexample_but_not_make_one(tmp_path: Path) -> None:
    _, text, stats = ask(tmp_path, least() + 0.1, "--adv_verifier", hook("veto"))
    assert text == "unknown" and "adv_verifier" in str(stats["stopped_by"])


def test_a_users_saver_writes_the_counterexample(tmp_path: Path) -> None:
    _, text, _ = ask(tmp_path, least() + 0.1, "--adv_saver", hook("save"), "--save_adv_example")
    assert text.startswith("sat\nmine ") and (tmp_path / "cex.txt").read_text().startswith("mine ")


def test_a_users_loader_gives_network_and_property(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """In short only the counterexample: each run exports the loader's module, which takes seconds."""
    for margin, wanted in ((-1e-2, "unsat"), (0.1, "sat"))[-count(1, 2) :]:
        _, text, _ = ask(tmp_path, least() + margin, "--onnx_loader", hook("loader"))
        assert text.split("\n")[0] == wanted
    # the counterexample is one of the loader's own network, whose box is half as wide
    values = [float(line.split()[1].rstrip(")")) for line in text.split("\n")[1:] if "X_" in line]
    assert all(abs(v) <= 0.5 for v in values)


@pytest.mark.parametrize(("answer", "word"), [("safe", "unsat"), ("unsafe", "unknown"), ("unknown", "unknown")])
def test_a_users_verifier(tmp_path: Path, answer: str, word: str) -> None:
    call = f'Customized("hooks.py", "verifier", answer="{answer}")'
    flags = ("--complete_verifier", call, "--bound_prop_method", "ibp", "--pgd_order", "skip")
    _, text, stats = ask(tmp_path, least() - 1e-3, *flags)
    assert text == word and "the user's verifier" in str(stats["stopped_by"])


def test_parts_of_a_file_carry_the_names_of_operators(tmp_path: Path) -> None:
    onnx.save(mlp_model(dense_layers([2, 6, 2], 0)), tmp_path / "net.onnx")
    model = OnnxModel(tmp_path / "net.onnx", None)
    assert sum(isinstance(part, torch.nn.Linear) for part in model.modules()) == 2 and "ReLU" in repr(model)
    x = torch.rand(3, 2)
    torch.testing.assert_close(model(x), run_mlp(dense_layers([2, 6, 2], 0))(x.double()).float(), atol=1e-5, rtol=1e-5)
