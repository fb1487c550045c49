"""The options of a `BoundedModule` (`bound_opts`): checked at the door, then typed and frozen."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.errors import ConfigError
from auto_LiRPA.operators.activation import SLOPE_RULES
from auto_LiRPA.utils import REDUCTIONS

logger = logging.getLogger(__name__)

StopRule = Callable[[Tensor], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundOptions:
    """What the user set, in the engine's own terms.

    ``bounds``: the engine's settings. ``slope_rule``: a ReLU's lower line where nothing optimises it. ``tile_rows``:
    most rows of one backward pass (inf: no wish). ``stop_rule``, ``max_time``: when alpha-CROWN may end early.
    """

    bounds: BoundSettings = field(default_factory=BoundSettings)
    slope_rule: str = "adaptive"
    tile_rows: float = math.inf
    stop_rule: StopRule | None = None
    max_time: float = math.inf

    def updated(self, raw: Mapping[str, object] | None) -> BoundOptions:
        """These options with the keys of ``raw`` changed; those of `optimize_bound_args` one by one.

        Raises:
            ConfigError: an unknown key (the nearest one is named) or a value that the key cannot take.
        """
        options = self
        for key, value in (raw or {}).items():
            if key != "optimize_bound_args":
                options = _GENERAL.apply(options, key, value)
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"bound_opts['optimize_bound_args'] = {value!r}: expected a dictionary")
            for inner, setting in value.items():
                options = _OPTIMIZE.apply(options, inner, setting)
        return options

    def _with(self, section: Section, name: str, value: object) -> BoundOptions:
        if section == "options":
            return replace(self, **{name: value})  # type: ignore[arg-type]
        if section == "bounds":
            return replace(self, bounds=replace(self.bounds, **{name: value}))  # type: ignore[arg-type]
        alpha: AlphaSettings = replace(self.bounds.alpha, **{name: value})  # type: ignore[arg-type]
        return replace(self, bounds=replace(self.bounds, alpha=alpha))


Section = Literal["options", "bounds", "alpha"]
Check = Callable[[object, str], object]


@dataclass(frozen=True, slots=True)
class _Acts:
    """A key that sets one field; ``check`` turns the user's value into the field's, or says what is wrong with it."""

    section: Section
    field: str
    check: Check


@dataclass(frozen=True, slots=True)
class _Table:
    """All keys of one level: those that act, those that cannot change a bound, those that only cost tightness or time
    when they are passed over (a warning says so), and those that would change the question (refused)."""

    place: str
    acting: Mapping[str, _Acts]
    neutral: tuple[str, ...]
    ignored: Mapping[str, object]
    refused: Mapping[str, object]

    def apply(self, options: BoundOptions, key: str, value: object) -> BoundOptions:
        name = f"{self.place}[{key!r}]"
        if key in self.acting:
            acts = self.acting[key]
            return options._with(acts.section, acts.field, acts.check(value, name))
        if key in self.refused and not _same(value, self.refused[key]):
            raise ConfigError(f"{name} = {value!r}: not supported yet; leave it out")
        if key in self.ignored and not _same(value, self.ignored[key]):
            logger.warning("%s = %r: does not act here; bounds stay sound", name, value)
        known = [*self.acting, *self.neutral, *self.ignored, *self.refused]
        if key not in known:
            near = difflib.get_close_matches(str(key), [*known, "optimize_bound_args"], n=1)
            raise ConfigError(f"{name}: no such option" + (f"; perhaps {near[0]!r}?" if near else ""))
        return options


def _same(value: object, default: object) -> bool:
    """Equal, or both saying nothing (None, False, empty)."""
    return value == default or (not value and not default)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: expected True or False")
    return value


def _number(least: float) -> Check:
    def check(value: object, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise ConfigError(f"{name} = {value!r}: expected a number of {least:g} or more")
        return value

    return check


def _whole(least: int, infinite: bool = False) -> Check:
    def check(value: object, name: str) -> float:
        if infinite and value == math.inf:
            return math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < least:
            raise ConfigError(f"{name} = {value!r}: expected a whole number of {least} or more")
        return int(value)

    return check


def _choice(choices: tuple[str, ...]) -> Check:
    def check(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; perhaps {near[0]!r}?" if near else ""
            raise ConfigError(f"{name} = {value!r}: expected one of {', '.join(choices)}{hint}")
        return value

    return check


def _words(value: object, name: str) -> tuple[str, ...]:
    words = value if isinstance(value, list | tuple | set) else [value]
    if not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{name} = {value!r}: expected a list of operator names")
    return tuple(str(word) for word in words)


def _reduction(value: object, name: str) -> str:
    """A name, or one of the functions of `auto_LiRPA.utils`; another function has no gradient here."""
    for known, function in REDUCTIONS.items():
        if value in (known, function):
            return known
    raise ConfigError(f"{name} = {value!r}: expected one of {', '.join(REDUCTIONS)}, or utils.reduction_*")


def _stop_rule(value: object, name: str) -> StopRule:
    if not callable(value):
        raise ConfigError(f"{name} = {value!r}: expected a function of the bounds [B, S] that says where to stop")
    return value


_GENERAL = _Table(
    place="bound_opts",
    acting={
        "activation_bound_option": _Acts("options", "slope_rule", _choice(SLOPE_RULES)),
        "compare_crown_with_ibp": _Acts("bounds", "compare_with_ibp", _flag),
        "sparse_intermediate_bounds": _Acts("bounds", "sparse_intermediate", _flag),
        "crown_batch_size": _Acts("options", "tile_rows", _whole(1, infinite=True)),
        "forward_max_dim": _Acts("bounds", "forward_max_dim", _whole(1)),
        "disable_optimization": _Acts("alpha", "disabled", _words),
        "disabled_optimization": _Acts("alpha", "disabled", _words),
    },
    # how coefficients are stored, what is printed: the bounds are the same
    neutral=(
        "conv_mode",
        "verbosity",
        "deterministic",
        "sparse_conv_intermediate_bounds",
        "sparse_features_alpha",
        "sparse_spec_alpha",
        "minimum_sparsity",
        "bound_every_node",
        "forward_before_compute_bounds",
        "batched_crown_max_vram_ratio",
    ),
    ignored={
        "sparse_intermediate_bounds_with_ibp": True,
        "enable_opt_interm_bounds": False,
        "max_crown_size": 1e9,
        "forward_refinement": False,
        "use_full_conv_alpha": True,
        "use_full_conv_alpha_thresh": 512,
        "clip_in_alpha_crown": False,
        "relu": "adaptive",  # an older name of activation_bound_option that upstream does not read either
        "matmul": None,
        "mul": None,
        "softmax": "complex",
        "exp": None,
        "tanh": None,
        "hardtanh": None,
        "reshape": None,
        "param": None,
        "recurjac": None,
    },
    refused={
        "loss_fusion": False,
        "no_ibp_loss_fusion": False,
        "optimize_graph": {"optimizer": None},
        "buffers": {"has_batchdim": False},
        "fixed_reducemax_index": False,
    },
)

_OPTIMIZE = _Table(
    place="bound_opts['optimize_bound_args']",
    acting={
        "interm_alpha": _Acts("alpha", "mode", _choice(("keep", "fixed", "stream"))),
        "iteration": _Acts("alpha", "iterations", _whole(1)),
        "lr_alpha": _Acts("alpha", "lr_alpha", _number(0)),
        "lr_beta": _Acts("alpha", "lr_beta", _number(0)),
        "lr_decay": _Acts("alpha", "decay", _number(0)),
        "early_stop_patience": _Acts("alpha", "patience", _whole(0)),
        "start_save_best": _Acts("alpha", "start_save_best", _number(-1)),
        "use_shared_alpha": _Acts("alpha", "share_alphas", _flag),
        "loss_reduction_func": _Acts("alpha", "reduction", _reduction),
        "stop_criterion_func": _Acts("options", "stop_rule", _stop_rule),
        "max_time": _Acts("options", "max_time", _number(0)),
    },
    neutral=("deterministic", "multi_spec_keep_func", "pruning_in_iteration", "pruning_in_iteration_threshold"),
    ignored={
        "enable_alpha_crown": True,
        "enable_beta_crown": False,
        "optimizer": "adam",
        "keep_best": True,
        "fix_interm_bounds": True,
        "init_alpha": True,
        "lr_cut_beta": 5e-3,
        "lr_coeffs": 0.01,
        "intermediate_refinement_layers": [-1],
        "use_float64_in_last_iteration": False,
        "apply_output_constraints_to": [],
        "tighten_input_bounds": False,
        "best_of_oc_and_no_oc": False,
        "directly_optimize": [],
        "oc_lr": 0.1,
        "share_gammas": False,
    },
    refused={},
)
