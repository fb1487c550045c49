"""The surface of `BoundedModule`: parameters, nodes, options and refusals as users of upstream know them."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auto_LiRPA
from auto_LiRPA import BoundDataParallel, BoundedModule, BoundedTensor, DistributedContext, PerturbationLpNorm
from auto_LiRPA.bound_ops import BoundLinear, BoundRelu
from auto_LiRPA.bound_request import proven_by
from auto_LiRPA.errors import ConfigError, SpecError, UserError
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.perturbations import Perturbation
from auto_LiRPA.utils import OneHotC, eyeC
from auto_LiRPA.values import Box, Region
from tests.api.networks import Net, cnn, mlp


def _small(seed: int = 5) -> tuple[Net, Tensor, BoundedModule]:
    net = next(n for n in map(mlp, range(seed, seed + 20)) if n.n_out >= 2 and len(n.graph.nodes) >= 5)
    x = torch.rand(2, *net.input_shape, dtype=torch.float64)
    return net, x, BoundedModule(net, x)


def _perturbed(x: Tensor, eps: float = 0.1) -> BoundedTensor:
    return BoundedTensor(x, PerturbationLpNorm(eps=eps))


def _convnet() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def test_a_torch_module_from_start_to_end() -> None:
    """Export, a weight change in place, a move to float64, a checkpoint: the graph is always the module's."""
    net, x = _convnet(), torch.rand(2, 1, 8, 8)
    bounded = BoundedModule(net, x, device="cpu")
    assert list(bounded.state_dict()) == list(net.state_dict()) == [n for n, _ in bounded.named_parameters()]
    assert torch.equal(bounded(x), net(x)) and torch.equal(bounded(_perturbed(x)), net(x))
    assert all(a is b for a, b in zip(bounded.parameters(), net.parameters(), strict=True))

    def check() -> Tensor:
        example = x.to(next(net.parameters()).dtype)
        lower, upper = bounded.compute_bounds(x=(_perturbed(example, 0.01),), method="CROWN")
        y = net(example)
        assert bool(((lower <= y + 1e-5) & (y <= upper + 1e-5)).all())
        assert float((upper - lower).detach().max()) < 1.0
        return lower

    first = check()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    second = check()
    assert not torch.equal(first, second)
    kept = {name: value.clone() for name, value in bounded.state_dict().items()}
    bounded.double()
    assert next(net.parameters()).dtype == torch.float64
    assert check().dtype == torch.float64
    other = _convnet()
    other.load_state_dict(kept)
    bounded.float().load_state_dict(other.state_dict())
    assert torch.allclose(check(), second, atol=1e-6)
    again = BoundedModule(bounded, x)
    assert torch.equal(again.compute_bounds(x=(_perturbed(x, 0.01),))[0], check())
    bounded.train()
    assert net.training and all(m.training for m in net.modules())


def test_parallel_settings_reach_the_engine() -> None:
    """A context or its settings: same bounds, and the context counts the tiles."""
    net, x, bounded = _small()
    expected = bounded.compute_bounds(x=(_perturbed(x),))[0]
    context = DistributedContext.single(settings=ParallelSettings(tile_rows=1))
    lower, _ = BoundedModule(net, x, parallel=context).compute_bounds(x=(_perturbed(x),))
    assert torch.allclose(lower, expected, rtol=1e-12) and context.counters.tiles >= net.n_out


def test_nodes() -> None:
    """Names, views and their bounds after a call; a wrong name tells the nearest one."""
    net, x, bounded = _small()
    names = [node.name for node in bounded.nodes()]
    assert bounded.input_name == bounded.root_names == [names[0]] and bounded.output_name == [bounded.final_name]
    assert bounded.final_node().name == bounded.final_name and bounded.roots()[0].name == names[0]
    relu = bounded[bounded.relus[0]]
    (before,) = relu.inputs
    assert isinstance(relu.op, BoundRelu) and isinstance(before.op, BoundLinear)
    assert before.lower is None and before.output_name == [relu.name] and relu.requires_input_bounds == [0]
    bounded.compute_bounds(x=(_perturbed(x),))
    box = bounded[before.name]
    assert box.lower is not None and box.lower.shape == box.output_shape and box.interval[1] is box.upper
    split, activations = bounded.get_split_nodes()
    assert [n.name for n in split] == [bounded[r].inputs[0].name for r in bounded.relus]
    assert activations[before.name][0][0].name == relu.name
    with pytest.raises(ConfigError, match=f"no node '{names[-1]}x'.*perhaps '{names[-1]}'"):
        bounded[names[-1] + "x"]


