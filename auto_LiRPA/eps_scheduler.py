"""Schedules of the perturbation radius for certified training: from small to `max_eps`, counted in batches."""

from __future__ import annotations

import logging
import math

from auto_LiRPA.errors import ConfigError

logger = logging.getLogger(__name__)


class BaseScheduler:
    """Counts epochs and batches, and answers with the radius of the present batch.

    Use: `train()` once, `set_epoch_length(batches)`, then in every epoch `step_epoch()` and before every batch
    `step_batch()`; `get_eps()` is the radius now. In `eval()` mode steps don't count and the radius is `max_eps`.

    Args:
        max_eps: the radius at the end.
        opt_str: settings as ``"name=value,name=value"``; which ones, each class says.
    """

    defaults: dict[str, float] = {}

    def __init__(self, max_eps: float, opt_str: str = "") -> None:
        self.max_eps = float(max_eps)
        self.params = _parse(type(self).__name__, opt_str, self.defaults)
        self.epoch_length = 0
        self.epoch = 0
        self.batch = 0
        self.is_training = True
        self.eps = 0.0

    def train(self) -> None:
        """Steps count from now on."""
        self.is_training = True

    def eval(self) -> None:
        """Steps don't count; the radius is `max_eps`."""
        self.is_training = False

    def set_epoch_length(self, epoch_length: int) -> None:
        """Batches per epoch. The schedules are smooth over the batches of an epoch."""
        if epoch_length < 1:
            raise ConfigError(f"{type(self).__name__}: epoch length {epoch_length}: expected 1 or more batches")
        self.epoch_length = int(epoch_length)

    def step_epoch(self, verbose: bool = False) -> None:
        """A new epoch begins."""
        if self.is_training:
            self.epoch += 1
            self.batch = 0
            if verbose:
                logger.info("epoch %d: eps %.6g", self.epoch, self.get_eps())

    def step_batch(self, verbose: bool = False) -> None:
        """A new batch begins: its radius is computed."""
        if self.is_training:
            if not self.epoch_length:
                raise ConfigError(f"{type(self).__name__}: call set_epoch_length(batches) before step_batch()")
            self.batch += 1
            self.eps = min(max(self.scheduled(), 0.0), self.max_eps)
            if verbose:
                logger.info("epoch %d, batch %d: eps %.6g", self.epoch, self.batch, self.eps)

    def update_loss(self, new_loss: float) -> None:
        """The loss of the batch just done (only Adaptive listens)."""

    def get_eps(self) -> float:
        """The radius now."""
        return self.eps if self.is_training else self.max_eps

    def get_max_eps(self) -> float:
        """The radius at the end."""
        return self.max_eps

    def reached_max_eps(self) -> bool:
        """True once the radius has come to its end."""
        return math.isclose(self.eps, self.max_eps, rel_tol=1e-9, abs_tol=1e-12)

    def scheduled(self) -> float:
        """The radius of the present batch."""
        raise NotImplementedError

    def done(self) -> float:
        """Share of the ramp that lies behind the present batch, from 0 to 1.

        Epochs count from 1, as `start` does: the first batch of epoch `start` has the ramp's first value.
        """
        batches = (self.epoch - self.params["start"]) * self.epoch_length + self.batch - 1
        whole = self.params["length"] * self.epoch_length
        return min(max(batches / whole, 0.0), 1.0) if whole else float(batches >= 0)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} epoch {self.epoch}, batch {self.batch}, eps {self.get_eps():.6g}>"


def _parse(owner: str, text: str, defaults: dict[str, float]) -> dict[str, float]:
    found = dict(defaults)
    for part in (p.strip() for p in (text or "").split(",")):
        if not part:
            continue
        name, separator, value = part.partition("=")
        if not separator or name.strip() not in defaults:
            raise ConfigError(f"{owner}: option {part!r}: expected name=value with a name of {', '.join(defaults)}")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"{owner}: option {part!r}: {value!r} is no number") from None
    return found


