"""User code within one instance: tuning of its settings, an own attack, an own verifier, and what is done with results.

Whatever user code says, `sat` needs our own confirmation of the point, exactly, by the original network. Of several
ranks the first one alone runs these hooks, once, and all of them go on with what it got: code that draws random
numbers, looks at a clock or writes files need not know that there are ranks. (Loaders run on every rank; what they
give is compared, see `same_input`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from auto_LiRPA.errors import ConfigError
from complete_verifier.attack.confirm import confirm
from complete_verifier.compat.config_view import tree_of
from complete_verifier.compat.handler import SpecHandler
from complete_verifier.compat.hooks import Hooks, hooks_of, tuned
from complete_verifier.compat.read_vnnlib import compiled_form
from complete_verifier.config import Config
from complete_verifier.driver.choices import bound_settings
from complete_verifier.driver.questions import Question
from complete_verifier.spec.counterexample import Counterexample
from complete_verifier.together import first_rank

T = TypeVar("T")

DEFAULTS: Mapping[str, str] = {
    "attack.attack_func": "attack_with_general_specs",
    "attack.adv_saver": "default_adv_saver",
    "attack.adv_verifier": "default_adv_verifier",
}


def has_no_verifier(config: Config) -> bool:
    """Whether counterexamples stand by our own confirmation alone: no `attack.adv_verifier` of the user's."""
    return config.attack.adv_verifier == DEFAULTS["attack.adv_verifier"]


@dataclass(frozen=True, slots=True)
class UserCode:
    """The hooks of one instance."""

    hooks: Hooks
    question: Question

    @classmethod
    def of(cls, question: Question, config: Config, config_dir: Path | None) -> UserCode:
        """With the folders that the configuration looks user code up in."""
        return cls(hooks_of(config, config_dir), question)

    def tuned(self, config: Config) -> tuple[Config, Question, tuple[str, ...]]:
        """Settings and question after `general.adhoc_tuning`, and the settings that it changed."""
        if config.general.adhoc_tuning is None:
            return config, self.question, ()
        before = config
        config, changed = self._once(
            "general.adhoc_tuning", lambda: tuned(before, self.hooks, self._model(before), self._handler())
        )
        problem = replace(self.question.problem, bounds=bound_settings(config))
        return config, replace(self.question, problem=problem), changed

    def verified(self, config: Config) -> str:
        """The status that the user's verifier returns: f(model, vnnlib, onnx_path)."""
        return self._once("general.complete_verifier", lambda: self._verified(config))

    def _verified(self, config: Config) -> str:
        text, network = config.general.complete_verifier, self.question.network
        path = str(network) if isinstance(network, Path) else None
        vnnlib = compiled_form(self.question.prop)
        status = self.hooks.call("general.complete_verifier", text, tree_of(config), self._model(config), vnnlib, path)
        if not isinstance(status, str):
            raise ConfigError(f"general.complete_verifier: {text} returns {type(status).__name__}; a status is needed")
        return str.__str__(status)  # a class of the user's own is unknown to the other ranks

    def attacked(self, config: Config) -> Counterexample | None:
        """A counterexample among the points that the user's attack returns, if one is confirmed."""
        return self._once("attack.attack_func", lambda: self._attacked(config))

    def _attacked(self, config: Config) -> Counterexample | None:
        found = self._named("attack.attack_func", config, {})
        if found is None:
            return None
        points = found if isinstance(found, list | tuple) else [found]
        size = self.question.prop.n_inputs
        for value in points:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            if array.dtype.kind not in "fiu" or array.size == 0 or array.size % size:
                raise ConfigError(f"attack.attack_func: returns {array.size} numbers; points of {size} are needed")
            for point in array.reshape(-1, size):
                counterexample = confirm(self.question.judge, self.question.prop, point)
                if counterexample is not None:
                    return counterexample
        return None

    def accepted(self, config: Config, found: Counterexample) -> bool:
        """Whether the user's `attack.adv_verifier` lets a counterexample of ours stand too."""
        if has_no_verifier(config):
            return True
        return self._once(
            "attack.adv_verifier", lambda: bool(self._named("attack.adv_verifier", config, self._example(found)))
        )

    def saved(self, config: Config, found: Counterexample) -> str | None:
        """What the user's `attack.adv_saver` wrote to `attack.cex_path`, if it is asked to save; None without it."""
        if config.attack.adv_saver == DEFAULTS["attack.adv_saver"] or not config.general.save_adv_example:
            return None
        return self._once("attack.adv_saver", lambda: self._saved(config, found))

    def _saved(self, config: Config, found: Counterexample) -> str | None:
        self._named("attack.adv_saver", config, self._example(found))
        try:
            return Path(config.attack.cex_path).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None  # it saved elsewhere

    def _once(self, setting: str, call: Callable[[], T]) -> T:
        """What ``call`` returns on the first rank, for which the others wait as long as the deadline allows."""
        context = self.question.problem.context
        context.at(f"user code ({setting})", patient=True)
        result = first_rank(context.world, call)
        context.at(f"after user code ({setting})")
        return result

    # -- what hooks are given ---------------------------------------------------------------------------------------
    def _named(self, setting: str, config: Config, more: Mapping[str, object]) -> Any:
        """Call a hook with those of its parameters that we know by name."""
        offers = {**self._offers(config), **more}
        text: str = getattr(config.attack, setting.rpartition(".")[2])
        return self.hooks.call_by_name(setting, text, tree_of(config), offers)

    def _offers(self, config: Config) -> Mapping[str, object]:
        handler = self._handler()
        model = self._model(config)
        return {
            "model": model,
            "model_ori": model,
            "x": handler.x,
            "data_min": handler.data_min,
            "data_max": handler.data_max,
            "vnnlib": handler,
            "vnnlib_handler": handler,
            "res_path": config.attack.cex_path,
        }

    def _example(self, found: Counterexample) -> Mapping[str, object]:
        shape = self.question.problem.graph.input_shape
        kind = torch.get_default_dtype()
        point = torch.tensor([float(v) for v in found.x], dtype=kind).reshape(1, *shape)
        output = torch.tensor([[float(v) for v in found.y]], dtype=kind)
        return {"adv_example": point, "adv_output": output}

    def _handler(self) -> SpecHandler:
        return SpecHandler(self.question.prop, self.question.problem.graph.input_shape)

    def _model(self, config: Config) -> nn.Module:
        if self.question.module is not None:
            return self.question.module
        network = self.question.network
        if not isinstance(network, Path):
            raise ConfigError("user code is called with a network from a file or a module; this one is neither")
        from complete_verifier.compat.onnx_model import OnnxModel

        return OnnxModel(network, config.model.input_shape)
