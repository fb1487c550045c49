"""Bounds under hostile process-wide precision flags: the same bits, and the flags as they were found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.values import Region
from tests.api.networks import Net

PAIRS = (("generic", "all"), *((b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")))
HAS_PAIRS = hasattr(torch._C, "_get_fp32_precision_getter")


def _set(backend: str, operation: str, value: str) -> Callable[[], None]:
    def act() -> None:
        if HAS_PAIRS:
            torch._C._set_fp32_precision_setter(backend, operation, value)

    return act


def _allow_cudnn() -> None:
    torch.backends.cudnn.allow_tf32 = True


def _allow_cublas() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


# Old and new ways to ask for less precision, also such as contradict each other (reading the old flags then raises).
HOSTILE: dict[str, Callable[[], None]] = {
    "old medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old high": lambda: torch.set_float32_matmul_precision("high"),
    "old cudnn": _allow_cudnn,
    "old cublas": _allow_cublas,
    "new all tf32": _set("generic", "all", "tf32"),
    "new all bf16": _set("generic", "all", "bf16"),
    "new cpu bf16": _set("mkldnn", "all", "bf16"),
    "new cpu matmul bf16": _set("mkldnn", "matmul", "bf16"),
    "new cuda tf32": _set("cuda", "all", "tf32"),
    "new cpu matmul ieee": _set("mkldnn", "matmul", "ieee"),
}


def _own_values() -> dict[tuple[str, str], str]:
    """What each entry was set to itself, without what it inherits. Clears the parents."""
    values = {}
    for pair in PAIRS:
        if pair[1] == "all":
            values[pair] = torch._C._get_fp32_precision_getter(*pair)
            torch._C._set_fp32_precision_setter(*pair, "none")
    return values | {p: torch._C._get_fp32_precision_getter(*p) for p in PAIRS if p[1] != "all"}


def _state() -> list[object]:
    """All flags as a program sees them; the old ones may raise."""
    found: list[object] = [torch._C._get_fp32_precision_getter(*p) for p in PAIRS] if HAS_PAIRS else []
    readers: tuple[Callable[[], object], ...] = (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
    )
    for read in readers:
        try:
            found.append(read())
        except RuntimeError:
            found.append("contradiction")
    return [*found, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic]


@pytest.fixture(autouse=True)
def _flags_as_found() -> Iterator[None]:
    start = _own_values() if HAS_PAIRS else {}

    def put_back() -> None:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        for pair in sorted(start, key=lambda p: (p[1] != "all", p)):
            torch._C._set_fp32_precision_setter(*pair, start[pair])

    put_back()
    yield
    put_back()
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, False


class _Spy(PerturbationLpNorm):
    """Notes the flags from inside a bounding call."""

    seen: list[object]

    def region(self, x: Tensor) -> Region:
        self.seen = [*_state(), torch.is_autocast_enabled("cpu")]
        return super().region(x)


def _network() -> tuple[Net, Tensor]:
    """Large enough for the CPU's reduced-precision kernels, convolutions included."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 16, 3, padding=1)
    layers = [conv, nn.ReLU(), nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)]
    return Net((4, 8, 8), layers), torch.rand(4, 4, 8, 8)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_under_every_hostile_flag(device: str) -> None:
    """Each flag and each pair of flags: bounds equal bit for bit, full precision inside, flags as found outside."""
    net, x = _network()
    x = x.to(device)
    bounded = BoundedModule(net.to(device), x)
    ptb = _Spy(eps=0.01)
    clean = {m: bounded.compute_bounds(x=(BoundedTensor(x, ptb),), method=m) for m in ("IBP", "CROWN-IBP", "CROWN")}
    changed = False
    for first, second in [*((name, name) for name in HOSTILE), *itertools.permutations(HOSTILE, 2)]:
        HOSTILE[first]()
        HOSTILE[second]()
        before = _state()
        changed = changed or not torch.equal(_product(device), _exact_product(device))
        method = "CROWN" if first == second else "CROWN-IBP"
        bounds = bounded.compute_bounds(x=(BoundedTensor(x, ptb),), method=method)
        place = f"{first}, then {second}"
        assert all(torch.equal(a, b) for a, b in zip(bounds, clean[method], strict=True)), place
        assert _state() == before, place
        if HAS_PAIRS:
            assert set(ptb.seen[: len(PAIRS)]) == {"ieee"}, place
        assert ptb.seen[len(PAIRS) if HAS_PAIRS else 0] == "highest", place
    if not changed:
        pytest.skip("this processor computes the same with and without the flags: equality shows nothing here")


def _product(device: str) -> Tensor:
    """What the flags make of a plain product, where they let it be computed at all."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.rand(n, 512, generator=generator).to(device) for n in (64, 512))
    return left @ right


def _exact_product(device: str) -> Tensor:
    with full_precision():
        return _product(device)


@pytest.mark.skipif(not HAS_PAIRS, reason="this torch has the old precision flags only")
def test_inherited_flags_stay_inherited() -> None:
    """A flag that follows its parent before a bounding call follows it afterwards too."""
    torch._C._set_fp32_precision_setter("generic", "all", "bf16")
    with full_precision():
        pass
    assert torch._C._get_fp32_precision_getter("mkldnn", "matmul") == "bf16"
    torch._C._set_fp32_precision_setter("generic", "all", "none")
    assert torch._C._get_fp32_precision_getter("mkldnn", "matmul") == "none"


def test_autocast_and_cudnn_choices_are_off_inside() -> None:
    """Mixed precision around a bounding call does not reach it, and is back afterwards."""
    net, x = _network()
    bounded = BoundedModule(net, x)
    ptb = _Spy(eps=0.01)
    clean = bounded.compute_bounds(x=(BoundedTensor(x, ptb),), method="CROWN")
    torch.backends.cudnn.benchmark = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bounds = bounded.compute_bounds(x=(BoundedTensor(x, ptb),), method="CROWN")
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(a, b) for a, b in zip(bounds, clean, strict=True))
    assert ptb.seen[-3:] == [False, True, False], "benchmark, deterministic, autocast"
    assert torch.backends.cudnn.benchmark


def test_flags_come_back_after_an_error() -> None:
    """An exception inside leaves no trace in the flags."""
    torch.set_float32_matmul_precision("medium")
    before = _state()
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert _state() == before


@pytest.mark.parametrize("name", HOSTILE)
def test_old_flags_can_be_read_inside(name: str) -> None:
    """Libraries do, torch's exporter among them; torch raises where old and new flags contradict each other."""
    HOSTILE[name]()
    with full_precision():
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 is False