def test_parallel_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="parallel is a dict: give"):
        BoundedModule(nn.Linear(2, 2), torch.zeros(1, 2), parallel={"mode": "fsdp"})  # type: ignore[arg-type]


def test_intermediate_bounds_in_and_out(tmp_path: Path) -> None:
    """Saved boxes taken back as they are give the same bounds; wider ones looser; reference ones are intersected."""
    _, x, bounded = _small()
    lower, upper = bounded.compute_bounds(x=(_perturbed(x, 0.3),), method="CROWN")
    saved = bounded.save_intermediate(tmp_path / "boxes.pt")
    loaded = torch.load(tmp_path / "boxes.pt")
    assert saved.keys() == loaded.keys() and torch.equal(saved[bounded.final_name][0], lower)
    same, _ = bounded.compute_bounds(x=(_perturbed(x, 0.3),), method="CROWN", interm_bounds=saved)
    assert torch.allclose(same, lower, rtol=1e-9)
    wide = {name: (low - 0.5, high + 0.5) for name, (low, high) in saved.items()}
    looser, _ = bounded.compute_bounds(x=(_perturbed(x, 0.3),), method="CROWN", interm_bounds=wide)
    assert bool((looser <= lower + 1e-9).all()) and bool((looser < lower).any())
    back, _ = bounded.compute_bounds(x=(_perturbed(x, 0.3),), method="CROWN", reference_bounds=wide)
    assert torch.allclose(back, lower, rtol=1e-9)
    tight, _ = bounded.compute_bounds(x=(_perturbed(x, 0.3),), method="IBP", reference_bounds=saved)
    plain, _ = bounded.compute_bounds(x=(_perturbed(x, 0.3),), method="IBP")
    assert bool((tight >= plain - 1e-12).all()) and bool((tight > plain).any())


@pytest.mark.parametrize("method", ["CROWN", "CROWN-IBP", "forward+backward", "CROWN-Optimized"])
def test_coefficients_bound_the_output(method: str) -> None:
    """lA x + lbias <= f(x) <= uA x + ubias for points of the region, and their ends are the bounds (without IBP)."""
    net, x, _ = _small()
    bounded = BoundedModule(net, x, bound_opts={"compare_crown_with_ibp": False})
    needed = {bounded.output_name[0]: {bounded.input_name[0]}}
    given = _perturbed(x, 0.2)
    lower, upper, found = bounded.compute_bounds(x=(given,), method=method, return_A=True, needed_A_dict=needed)
    a = found[bounded.output_name[0]][bounded.input_name[0]]
    assert a["lA"].shape == (2, net.n_out, *net.input_shape) and a["ubias"].shape == (2, net.n_out)
    for _ in range(50):
        point = x + 0.2 * (2 * torch.rand_like(x) - 1)
        y = net(point)
        below = (a["lA"] * point.unsqueeze(1)).flatten(2).sum(-1) + a["lbias"]
        above = (a["uA"] * point.unsqueeze(1)).flatten(2).sum(-1) + a["ubias"]
        assert bool((below <= y + 1e-9).all() & (y <= above + 1e-9).all())
    end = (a["lA"] * x.unsqueeze(1)).flatten(2).sum(-1) - 0.2 * a["lA"].abs().flatten(2).sum(-1) + a["lbias"]
    if method != "CROWN-Optimized":
        assert torch.allclose(end, lower, rtol=1e-9)
    *_, half = bounded.compute_bounds(x=(given,), method=method, return_A=True, bound_upper=False)
    assert half[bounded.final_name][bounded.input_name[0]]["uA"] is None


def test_final_node_name() -> None:
    """An inner node as the output: its bounds hold its values."""
    net, x, bounded = _small()
    name = bounded.relus[0]
    value = bounded(x, final_node_name=name)
    lower, upper = bounded.compute_bounds(x=(_perturbed(x),), final_node_name=name)
    assert bool(((lower <= value + 1e-9) & (value <= upper + 1e-9)).all()) and lower.shape == value.shape


