"""What a result depends on, as a short text: network, property, time limit and settings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from complete_verifier.config import Config
from complete_verifier.config.options import option_table
from complete_verifier.config.yaml_file import yaml_text

# Where things lie and which rows are asked for; the time limit is part of each row by itself.
IRRELEVANT = frozenset(
    {
        "general.csv_name", "general.root_path", "general.results_file", "general.save_output", "general.output_file",
        "general.save_adv_example", "general.show_adv_example", "model.onnx_path", "specification.vnnlib_path",
        "data.start", "data.end", "data.select_instance", "attack.cex_path", "bab.timeout", "bab.timeout_scale",
        "bab.override_timeout", "parallel.threads",
    }
)  # fmt: skip
_LENGTH = 16


def settings_text(config: Config) -> str:
    """The settings that a result depends on, one line each, where they differ from the defaults."""
    lines = []
    for path, option in option_table().items():
        value = option.of(config)
        if path not in IRRELEVANT and value != option.default:
            lines.append(f"{path}: {yaml_text(value)}\n")
    return "".join(lines)


def changed_settings(before: Config, now: Config) -> list[str]:
    """The settings that a result depends on and that differ, as `path before -> now`."""
    found = []
    for path, option in option_table().items():
        old, new = option.of(before), option.of(now)
        if path not in IRRELEVANT and old != new:
            found.append(f"{path} {yaml_text(old)} -> {yaml_text(new)}")
    return found


class Fingerprints:
    """Fingerprints of the rows of one run. Each file is read once; what cannot be read counts as empty."""

    def __init__(self, config: Config) -> None:
        self._files: dict[Path, str] = {}
        weights = "" if config.model.path is None else self._file(Path(config.model.path))
        self._settings = settings_text(config) + weights

    def of(self, network: Path, specification: Path, timeout_s: float) -> str:
        """The fingerprint of one row: by the content of its files, not by their names."""
        parts = (self._file(network), self._file(specification), f"{timeout_s:g}", self._settings)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_LENGTH]

    def _file(self, path: Path) -> str:
        if path not in self._files:
            try:
                with open(path, "rb") as file:
                    self._files[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                self._files[path] = ""
        return self._files[path]
