"""Bad settings end in one line that names the file or flag, the option, and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import load_config

FILES = {  # content of F.yaml, and what the message has to say after "F.yaml: "
    "solver:\n  batch_size: x": 'solver.batch_size = "x": expected an integer >= 1; the default is 64',
    "solver:\n  batch_size: 1.5": "solver.batch_size = 1.5: expected an integer >= 1",
    "solver:\n  batch_size: true": "solver.batch_size = True: expected an integer >= 1",
    "solver:\n  batch_size: 0": "solver.batch_size = 0: expected an integer >= 1",
    "solver:\n  batch_size: .inf": "solver.batch_size = inf: expected an integer >= 1",
    "solver:\n  batch_size:": "solver.batch_size = None: expected an integer >= 1",
    "solver:\n  batch_size: [1, 2]": "solver.batch_size = [1, 2]: expected an integer >= 1",
    "solver: 3": "solver = 3: expected a section",
    "- a\n- b": "['a', 'b']: expected a section",
    "solver: {alpha-crown: {iterations: 3}}": (
        "solver.alpha-crown.iterations: unknown key; perhaps solver.alpha-crown.iteration?"
    ),
    "solver: {alpha_crown: {iteration: 3}}": "solver.alpha_crown: unknown key; perhaps solver.alpha-crown?",
    "bab: {batch_size: 3}": "bab.batch_size: unknown key; perhaps solver.batch_size",
    "solvr: {batch_size: 3}": "solvr: unknown key; perhaps solver?",
    "zzz: 1": "zzz: unknown key; the file has: attack, bab",
    "1: 2": "1: unknown key",
    "bab: {timeout: .nan}": "bab.timeout = nan: expected a number, not NaN; the default is 360.0",
    "bab: {timeout: 'nan'}": 'bab.timeout = "nan": expected a number, not NaN',
    "bab: {timeout: -1}": "bab.timeout = -1: expected a number > 0",
    "bab: {timeout: 2020-01-01}": "bab.timeout = datetime.date(2020, 1, 1): expected a number > 0",
    "specification: {epsilon: 2/255}": 'specification.epsilon = "2/255": expected a finite number >= 0 or null',
    "specification: {epsilon: .inf}": "specification.epsilon = inf: expected a finite number >= 0",
    "specification: {norm: 0.5}": "specification.norm = 0.5: expected a number >= 1 or .inf; the default is .inf",
    "specification: {rhs_offset: .nan}": "expected a number, not NaN",
    "bab: {branching: {method: kfbs}}": 'perhaps "kfsb"?; the default is kfsb',
    "general: {device: 3}": "general.device = 3: expected one of cpu, cuda",
    "attack: {attack_mode: FGSM}": 'attack.attack_mode = "FGSM": expected one of diversed_PGD',
    "general: {double_fp: maybe}": 'general.double_fp = "maybe": expected true or false; the default is false',
    "general: {results_file: 3}": "general.results_file = 3: expected text",
    "model: {input_shape: [0, 3]}": "model.input_shape = [0, 3]: expected a list of sizes",
    "data: {std: 0}": "data.std = 0: expected a list of numbers > 0",
    "data: {mean: []}": "data.mean = []: expected a list of finite numbers",
    "model: {onnx_quirks: '[1]'}": 'model.onnx_quirks = "[1]": expected a dict of Python literals',
    "parallel: {mesh: {gpus: 2}}": "parallel.mesh = {'gpus': 2}: expected a mapping of weights, rows, domains",
    "parallel: {mesh: {weights: 0}}": "parallel.mesh = {'weights': 0}: expected a mapping",
    "parallel: {tile_rows: some}": 'parallel.tile_rows = "some": expected auto or an integer >= 1',
    "general: {seed: 5000000000}": "general.seed = 5000000000: expected an integer from 0 to 4294967295",
    "bab: {timeout: 1\n": "line 2: not valid YAML",
    "a: b: c": "line 1: not valid YAML: mapping values are not allowed",
    "bab:\n  timeout: 1\n  timeout: 2\n": 'line 3: "timeout" is already given in line 2',
    "bab: !!python/object/apply:os.system ['true']": "line 1: not valid YAML",
    "bab: {timeout: 2020-13-45}": "a value cannot be read",
    "bab: *nothing": "line 1: not valid YAML: found undefined alias",
    "[" * 100_000: "nested more than 40 levels deep",
    "\0": "not valid YAML",
}
COMMANDS = {  # words, and how the message has to begin
    "--batch_size x": '--batch_size: solver.batch_size = "x": expected an integer >= 1; the default is 64',
    "--batch_size": "--batch_size: expected one argument",
    "--batchsize 3": "--batchsize: unknown flag; perhaps --batch_size?",
    "--batch 3": "--batch: ambiguous: could be --batch_size, --batched_crown_auto_enlarge_max_vram_ratio",
    "--qqqqqqqqqqqqq": "--qqqqqqqqqqqqq: unknown flag; abcrown --help lists all flags",
    "-v": "-v: unknown flag",
    "config.yaml": '"config.yaml": unexpected word',
    "--no_alpha=3": "--no_alpha: ignored explicit argument",
    "--set bab": '--set "bab": expected path=value',
    "--set bab.tmeout=3": "--set: bab.tmeout: unknown key; perhaps bab.timeout?",
    "--set bab=3": "--set: bab = 3: expected a section",
    "--set bab.timeout=[": "--set bab.timeout: line",
    "--set bab.timeout=3 --timeout 4": "--set bab.timeout: also given by --timeout; keep one of the two",
    "--set =3": "--set: : unknown key",
    "--config": "--config: expected one argument",
    "--config missing.yaml": "missing.yaml: no such file",
    "--config /": "/: cannot be read",
    "--root_path missing": "missing/config.yaml: no such file",
    "--nproc 0": '--nproc "0": expected gpu or an integer >= 1',
    "--world_size 4": "--world_size: describes the machine of a plan; add --plan",
    "--plan --gpu_mem_gib -3": '--gpu_mem_gib "-3": expected a number > 0',
    "--norm nan": '--norm: specification.norm = "nan": expected a number, not NaN',
    "--complete_verifier bob": '--complete_verifier: general.complete_verifier = "bob": expected one of bab, mip',
    "--lr_decay 0.9 0.8": '"0.8": unexpected word',
}


@pytest.mark.parametrize("content", FILES, ids=range(len(FILES)))
def test_a_bad_file_ends_in_one_line(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("F.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(["--config", "F.yaml"])
    message = str(caught.value)
    assert message.startswith("F.yaml: ") and FILES[content] in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("words", COMMANDS)
def test_a_bad_command_line_ends_in_one_line(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words.split())
    message = str(caught.value)
    assert message.startswith(COMMANDS[words])
    assert "\n" not in message and len(message) < 500


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "F.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="F.yaml: not valid YAML"):
        load_config(["--config", str(tmp_path / "F.yaml")])
