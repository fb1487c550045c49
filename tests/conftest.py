"""How every test runs: one thread a worker, the same examples each time, torch left as it was found, `--soak`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch: workers that share the cores would otherwise fight over them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: time on a shared machine says nothing. The short profile repeats itself, the long one explores.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("short", deadline=None, derandomize=True, max_examples=25, suppress_health_check=_SLOW)
settings.register_profile("soak", deadline=None, max_examples=500, print_blob=True, suppress_health_check=_SLOW)
settings.load_profile("short")


# Coverage is counted in the first cases of a parametrised test: the others go the same ways, a third slower if watched.
_COUNTED_CASES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long forms of the tests, and only those")


def _has_long_form(item: pytest.Item) -> bool:
    """Marked `soak`, or takes its counts from the fixture `count`."""
    return item.get_closest_marker("soak") is not None or "count" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --soak the tests marked so are left out; with it, all tests that have no long form are."""
    if config.getoption("--soak"):
        chosen = [item for item in items if _has_long_form(item)]
    else:
        chosen = [item for item in items if item.get_closest_marker("soak") is None]
    left_out = set(items) - set(chosen)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = chosen
    if config.pluginmanager.hasplugin("_cov"):
        _leave_uncounted(chosen)


def _leave_uncounted(items: list[pytest.Item]) -> None:
    """So that the figure of coverage is a lower bound, reached sooner."""
    cases: Counter[str] = Counter()
    for item in items:
        function = item.nodeid.partition("[")[0]
        cases[function] += 1
        if cases[function] > _COUNTED_CASES:
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How many cases to try: `count(60, 200)` is 60 in `make test` and 200 in `make soak`."""
    soak = bool(request.config.getoption("--soak"))
    return lambda short, long: long if soak else short


@pytest.fixture(autouse=True)
def _own_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marker `own_threads`: the processes that the test starts see no thread count but their own."""
    if request.node.get_closest_marker("own_threads") is not None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture(autouse=True)
def _torch_as_found() -> Iterator[None]:
    """Same random numbers whatever ran before; thread count and default dtype are put back."""
    torch = sys.modules.get("torch")  # not imported here: tests without torch start at once
    if torch is None:
        yield
        return
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