def test_reuse_ibp_and_flags() -> None:
    """`IBP=True` and `method=None` as upstream reads them."""
    _, x, bounded = _small()
    with pytest.raises(UserError, match="no earlier IBP result"):
        bounded.compute_bounds(method=None, reuse_ibp=True)
    ibp = bounded.compute_bounds(x=(_perturbed(x),), IBP=True, method=None)
    bounded.compute_bounds(x=(_perturbed(x),), method="CROWN")
    assert all(torch.equal(a, b) for a, b in zip(ibp, bounded.compute_bounds(method=None, reuse_ibp=True), strict=True))
    crown_ibp, _ = bounded.compute_bounds(IBP=True, method="backward")
    assert torch.equal(crown_ibp, bounded.compute_bounds(method="CROWN-IBP")[0])
    forward_crown, _ = bounded.compute_bounds(forward=True, method="backward")
    assert torch.equal(forward_crown, bounded.compute_bounds(method="forward+backward")[0])


def test_shorthand_specifications() -> None:
    """eyeC and OneHotC are dense matrices in short."""
    net, x, bounded = _small()
    eye, _ = bounded.compute_bounds(x=(_perturbed(x),), C=eyeC((net.n_out, 2, net.n_out)))
    dense, _ = bounded.compute_bounds(C=torch.eye(net.n_out, dtype=torch.float64).unsqueeze(0))
    assert torch.equal(eye, dense)
    index, coeffs = torch.tensor([[1, 0]]), torch.tensor([[2.0, -3.0]])
    one_hot, _ = bounded.compute_bounds(C=OneHotC((1, 2, net.n_out), "cpu", index, coeffs))
    rows = torch.zeros(2, 1, net.n_out, dtype=torch.float64)
    rows[0, 0, 1], rows[1, 0, 0] = 2.0, -3.0
    assert torch.equal(one_hot, bounded.compute_bounds(C=rows)[0])


def test_a_perturbation_of_ones_own() -> None:
    """A subclass says which region it means; nothing else is needed."""

    class Upwards(Perturbation):
        def region(self, x: Tensor) -> Region:
            return Box(x, x + 0.2)

    net, x, bounded = _small()
    ours = bounded.compute_bounds(x=(BoundedTensor(x, Upwards()),))[0]
    box = PerturbationLpNorm(norm=math.inf, x_L=x, x_U=x + 0.2)
    assert torch.equal(ours, bounded.compute_bounds(x=(BoundedTensor(x, box),))[0])


def test_data_parallel_passes_through() -> None:
    """The wrapper of training scripts, on one device."""
    _, x, bounded = _small()
    wrapped = BoundDataParallel(bounded)
    lower, _ = wrapped(method_opt="compute_bounds", x=(_perturbed(x),), method="IBP")
    assert torch.equal(lower, bounded.compute_bounds(method="IBP")[0]) and torch.equal(wrapped(x), bounded(x))
    with pytest.raises(UserError, match="one device a process"):
        BoundDataParallel(bounded, device_ids=[0, 1])


UNSUPPORTED: dict[str, Any] = {
    "aux": 1,
    "reuse_alpha": True,
    "average_A": True,
    "intermediate_constr": 1,
    "alpha_idx": 1,
    "aux_reference_bounds": {},
    "need_A_only": True,
    "cutter": 1,
    "decision_thresh": 0.0,
    "update_mask": 1,
    "ibp_nodes": [],
}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_parameters_are_refused_by_name(name: str) -> None:
    """Anything but the default is one line with the parameter's name, never silence."""
    _, x, bounded = _small()
    with pytest.raises(UserError, match=f"compute_bounds: {name}: not supported yet"):
        bounded.compute_bounds(x=(_perturbed(x),), **{name: UNSUPPORTED[name]})


