"""Settings that change the question act in runs, for proofs and counterexamples alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from auto_LiRPA.errors import ConfigError
from complete_verifier.__main__ import main
from complete_verifier.attack.onnx_network import OnnxNetwork
from complete_verifier.config import load_mapping
from complete_verifier.driver.choices import bound_settings
from complete_verifier.driver.instances import listed_instances, network_name
from tests.end_to_end.runs import COMMON, Hard, run

QUICK = ("--pgd_restarts", "5", "--pgd_steps", "20")


@pytest.fixture(scope="module")
def hard() -> Hard:
    return Hard.make([3, 8, 8, 2], 5)


def test_an_offset_moves_the_line_between_sat_and_unsat(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard
) -> None:
    files = hard.write(tmp_path, -0.05)  # no counterexample by 0.05
    assert run(capsys, tmp_path, files, *QUICK).word == "unsat"
    assert run(capsys, tmp_path, files, *QUICK, "--rhs_offset", "0.04").word == "unsat"
    found = run(capsys, tmp_path, files, *QUICK, "--rhs_offset", "0.1")
    assert found.word == "sat" and found.results is not None
    values = {w.split()[0].strip("("): float(w.split()[1].strip(")")) for w in found.results.split("\n")[1:]}
    assert hard.least - 0.05 < values["Y_0"] <= hard.least + 0.05 + 1e-6  # refutes the moved question only
    assert run(capsys, tmp_path, hard.write(tmp_path, 0.05), *QUICK, "--rhs_offset", "-0.1").word == "unsat"


def test_a_narrower_or_scaled_box(capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard) -> None:
    files = hard.write(tmp_path, 0.02)
    assert run(capsys, tmp_path, files, *QUICK).word == "sat"
    for flags in (("--shrink_eps", "0.9"), ("--rescale_vnnlib_ptb", "0.1")):
        assert run(capsys, tmp_path, files, *QUICK, *flags).word == "unsat"
    wide = hard.write(tmp_path, -0.02)
    assert run(capsys, tmp_path, wide, *QUICK).word == "unsat"
    for flags in (("--shrink_eps", "-0.3"), ("--rescale_vnnlib_ptb", "1.3")):
        found = run(capsys, tmp_path, wide, *QUICK, *flags)
        assert found.word == "sat" and found.results is not None
        inputs = [float(w.split()[1].strip(")")) for w in found.results.split("\n")[1:] if "X_" in w]
        assert 1.0 < max(map(abs, inputs)) <= 1.3


def test_a_box_that_shrinks_to_nothing_is_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard
) -> None:
    found = run(capsys, tmp_path, hard.write(tmp_path, 0.0), "--shrink_eps", "1.5")
    assert found.code == 2 and "specification.shrink_eps: the box of input X_0 is empty" in found.err


def with_last(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The network with nodes behind its output y; the last one gives `out`."""
    shape = model.graph.output[0]
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2]))
    assert shape.name == "y"
    return model


@pytest.mark.parametrize("layer", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("trailing", [False, True])
def test_a_last_layer_is_peeled_off(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard, layer: str, trailing: bool
) -> None:
    """The verdict is that of the whole network, whose own outputs stand in the counterexample."""
    model = onnx.load(hard.write(tmp_path, 0.0)[0])
    name = "s" if trailing else "out"
    nodes = [helper.make_node("Sigmoid", ["y"], [name])]
    if layer == "Softmax":
        nodes = [helper.make_node("Softmax", ["y"], [name], axis=-1)]
    if trailing:
        nodes.append(helper.make_node("Flatten", ["s"], ["out"]))
    onnx.save(with_last(model, *nodes), tmp_path / "net.onnx")
    original = OnnxNetwork(tmp_path / "net.onnx")
    points = np.random.default_rng(0).uniform(-1, 1, (3000, 3)).astype(np.float32)
    y = np.stack([original.run(x) for x in points[:300]])
    box = "".join(f"(assert (>= X_{i} -1)) (assert (<= X_{i} 1))\n" for i in range(3))
    declared = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "X_2", "Y_0", "Y_1"))
    flags = (*QUICK, "--onnx_vnnlib_joint_optimization_flags", "peel_off_last_softmax_layer")
    files = str(tmp_path / "net.onnx"), str(tmp_path / "prop.vnnlib")
    assert (y[:, 0] < y[:, 1]).any()
    (tmp_path / "prop.vnnlib").write_text(declared + box + "(assert (<= Y_0 Y_1))\n")
    found = run(capsys, tmp_path, files, *flags)
    assert found.word == "sat" and found.results is not None
    values = {w.split()[0].strip("("): float(w.split()[1].strip(")")) for w in found.results.split("\n")[1:]}
    assert 0 <= values["Y_0"] <= values["Y_1"] <= 1
    if layer == "Sigmoid":
        limit = f"{y[:, 0].min() * 0.3:.6f}"
        (tmp_path / "prop.vnnlib").write_text(declared + box + f"(assert (<= Y_0 {limit}))\n")
        word = run(capsys, tmp_path, files, *flags).word
        logit = np.log(float(limit) / (1 - float(limit)))
        assert word == ("unsat" if hard.least > logit else "sat")
    else:
        (tmp_path / "prop.vnnlib").write_text(declared + box + "(assert (<= Y_0 0.1))\n")
        assert run(capsys, tmp_path, files, *flags).code == 2


