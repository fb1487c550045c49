"""References to user code are read as data; only well-formed ones are imported, and only when resolved."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import CustomizedRef, NamedCall, load_config, parse_customized, parse_reference, resolve

HOSTILE = [
    "__import__('os').system('true')",
    "os.system('true')",
    "Customized(__import__('os').system('true'), 'f')",
    "Customized('a.py', 'f', __import__('os'))",
    "Customized('a.py', 'f', x=open('/etc/passwd').read())",
    "Customized('a.py', 'f')()",
    "Customized('a.py', 'f').func",
    "Customized('a.py', 'f', [x for x in range(3)])",
    "Customized('a.py', 'f', lambda: 0)",
    "Customized('a.py', 'f', f'{1}')",
    "Customized('a.py', 'f', *['a'])",
    "Customized('a.py', 'f', **{'a': 1})",
    "Customized('a.py', 'f', {**{}})",
    "Customized('a.py', 'f', 2**9999999)",
    "Customized('a.py', 'f', 'a' * 999999999)",
    "Customized('a.py', 'f', 1/0)",
    "Customized('a.py', 'f', x)",
    "Customized('a.py', 'f', ...)",
    "Customized('a.py', 'f', a=1, a=2)",
    "Customized('a.py', 'f'); import os",
    "Customized('a.py',\n'f'\nimport os",
    "Customized('a b', 'f')",
    "Customized('os;x', 'f')",
    "Customized('a.py', 'f.__globals__')",
    "Customized('a.py', 'f()')",
    "Customized('a.py')",
    "Customized()",
    "Customized(1, 2)",
    "Customized('a.py', 'f'" + ", 1" * 3000 + ")",
    "Customized('a.py', 'f', " + "[" * 150 + "]" * 150,
    "f(" + "1+" * 900 + "1)",
    "(" * 1900,
    "-" * 3900 + "1",
    "f'{x}'",
    "a if b else c",
    "a.b",
    "a[0]",
    "3",
    "",
    "\0",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_but_a_name_or_a_call_with_literals_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["Customized('a.py', 'f', __import__('os'))", "os.system('true')"])
def test_they_are_refused_when_the_configuration_is_loaded(text: str) -> None:
    for flag in ("--adhoc_tuning", "--model", "--pgd_loss", "--onnx_loader", "--graph_optimizer"):
        with pytest.raises(ConfigError, match=f"^{flag}: "):
            load_config([flag, text])
    with pytest.raises(ConfigError):
        load_config(["--complete_verifier", text])


def test_a_data_set_is_a_name_unless_it_asks_for_user_code() -> None:
    assert load_config(["--dataset", "CIFAR-10 (50%)"]).config.data.dataset == "CIFAR-10 (50%)"
    with pytest.raises(ConfigError):
        load_config(["--dataset", "Customized('a.py', open('x'))"])


def test_arguments_are_literals() -> None:
    ref = parse_customized(
        'Customized("a/b.py", "load", -1, 2/255, [1, (2.5, None)], eps=1e-3, how={"x": True}, s="t")'
    )
    assert ref == CustomizedRef(
        "a/b.py", "load", (-1, 2 / 255, [1, (2.5, None)]), {"eps": 1e-3, "how": {"x": True}, "s": "t"}
    )


def test_names_and_calls_of_names_are_built_in() -> None:
    assert parse_reference("mnist_cnn_4layer") == NamedCall("mnist_cnn_4layer", (), {})
    assert parse_reference(" mnist_fc(width=256) ") == NamedCall("mnist_fc", (), {"width": 256})
    with pytest.raises(ConfigError, match="expected Customized"):
        parse_customized("mnist_cnn_4layer")


def _module(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_is_found_below_root_path_or_beside_the_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "def tune(a, b, c=0):\n    return (WHERE, a, b, c)\n"
    _module(tmp_path / "root", "t.py", "WHERE = 'root'\n" + text)
    _module(tmp_path / "beside", "t.py", "WHERE = 'beside'\n" + text)
    ref = parse_customized('Customized("t.py", "tune", 1, c=3)')
    with caplog.at_level(logging.INFO):
        assert resolve(ref, str(tmp_path / "root"), tmp_path / "beside")(2) == ("root", 1, 2, 3)
        assert resolve(ref, "", tmp_path / "beside")(2) == ("beside", 1, 2, 3)
    assert [record.getMessage() for record in caplog.records] == [
        f"running user code: importing {tmp_path / where / 't.py'}" for where in ("root", "beside")
    ]


def test_hooks_of_one_file_share_its_state(tmp_path: Path) -> None:
    _module(tmp_path, "s.py", "SEEN = []\ndef put(x):\n    SEEN.append(x)\ndef get():\n    return SEEN\n")
    put = resolve(parse_customized('Customized("s.py", "put")'), "", tmp_path)
    get = resolve(parse_customized('Customized("s.py", "get")'), "", tmp_path)
    put(3)
    assert get() == [3]


def test_modules_come_from_the_custom_package_or_with_a_warning_from_the_top_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _module(tmp_path / "custom", "inside_abc.py", "def f():\n    return 'custom'\n")
    _module(tmp_path, "outside_abc.py", "def f():\n    return 'top'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "custom", raising=False)
    assert resolve(parse_customized('Customized("inside_abc", "f")'), "", None)() == "custom"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert resolve(parse_customized('Customized("outside_abc", "f")'), "", None)() == "top"
    assert "outside_abc is not in the custom package" in caplog.text


BROKEN = {
    "syntax.py": ("def f(:\n", "cannot be imported: SyntaxError"),
    "imports.py": ("import nothing_of_that_name\n", "cannot be imported: ModuleNotFoundError"),
    "names.py": ("x = undefined\n", "cannot be imported: NameError"),
    "lacks.py": ("def g():\n    pass\n", 'no callable "f"; the module defines: g'),
    "value.py": ("f = 3\n", 'no callable "f"'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_user_code_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    text, message = BROKEN[name]
    _module(tmp_path, name, text)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(parse_customized(f'Customized("{name}", "f")'), "", tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.py: no such file"):
        resolve(parse_customized('Customized("nowhere.py", "f")'), "", tmp_path)
    with pytest.raises(ConfigError, match="no module nowhere_abc"):
        resolve(parse_customized('Customized("nowhere_abc", "f")'), "", None)
    with pytest.raises(ConfigError, match="a module of Python itself"):
        resolve(parse_customized('Customized("os", "system", "true")'), "", None)