class FixedScheduler(BaseScheduler):
    """`max_eps` from the first batch to the last."""

    def __init__(self, max_eps: float, opt_str: str = "") -> None:
        super().__init__(max_eps, opt_str)
        self.eps = self.max_eps

    def scheduled(self) -> float:
        return self.max_eps


class LinearScheduler(BaseScheduler):
    """A straight ramp from 0 to `max_eps` over `length` epochs, beginning with epoch `start`."""

    defaults = {"start": 1, "length": 1}

    def scheduled(self) -> float:
        return self.max_eps * self.done()


class RangeScheduler(BaseScheduler):
    """A straight ramp between two shares of `max_eps`: from `start_eps` to `end_eps`, over `length` epochs."""

    defaults = {"start": 1, "length": 1, "start_eps": 0.0, "end_eps": 1.0}

    def scheduled(self) -> float:
        low, high = self.params["start_eps"], self.params["end_eps"]
        return self.max_eps * (low + (high - low) * self.done())

    def reached_max_eps(self) -> bool:
        return self.done() >= 1


class BiLinearScheduler(BaseScheduler):
    """Two ramps: to the share `mid_eps` of `max_eps` over the share `mid` of the length, then the rest."""

    defaults = {"start": 1, "length": 1, "mid": 0.5, "mid_eps": 0.1}

    def scheduled(self) -> float:
        t, mid, share = self.done(), self.params["mid"], self.params["mid_eps"]
        if t < mid:
            return self.max_eps * share * t / mid
        return self.max_eps * (share + (1 - share) * (t - mid) / (1 - mid) if mid < 1 else 1.0)


class SmoothedScheduler(BaseScheduler):
    """A power curve that turns into a straight line without a kink: slow at first, when training is unstable.

    Over the share `mid` of the length eps grows like t**beta, then linearly to `max_eps`; the slopes agree at `mid`.
    """

    defaults = {"start": 1, "length": 1, "mid": 0.25, "beta": 4.0}

    def scheduled(self) -> float:
        t, mid, beta = self.done(), self.params["mid"], self.params["beta"]
        # value a*mid**beta and slope a*beta*mid**(beta-1) at `mid`; the line from there ends in 1
        scale = 1 / (mid**beta + beta * mid ** (beta - 1) * (1 - mid)) if mid > 0 else 0.0
        if t < mid:
            return self.max_eps * scale * t**beta
        slope = scale * beta * mid ** (beta - 1) if mid > 0 else 1.0
        return self.max_eps * (scale * mid**beta + slope * (t - mid))


class AdaptiveScheduler(BaseScheduler):
    """Grows while the loss allows it: by up to `max_step` epochs' worth of a ramp, less while the loss goes up.

    After each epoch from `start` on, the step is doubled (up to `max_step`) if the mean loss is under
    `threshold` times the last one, and halved (down to `min_step`) if it is above. Steps are shares of `max_eps`.
    """

    defaults = {"start": 1, "min_step": 0.01, "max_step": 0.05, "threshold": 1.0}

    def __init__(self, max_eps: float, opt_str: str = "") -> None:
        super().__init__(max_eps, opt_str)
        self._step = self.params["min_step"]
        self._share = 0.0
        self._losses: list[float] = []
        self._last_mean = math.inf

    def update_loss(self, new_loss: float) -> None:
        if self.is_training:
            self._losses.append(float(new_loss))

    def step_epoch(self, verbose: bool = False) -> None:
        if self.is_training and self._losses:
            mean = sum(self._losses) / len(self._losses)
            better = mean < self.params["threshold"] * self._last_mean
            factor = 2.0 if better else 0.5
            self._step = min(max(self._step * factor, self.params["min_step"]), self.params["max_step"])
            self._last_mean, self._losses = mean, []
        super().step_epoch(verbose)

    def scheduled(self) -> float:
        if self.epoch >= self.params["start"]:
            self._share = min(1.0, self._share + self._step / self.epoch_length)
        return self.max_eps * self._share