def test_a_softmax_along_another_axis_is_not_peeled_off(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard
) -> None:
    model = onnx.load(hard.write(tmp_path, 0.0)[0])
    shape = numpy_helper.from_array(np.array([-1, 2, 1]), "shape3")
    model.graph.initializer.append(shape)
    nodes = [
        helper.make_node("Reshape", ["y", "shape3"], ["r"]),
        helper.make_node("Softmax", ["r"], ["s"], axis=2),
        helper.make_node("Flatten", ["s"], ["out"]),
    ]
    onnx.save(with_last(model, *nodes), tmp_path / "net.onnx")
    files = str(tmp_path / "net.onnx"), str(tmp_path / "prop.vnnlib")
    flags = ("--onnx_vnnlib_joint_optimization_flags", "peel_off_last_softmax_layer")
    found = run(capsys, tmp_path, files, *flags)
    assert found.code == 2 and "does not run over all outputs" in found.err


def test_prefixes_and_names_in_a_list(tmp_path: Path) -> None:
    settings: dict[str, dict[str, object]] = {
        "general": {"root_path": str(tmp_path), "csv_name": "list.csv"},
        "model": {"onnx_path_prefix": "nets"},
        "specification": {"vnnlib_path_prefix": "props"},
    }
    (tmp_path / "list.csv").write_text("net.onnx,p.vnnlib,30\n")
    (instance,) = listed_instances(load_mapping(settings).config)
    assert instance.network == tmp_path / "nets" / "net.onnx" and instance.timeout_s == 30
    assert instance.specification == tmp_path / "props" / "p.vnnlib"
    (tmp_path / "list.csv").write_text("p.vnnlib\n")
    settings["model"] = {"name": "resnet2b"}
    (instance,) = listed_instances(load_mapping(settings).config)
    assert str(instance.network) == "resnet2b" and instance.specification == tmp_path / "props" / "p.vnnlib"
    (tmp_path / "list.csv").write_text("net.onnx,p.vnnlib,30\n")
    with pytest.raises(ConfigError, match="line 1: names a network, and so does model.name"):
        listed_instances(load_mapping(settings).config)
    settings["model"] = {"path": "weights.pth"}
    with pytest.raises(ConfigError, match="model.path holds weights"):
        network_name(load_mapping(settings).config)


def test_preparing_reads_everything_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard
) -> None:
    files = hard.write(tmp_path, 0.1)
    found = run(capsys, tmp_path, files, "--prepare_only")
    assert found.code == 0 and found.results is None and "prepared 1 instance; nothing was verified" in found.out
    (tmp_path / "prop.vnnlib").write_text("(assert")
    found = run(capsys, tmp_path, files, "--prepare_only")
    assert found.code == 2 and found.results is None


def test_minimal_settings_are_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path, hard: Hard) -> None:
    target = tmp_path / "minimal.yaml"
    flags = ("--prepare_only", "--batch_size", "7", "--save_minimal_config", str(target))
    run(capsys, tmp_path, hard.write(tmp_path, 0.1), *flags, "--save_minimal_config_omit_keys", "vnnlib_path")
    saved = yaml.safe_load(target.read_text())
    assert saved["solver"] == {"batch_size": 7} and "specification" not in saved and "debug" not in saved
    assert saved["model"]["onnx_path"].endswith("net.onnx")


def test_options_of_bounded_modules_and_the_loss_act() -> None:
    opts = {"compare_crown_with_ibp": True, "optimize_bound_args": {"lr_alpha": 0.25}}
    config = load_mapping({"model": {"bound_opts": json.dumps(opts).replace("true", "True")},
                           "general": {"loss_reduction_func": "min"}}).config  # fmt: skip
    settings = bound_settings(config)
    assert settings.alpha.lr_alpha == 0.25 and settings.alpha.reduction == "min"


def test_a_torch_module_by_name_and_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The module judges counterexamples; the shape has to be said."""
    declared = "".join(f"(declare-const X_{i} Real)\n" for i in range(784))
    declared += "".join(f"(assert (>= X_{i} 0)) (assert (<= X_{i} 0.01))\n" for i in range(784))
    declared += "".join(f"(declare-const Y_{j} Real)\n" for j in range(10))
    (tmp_path / "p.vnnlib").write_text(declared + "(assert (<= Y_0 100))")
    flags = ["--model", "mnist_tiny_mlp", "--vnnlib_path", str(tmp_path / "p.vnnlib"), *COMMON]
    out = tmp_path / "out.txt"
    assert main([*flags, "--input_shape", "-1", "1", "28", "28", "--results_file", str(out)]) == 0
    assert out.read_text().startswith("sat\n((X_0 ")
    assert main([*flags, "--results_file", str(out)]) == 2
    assert "model.input_shape is missing" in capsys.readouterr().err
