"""A program under `torchrun` that calls the verifier: one rank prints and writes, user code runs once, all agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launching import Launch, launch, once
from tests.parallel.problems import Problems

# Each hook notes which rank called it, and fails on any rank but the first: a rank that ran it would not agree.
HOOKS = """
import os
from pathlib import Path
import torch
RANK = os.environ.get("RANK", "0")
def note(name):
    with open(Path(__file__).with_name("calls"), "a") as file:
        file.write(name + " " + RANK + "\\n")
    if RANK != "0":
        raise RuntimeError("on rank " + RANK)
def tune(model, vnnlib):
    import arguments
    note("tune")
    arguments.Config["general"]["complete_verifier"] = 'Customized("' + __file__ + '", "verify")'
def attack(x, data_min, data_max):
    note("attack")
    return data_min + torch.rand_like(data_min) * 0
class Status(str):
    pass
def verify(model, vnnlib, onnx_path):
    note("verify")
    return Status("safe-by-rank-" + RANK)
def check(adv_example, adv_output):
    note("check")
    return True
def save(adv_example, adv_output, res_path):
    note("save")
def net():
    torch.manual_seed(int(RANK))
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""


def _case(folder: Path, size: int) -> dict[str, Any]:
    files = Problems.make(folder)
    user = folder / "user.py"
    user.write_text(HOOKS)

    def hook(name: str) -> str:
        return f'Customized("{user}", "{name}")'

    def words(instance: tuple[str, str], *more: str) -> tuple[str, ...]:
        common = files.words("unused", files=instance)
        at = common.index("--results_file")
        return (*common[:at], *common[at + 2 :], "--parallel_timeout_s", "30", *more)

    attacked = ("--pgd_order", "before", "--attack_func", hook("attack"))
    shown = ("--adv_verifier", hook("check"), "--adv_saver", hook("save"), "--save_adv_example")
    commands = {
        "plain": words(files.easy),
        "tuned": words(files.endless, "--adhoc_tuning", hook("tune"), "--bound_prop_method", "crown"),
        "attacked": words(files.violated, *attacked, *shown, "--cex_path", str(folder / "cex.txt")),
    }
    if size == 2:
        commands["list"] = ("--csv_name", str(folder / "list.csv"), *words(files.easy)[4:])
        named = ("--set", f"model.name={hook('net')}", "--set", "model.input_shape=[-1,3]")
        commands["other weights"] = (*words(files.easy)[2:], *named)
    (folder / "list.csv").write_text(f"{','.join(files.easy)},30\n")
    return {"folder": str(folder), "commands": commands}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[list[Any], list[str], str, list[str]]]:
    """By the number of ranks: results, what was printed, calls of user code, and files that were written."""

    def make() -> dict[int, Any]:
        folders = {size: tmp_path_factory.mktemp(f"python{size}") for size in (1, 2, 3)}
        launches = [
            Launch(size, "tests.parallel.python_workers:programs", _case(folder, size))
            for size, folder in folders.items()
        ]
        runs = dict(zip(folders, launch(launches), strict=True))
        return {
            size: (
                run.checked(), run.logs, (folders[size] / "calls").read_text(),
                sorted(path.name for path in folders[size].glob("*-*.txt")),
            )
            for size, run in runs.items()
        }  # fmt: skip

    return once(tmp_path_factory, "python", make)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_first_rank_prints_and_writes_and_all_have_the_answer(found: Any, size: int) -> None:
    results, logs, _, files = found[size]
    assert [one["plain"] for one in results] == [{"safe-incomplete": [0]}] * size
    assert all("plain-0.txt" in files and not name.endswith(tuple(f"-{r}.txt" for r in range(1, size)))
               for name in files)  # fmt: skip
    assert "Result: unsat" in logs[0]
    assert all(log == "" for log in logs[1:]), logs[1:]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_user_code_runs_once_and_all_ranks_go_on_with_what_it_said(found: Any, size: int) -> None:
    results, _, calls, _ = found[size]
    assert [one["tuned"] for one in results] == [{"safe-by-rank-0": [0]}] * size
    assert [one["attacked"] for one in results] == [{"unsafe-pgd": [0]}] * size
    assert sorted(calls.split()) == sorted("tune 0 verify 0 attack 0 check 0 save 0".split())


@pytest.mark.parametrize("size", [2, 3])
def test_what_ranks_cannot_do_or_do_not_share_is_refused_on_all_of_them(found: Any, size: int) -> None:
    results, _, _, _ = found[size]
    for one in results:
        if size == 2:
            assert one["list"][0] == "ConfigError" and "use abcrown --nproc" in one["list"][1]
        for name in ("other weights", "other network") if size == 2 else ("other network",):
            assert one[name][0] == "WorkerFailed" and "the network differs" in one[name][1], one[name]


@pytest.mark.parametrize("size", [2, 3])
def test_a_solver_gives_every_rank_the_same_bounds_as_alone(found: Any, size: int) -> None:
    alone = found[1][0][0]["solver"]
    assert alone[:2] == ("unsat", "safe-incomplete")
    for one in found[size][0]:
        assert one["solver"][:3] == alone[:3] and one["solver"][3] == size