def _bad_calls(net: Net, x: Tensor) -> dict[str, tuple[dict[str, Any], str]]:
    """Broken calls -> what the one line must say."""
    good = (_perturbed(x),)
    eye = torch.eye(net.n_out, dtype=x.dtype).unsqueeze(0)
    first = net.graph.nodes[1].name
    box = (torch.zeros(2, *net.graph.nodes[1].shape), torch.zeros(2, *net.graph.nodes[1].shape) - 1)
    upside_down = PerturbationLpNorm(x_L=x, x_U=x - 1)
    nan = torch.full_like(x, math.nan)
    return {
        "no x": ({"x": None}, "x is missing"),
        "two inputs": ({"x": (*good, *good)}, "x has 2 inputs"),
        "a list of numbers": ({"x": ([1.0],)}, "expected a BoundedTensor"),
        "shape": ({"x": (_perturbed(x[:, :-1]),)}, "x has the shape"),
        "empty batch": ({"x": (_perturbed(x[:0]),)}, "x has the shape"),
        "element type": ({"x": (_perturbed(x.float()),)}, "torch.float32"),
        "box upside down": ({"x": (BoundedTensor(x, upside_down),)}, "x_L > x_U"),
        "NaN in x": ({"x": (BoundedTensor(nan, PerturbationLpNorm(eps=0.1)),)}, "NaN"),
        "NaN without perturbation": ({"x": (nan,)}, "NaN"),
        "NaN in x, ball": ({"x": (BoundedTensor(nan, PerturbationLpNorm(0.1, 2.0)),)}, "NaN"),
        "negative radius": ({"x": (_perturbed(x, -0.1),)}, "eps must be 0 or more"),
        "infinite radius": ({"x": (_perturbed(x, math.inf),)}, "eps must be 0 or more, and finite"),
        "perturbation": ({"x": (BoundedTensor(x, 3),)}, "expected a subclass of Perturbation"),  # type: ignore[arg-type]
        "C shape": ({"x": good, "C": eye[..., :-1]}, "C has the shape"),
        "C without batch": ({"x": good, "C": eye[0]}, "C has the shape"),
        "C of another batch": ({"x": good, "C": eye.expand(3, -1, -1)}, "C has the shape"),
        "C element type": ({"x": good, "C": eye.float()}, "make them alike"),
        "C is a list": ({"x": good, "C": [[1.0]]}, "expected a tensor"),
        "method": ({"x": good, "method": "CRWON"}, "perhaps crown"),
        "later method": ({"x": good, "method": "dynamic-forward"}, "not supported yet"),
        "A of IBP": ({"x": good, "method": "IBP", "return_A": True}, "return_A"),
        "A of another node": ({"x": good, "return_A": True, "needed_A_dict": {first: set()}}, "needed_A_dict"),
        "unknown node": ({"x": good, "interm_bounds": {"nope": box}}, "no node 'nope'"),
        "box of another shape": ({"x": good, "interm_bounds": {first: (x[:1, :1], x[:1, :1])}}, "has the shape"),
        "given box upside down": ({"x": good, "interm_bounds": {first: box}}, "lower bound is above"),
        "final node": ({"x": good, "final_node_name": "nope"}, "no node 'nope'"),
    }


@pytest.mark.parametrize("name", sorted(_bad_calls(*_small()[:2])))
def test_bad_calls_end_in_one_line(name: str) -> None:
    """What is wrong and how to mend it, as a UserError of one line."""
    net, x, bounded = _small()
    arguments, said = _bad_calls(net, x)[name]
    with pytest.raises(UserError, match=said) as caught:
        bounded.compute_bounds(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_construction() -> None:
    """The same at the door."""
    net, x, bounded = _small()
    with pytest.raises(UserError, match="one tensor is expected"):
        BoundedModule(net, (x, x))
    with pytest.raises(ConfigError, match="method_opt"):
        bounded(x, method_opt="bound")
    with pytest.raises(SpecError, match="x has the shape"):
        bounded(x[:, :1], final_node_name=bounded.relus[0])


def test_names_that_can_be_imported_but_not_used_yet() -> None:
    """They exist for old import lines, and say so when they are used."""
    for name in ("PerturbationL0Norm", "PerturbationLinear", "PerturbationSynonym", "CrossEntropyWrapper"):
        with pytest.raises(UserError, match=f"{name}: not supported yet"):
            getattr(auto_LiRPA, name)(1)
    with pytest.raises(UserError, match="BoundedParameter"):
        auto_LiRPA.BoundedParameter(torch.zeros(1), PerturbationLpNorm(eps=0.1))


def test_options_change_what_they_name(caplog: pytest.LogCaptureFixture) -> None:
    """Lower lines, intersection, optimisation settings; keys that cannot matter are accepted, others warned about."""
    net = cnn(4)
    x = torch.rand(1, *net.input_shape, dtype=torch.float64)
    bounded = BoundedModule(net, x, bound_opts={"conv_mode": "matrix", "verbosity": 2, "minimum_sparsity": 0.3})
    assert not caplog.records
    given = _perturbed(x, 0.4)
    found = {}
    for rule in ("adaptive", "same-slope", "zero-lb", "one-lb", "reversed-adaptive"):
        bounded.set_bound_opts({"activation_bound_option": rule, "compare_crown_with_ibp": False})
        found[rule] = bounded.compute_bounds(x=(given,), method="CROWN")[0]
    assert torch.equal(found["adaptive"], found["reversed-adaptive"])
    assert all(not torch.equal(found["adaptive"], found[r]) for r in ("same-slope", "zero-lb", "one-lb"))
    bounded.set_bound_opts({"optimize_bound_args": {"iteration": 1}, "activation_bound_option": "adaptive"})
    once = bounded.compute_bounds(x=(given,), method="alpha-CROWN")[0]
    assert torch.allclose(once, found["adaptive"], rtol=1e-9), "one iteration is CROWN"
    bounded.set_bound_opts({"optimize_bound_args": {"lr_alpha": 0.1, "iteration": 10}})
    assert bounded._options.bounds.alpha.iterations == 10 and not bounded._options.bounds.compare_with_ibp
    assert float(bounded.compute_bounds(x=(given,), method="alpha-CROWN")[0].sum()) > float(once.sum())
    with caplog.at_level(logging.WARNING):
        bounded.set_bound_opts({"use_full_conv_alpha": False})
    assert "use_full_conv_alpha" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        ({"activation_bound_optoin": "adaptive"}, "perhaps 'activation_bound_option'"),
        ({"activation_bound_option": "adaptve"}, "perhaps 'adaptive'"),
        ({"compare_crown_with_ibp": 1}, "expected True or False"),
        ({"crown_batch_size": 0}, "whole number of 1 or more"),
        ({"optimize_bound_args": {"iterations": 3}}, "perhaps 'iteration'"),
        ({"optimize_bound_args": {"iteration": 2.5}}, "whole number"),
        ({"optimize_bound_args": {"lr_alpha": -1}}, "number of 0 or more"),
        ({"optimize_bound_args": {"loss_reduction_func": "median"}}, "expected one of sum"),
        ({"optimize_bound_args": 3}, "expected a dictionary"),
        ({"loss_fusion": True}, "not supported yet"),
        ({"optimize_bound_args": {"interm_alpha": "kept"}}, "perhaps 'keep'"),
    ],
)
def test_wrong_options_are_errors(opts: dict[str, object], said: str) -> None:
    """Unknown keys name the nearest one; wrong values say what is expected."""
    net, x, bounded = _small()
    for make in (lambda: BoundedModule(net, x, bound_opts=opts), lambda: bounded.set_bound_opts(opts)):
        with pytest.raises(ConfigError, match=said):
            make()


