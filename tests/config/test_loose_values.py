"""What upstream's shipped files write loosely is read; what they read as something else is said."""

from __future__ import annotations

from typing import Any

import pytest

from complete_verifier.config import check_supported, load_config, load_mapping
from complete_verifier.config.options import option_table

LOOSE: list[tuple[str, Any, Any]] = [
    ("model.onnx_optimization_flags", "merge_bn", ("merge_bn",)),
    ("model.onnx_optimization_flags", "merge_bn,merge_gemm", ("merge_bn", "merge_gemm")),
    ("model.onnx_optimization_flags", "merge_bn, merge_gemm", ("merge_bn", "merge_gemm")),
    ("model.onnx_optimization_flags", ["remove_matmul_inplace", "fix_gtrsb"], ("remove_matmul_inplace", "fix_gtrsb")),
    ("model.onnx_optimization_flags", "", ()),
    ("solver.alpha-crown.disable_optimization", "Exp", ("Exp",)),
    ("solver.invprop.apply_output_constraints_to", "BoundLinear", ("BoundLinear",)),
    ("data.mean", 0.5, (0.5,)),
    ("data.mean", "0.4,0.5,0.6", (0.4, 0.5, 0.6)),
    ("data.std", 2, (2.0,)),
    ("data.select_instance", 3, (3,)),
    ("bab.branching.input_split.split_hint", 0.5, (0.5,)),
    ("solver.bound_prop_method", "forward+backward", "forward+crown"),
    ("solver.init_bound_prop_method", "forward+backward", "forward+crown"),
    ("general.loss_reduction_func", "max", "max"),
    ("general.loss_reduction_func", "min", "min"),
    ("general.loss_reduction_func", "mean", "mean"),
    ("attack.attack_mode", "diverse_pgd", "PGD"),
    ("attack.attack_mode", "diversed_pgd", "diversed_PGD"),
    ("attack.attack_mode", "diversed_GAMA_pgd", "diversed_GAMA_PGD"),
    ("specification.shrink_eps", "1e-10", 1e-10),
    ("specification.shrink_eps", "-1e-10", -1e-10),
    ("specification.epsilon", 1, 1.0),
    ("specification.epsilon", "None", None),
    ("specification.norm", ".inf", float("inf")),
    ("specification.norm", "inf", float("inf")),
    ("bab.decision_thresh", float("inf"), float("inf")),
    ("bab.branching.input_split.adv_check", float("inf"), float("inf")),
    ("bab.branching.input_split.adv_check", -1, -1),
    ("bab.max_domains", float("inf"), float("inf")),
    ("bab.max_domains", "1e9", 1_000_000_000),
    ("solver.crown.batch_size", 1e9, 1_000_000_000),
    ("solver.crown.batch_size", "1e9", 1_000_000_000),
    ("bab.cut.biccos.max_domain", 10000.0, 10000),
    ("bab.branching.input_split.bf_iters", 1e9, 1_000_000_000),
    ("solver.mip.solver_threads", 0, 0),
    ("solver.min_batch_size_ratio", 0, 0.0),
    ("attack.pgd_alpha", "auto", "auto"),
    ("attack.pgd_alpha", 10, 10.0),
    ("attack.pgd_alpha", "1e-2", 0.01),
    ("attack.input_split_check_adv.enabled", True, True),
    ("attack.input_split_check_adv.enabled", "auto", "auto"),
    ("bab.cut.biccos.heuristic", "None", None),
    ("debug.lp_test", "None", None),
    ("general.complete_verifier", 'Customized("lyapunov.py", "verify")', 'Customized("lyapunov.py", "verify")'),
    ("general.double_fp", "yes", True),
    ("general.double_fp", 1, True),
    ("general.double_fp", 0, False),
    ("general.root_path", None, ""),
    ("model.onnx_quirks", "{'Reshape': {'fix_batch_size': True}}", "{'Reshape': {'fix_batch_size': True}}"),
    ("model.onnx_quirks", '{"Reshape":{"fix_batch_size":True}}', "{'Reshape': {'fix_batch_size': True}}"),
    ("model.onnx_quirks", {"Reshape": {"fix_batch_size": True}}, "{'Reshape': {'fix_batch_size': True}}"),
]
READ_AS = [
    ("solver.bound_prop_method", "forward+backward", "forward+crown"),
    ("attack.attack_mode", "diverse_pgd", "PGD"),
]


@pytest.mark.parametrize(("path", "raw", "value"), LOOSE)
def test_loose_values_are_read(path: str, raw: Any, value: Any) -> None:
    nested = raw
    for name in reversed(path.split(".")):
        nested = {name: nested}
    read = option_table()[path].of(load_mapping(nested).config)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("path", "raw", "value"), READ_AS)
def test_words_outside_the_list_are_reported(path: str, raw: str, value: str) -> None:
    flag = option_table()[path].flag
    for arguments, place in (([flag, raw], flag), (["--set", f"{path}={raw}"], "--set")):
        loaded = load_config(arguments)
        assert loaded.notes == (f'{place}: {path} = "{raw}": not one of the choices; read as {value}',)
        assert loaded.notes[0] in check_supported(loaded)
    assert load_config([flag, value]).notes == ()


def test_numbers_written_as_text_are_no_reason_for_a_note() -> None:
    assert load_config(["--pgd_alpha", "0.01", "--enable_check_adv", "true", "--max_domains", "5"]).notes == ()
