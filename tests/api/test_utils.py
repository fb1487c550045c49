"""Tools and schedules for training scripts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from auto_LiRPA import eps_scheduler, utils
from auto_LiRPA.errors import ConfigError


def test_margins_by_their_definition() -> None:
    """Row by row ``y_label - y_other``, other classes in order, in x's type."""
    label = torch.tensor([2, 0, 3])
    c = utils.get_spec_matrix(torch.zeros(3, 5, dtype=torch.float64), label, 4)
    assert c.shape == (3, 3, 4) and c.dtype == torch.float64
    y = torch.randn(3, 4, dtype=torch.float64)
    for i in range(3):
        others = [k for k in range(4) if k != label[i]]
        assert torch.allclose(c[i] @ y[i], torch.stack([y[i, label[i]] - y[i, k] for k in others]))


def test_meters_and_timers() -> None:
    """Weighted means, last figures; seconds add up; a clock that was not started is an error."""
    meter = utils.MultiAverageMeter()
    meter.update("loss", 1.0, 3)
    meter.update("loss", torch.tensor(5.0), 1)
    assert meter.avg("loss") == 2.0 and meter.last("loss") == 5.0 and "loss=5.0000 (2.0000)" in repr(meter)
    assert meter.avg("other") == 0.0
    timer = utils.MultiTimer()
    timer.start("a")
    timer.add("a")
    assert 0 <= timer.total("a") < 5 and "a=" in repr(timer)
    with pytest.raises(ConfigError, match="was not started"):
        timer.add("a")


def test_reductions() -> None:
    """Names and functions mean the same."""
    x = torch.tensor([[1.0, 5.0, 3.0]])
    wanted = {"sum": 9.0, "mean": 3.0, "max": 5.0, "min": 1.0}
    for name, value in wanted.items():
        assert utils.reduction_str2func(name)(x).tolist() == [[value]]
    assert utils.reduction_str2func(utils.reduction_max) is utils.reduction_max
    with pytest.raises(ConfigError, match="median"):
        utils.reduction_str2func("median")


def test_stop_criteria() -> None:
    """Which elements are done; NaN never is."""
    x = torch.tensor([[1.0, 2.0], [-1.0, 3.0], [-1.0, -2.0], [math.nan, 5.0]])

    def done(rule: utils.StopCriterion) -> list[bool]:
        return rule(x).reshape(4, -1).all(1).tolist()

    assert done(utils.stop_criterion_min(0)) == done(utils.stop_criterion_all(0)) == [True, False, False, False]
    assert done(utils.stop_criterion_batch(0)) == [True, False, False, False]
    assert done(utils.stop_criterion_max(0))[:3] == [True, True, False]
    assert done(utils.stop_criterion_batch_any(0))[:3] == [True, True, False]
    assert done(utils.stop_criterion_batch_topk(0, k=2)) == [True, False, False, False]
    assert done(utils.stop_criterion_placeholder(0)) == [False] * 4
    assert done(utils.stop_criterion_general(0, torch.tensor([1, 1])))[:3] == [True, False, False]
    assert done(utils.stop_criterion_general(0))[:3] == [True, True, False]
    assert done(utils.stop_criterion_min(torch.tensor([[0.0], [-2.0], [0.0], [0.0]]))) == [True, True, False, False]
    assert utils.multi_spec_keep_func_all(x > 0).tolist() == [True, False, False, False]


def test_flatten() -> None:
    """All axes after the batch."""
    assert utils.Flatten()(torch.zeros(2, 3, 4)).shape == (2, 12)


SCHEDULES = {
    "FixedScheduler": "",
    "LinearScheduler": "start=2,length=3",
    "RangeScheduler": "start=2,length=3,start_eps=0.2,end_eps=0.9",
    "BiLinearScheduler": "start=2,length=3,mid=0.5,mid_eps=0.2",
    "SmoothedScheduler": "start=2,length=3",
    "AdaptiveScheduler": "start=2,max_step=0.4,min_step=0.1",
}


def _run(name: str, epochs: int = 8, batches: int = 10) -> tuple[eps_scheduler.BaseScheduler, Tensor]:
    schedule: eps_scheduler.BaseScheduler = getattr(eps_scheduler, name)(0.3, SCHEDULES[name])
    schedule.set_epoch_length(batches)
    seen: list[float] = []
    for _ in range(epochs):
        schedule.step_epoch()
        for _ in range(batches):
            schedule.step_batch()
            schedule.update_loss(1.0 / (1 + len(seen)))
            seen.append(schedule.get_eps())
    return schedule, torch.tensor(seen, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_rise_to_their_end(name: str) -> None:
    """Never falling, within [0, max_eps], the start before `start`, the end at start + length."""
    schedule, eps = _run(name)
    end = {"RangeScheduler": 0.27}.get(name, 0.3)
    assert bool((eps.diff() >= -1e-15).all()) and bool((eps >= 0).all()) and float(eps.max()) <= 0.3
    assert float(eps[-1]) == pytest.approx(end) and schedule.reached_max_eps()
    if name != "FixedScheduler":
        first = {"RangeScheduler": 0.06}.get(name, 0.0)
        assert eps[:10].tolist() == pytest.approx([first] * 10)
    schedule.eval()
    assert schedule.get_eps() == schedule.get_max_eps() == 0.3


def test_shapes_of_the_ramps() -> None:
    """Halfway: linear 1/2, bilinear its middle share, smoothed below linear, and smooth where its two parts meet."""
    halfway = 10 + 15  # batch 15 of the 30 that the ramp has
    assert float(_run("LinearScheduler")[1][halfway]) == pytest.approx(0.15)
    assert float(_run("BiLinearScheduler")[1][halfway]) == pytest.approx(0.06)
    smoothed = eps_scheduler.SmoothedScheduler(1.0, "start=1,length=1,mid=0.25,beta=4")
    smoothed.set_epoch_length(1000)
    smoothed.step_epoch()
    values = []
    for _ in range(1000):
        smoothed.step_batch()
        values.append(smoothed.get_eps())
    steps = torch.tensor(values, dtype=torch.float64).diff()
    assert values[500] < 0.5 and float(steps.diff().abs().max()) < 1e-4


def test_wrong_schedules() -> None:
    """Unknown settings and missing epoch lengths are errors that say so."""
    with pytest.raises(ConfigError, match="expected name=value"):
        eps_scheduler.LinearScheduler(0.1, "begin=3")
    with pytest.raises(ConfigError, match="is no number"):
        eps_scheduler.LinearScheduler(0.1, "start=soon")
    with pytest.raises(ConfigError, match="set_epoch_length"):
        eps_scheduler.LinearScheduler(0.1, "").step_batch()