def test_stop_rules_reach_the_optimisation() -> None:
    """A criterion that is met at once leaves CROWN's bounds; one that never is goes on. Time does the same."""
    net, x, _ = _small()
    given = _perturbed(x, 0.4)

    def bounds(**args: object) -> Tensor:
        opts = {"compare_crown_with_ibp": False, "optimize_bound_args": {"iteration": 8, **args}}
        return BoundedModule(net, x, bound_opts=opts).compute_bounds(x=(given,), method="alpha-CROWN")[0]

    crown = BoundedModule(net, x, bound_opts={"compare_crown_with_ibp": False}).compute_bounds(x=(given,))[0]
    assert torch.allclose(bounds(stop_criterion_func=auto_LiRPA.utils.stop_criterion_min(-1e9)), crown)
    assert torch.allclose(bounds(max_time=0.0), crown)
    assert float(bounds(stop_criterion_func=lambda bound: False).sum()) > float(crown.sum())


def test_stop_rules_ask_for_every_row() -> None:
    """A rule that answers row by row closes an element only when all its rows are closed; NaN closes nothing."""
    lower = torch.tensor([[1.0, -1.0], [1.0, 2.0], [math.nan, 2.0]])
    for rule in (auto_LiRPA.utils.stop_criterion_batch(0), auto_LiRPA.utils.stop_criterion_min(0)):
        proven = proven_by(rule)
        assert proven is not None and proven(lower).tolist() == [False, True, False]
    always, never = proven_by(lambda bound: True), proven_by(None)
    assert always is not None and always(lower).tolist() == [True] * 3 and never is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu() -> None:
    """Moved by `device=`, all methods give what the CPU gives; a tensor left behind is an error."""
    net, x, _ = _small()
    methods = ("IBP", "CROWN-IBP", "CROWN", "forward", "forward+backward", "CROWN-Optimized")
    here = {m: BoundedModule(net, x).compute_bounds(x=(_perturbed(x),), method=m) for m in methods}
    bounded = BoundedModule(net, x, device="cuda")
    with pytest.raises(SpecError, match="on cpu, the network"):
        bounded.compute_bounds(x=(_perturbed(x),))
    for method, expected in here.items():
        bounds = bounded.compute_bounds(x=(_perturbed(x).to("cuda"),), method=method)
        for ours, wanted in zip(bounds, expected, strict=True):
            assert ours.is_cuda and torch.allclose(ours.cpu(), wanted, rtol=1e-6, atol=1e-8), method
