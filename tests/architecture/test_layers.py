"""Imports go down the layers only (docs/architecture.md), and the check itself sees planted faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.rules import foreign_faults, layer_faults
from tests.architecture.source import sources
from tests.support import ROOT


def test_imports_reach_only_lower_layers() -> None:
    files = sources(ROOT)
    assert any(file.imports() for file in files)
    faults = list(layer_faults(files))
    assert not faults, "\n".join(faults)


def test_libraries_are_imported_where_they_may_be() -> None:
    faults = list(foreign_faults(sources(ROOT)))
    assert not faults, "\n".join(faults)


# A small sound tree; every fault below is one file added to it.
SOUND = {
    "auto_LiRPA/__init__.py": "from auto_LiRPA.bounds import crown\n",
    "auto_LiRPA/errors.py": "class E(Exception): ...\n",
    "auto_LiRPA/perturbations.py": "from auto_LiRPA.values.interval import Interval\n",
    "auto_LiRPA/values/__init__.py": "",
    "auto_LiRPA/values/interval.py": "import torch\nfrom ..errors import E\nclass Interval: ...\n",
    "auto_LiRPA/relaxation/__init__.py": "",
    "auto_LiRPA/relaxation/lines.py": "from auto_LiRPA.values import interval\n",
    "auto_LiRPA/parallel/__init__.py": "",
    "auto_LiRPA/parallel/store.py": "import torch.distributed as dist\nclass Store: ...\n",
    "auto_LiRPA/operators/__init__.py": "",
    "auto_LiRPA/operators/linear.py": "from auto_LiRPA.parallel.store import Store\nfrom . import conv\n",
    "auto_LiRPA/operators/conv.py": "def f():\n    import onnxscript\n",
    "auto_LiRPA/bounds/__init__.py": "",
    "auto_LiRPA/bounds/crown.py": "from auto_LiRPA.operators import linear\nfrom auto_LiRPA.parallel import store\n",
    "complete_verifier/__init__.py": "",
    "complete_verifier/__main__.py": "from complete_verifier.driver.cli import main\n",
    "complete_verifier/outcome.py": "",
    "complete_verifier/events.py": "from complete_verifier.outcome import Outcome\n",
    "complete_verifier/driver/__init__.py": "",
    "complete_verifier/driver/cli.py": "import auto_LiRPA\nfrom complete_verifier import events, outcome\n",
}


def _plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_a_sound_tree_has_no_faults(tmp_path: Path) -> None:
    _plant(tmp_path, SOUND)
    files = sources(tmp_path)
    assert len(files) == len(SOUND)
    assert list(layer_faults(files)) == []
    assert list(foreign_faults(files)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("auto_LiRPA/values/x.py", "import auto_LiRPA.bounds.crown", "values must not import bounds"),
        ("auto_LiRPA/values/x.py", "from auto_LiRPA.operators.linear import f", "values must not import operators"),
        ("auto_LiRPA/values/x.py", "from ..operators import linear", "values must not import operators"),
        ("auto_LiRPA/values/x.py", "from .. import bounds", "values must not import bounds"),
        ("auto_LiRPA/values/x.py", "def f():\n    from auto_LiRPA import bounds", "values must not import bounds"),
        ("auto_LiRPA/values/x.py", "from auto_LiRPA import BoundedModule", "values must not import api"),
        ("auto_LiRPA/values/x.py", "import auto_LiRPA.perturbations", "values must not import api"),
        ("auto_LiRPA/values/x.py", "if TYPE_CHECKING:\n    import auto_LiRPA.bounds", "values must not import bounds"),
        ("auto_LiRPA/values/x.py", "importlib.import_module('auto_LiRPA.graph')", "values must not import graph"),
        ("auto_LiRPA/relaxation/x.py", "import auto_LiRPA.parallel.store", "relaxation must not import parallel"),
        ("auto_LiRPA/parallel/x.py", "from auto_LiRPA.relaxation import lines", "parallel must not import relaxation"),
        (
            "auto_LiRPA/operators/x.py",
            "from auto_LiRPA.parallel import collectives",
            "operators may import of parallel",
        ),
        ("auto_LiRPA/operators/x.py", "from auto_LiRPA.parallel import Store", "operators may import of parallel"),
        ("auto_LiRPA/graph/x.py", "import complete_verifier.outcome", "auto_LiRPA must not import complete_verifier"),
        ("auto_LiRPA/x.py", "import abcrown", "auto_LiRPA must not import abcrown"),
        ("auto_LiRPA/misc/__init__.py", "", "the room 'misc' has no layer"),
        ("complete_verifier/helpers.py", "", "the room 'helpers' has no layer"),
        ("complete_verifier/bab/x.py", "from complete_verifier.driver import cli", "bab must not import driver"),
        ("complete_verifier/spec/x.py", "import complete_verifier.config", "spec must not import config"),
        ("complete_verifier/attack/x.py", "import complete_verifier.branching.b", "attack must not import branching"),
        ("complete_verifier/outcome.py", "import complete_verifier.events", "outcome must not import events"),
        ("complete_verifier/driver/x.py", "from complete_verifier import abcrown", "driver must not import entry"),
        ("complete_verifier/driver/x.py", "import abcrown", "complete_verifier must not import abcrown"),
    ],
)
def test_an_import_that_goes_up_is_seen(tmp_path: Path, name: str, text: str, message: str) -> None:
    _plant(tmp_path, SOUND | {name: text, "complete_verifier/abcrown.py": ""})
    (fault,) = layer_faults(sources(tmp_path))
    assert fault.startswith(name) and message in fault


@pytest.mark.parametrize("library", ["pydantic", "yaml", "rich", "vnnlib", "scipy.sparse", "onnxruntime", "triton"])
def test_a_library_that_auto_lirpa_must_not_need_is_seen(tmp_path: Path, library: str) -> None:
    _plant(tmp_path, SOUND | {"auto_LiRPA/graph/x.py": f"def f():\n    import {library}\n"})
    (fault,) = foreign_faults(sources(tmp_path))
    assert fault == f"auto_LiRPA/graph/x.py:2: auto_LiRPA must not import {library.split('.')[0]}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import rich.live\n", 1),
        ("class A:\n    from scipy import sparse\n", 2),
        ("if x:\n    import onnxruntime\n", 2),
    ],
)
def test_a_heavy_library_at_the_start_of_a_module_is_seen(tmp_path: Path, text: str, line: int) -> None:
    _plant(tmp_path, SOUND | {"complete_verifier/reporting/x.py": text})
    (fault,) = foreign_faults(sources(tmp_path))
    assert fault.startswith(f"complete_verifier/reporting/x.py:{line}: ") and "slow to import" in fault


def test_a_heavy_library_for_type_checkers_or_in_a_function_is_fine(tmp_path: Path) -> None:
    text = "if TYPE_CHECKING:\n    import pandas\ndef f():\n    import pandas\n"
    _plant(tmp_path, SOUND | {"complete_verifier/reporting/x.py": text})
    assert list(foreign_faults(sources(tmp_path))) == []
