"""Built-in architectures of `model.name`, and weights from a file for them (interface 2.2)."""

from complete_verifier.models.registry import build_module, known_names
from complete_verifier.models.weights import load_weights

__all__ = ["build_module", "known_names", "load_weights"]
