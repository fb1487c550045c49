"""Settings as YAML text: the whole resolved configuration, with or without the origin of each value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from complete_verifier.config.load import LoadedConfig
from complete_verifier.config.options import Option, option_table
from complete_verifier.config.schema import Config
from complete_verifier.config.yaml_file import yaml_text

COMMENT_COLUMN = 60


def to_yaml(config: Config, only_non_default: bool = False) -> str:
    """Settings as a YAML file that loads to the same settings; on request only what differs from the defaults."""
    options = [
        option for option in option_table().values() if not (only_non_default and option.of(config) == option.default)
    ]
    lines = yaml_lines(options, lambda option: option.of(config))
    return "".join(f"{line}\n" for line in lines)


def render_config(loaded: LoadedConfig) -> str:
    """All settings as a YAML file, each with its origin as a comment."""
    lines = yaml_lines(
        option_table().values(), lambda option: option.of(loaded.config), lambda option: loaded.origins[option.path]
    )
    source = "no file" if loaded.config_file is None else str(loaded.config_file)
    return "".join(f"{line}\n" for line in (f"# resolved settings; read from {source}", *lines))


def yaml_lines(
    options: Iterable[Option],
    value_of: Callable[[Option], object],
    comment_of: Callable[[Option], str] | None = None,
) -> Iterator[str]:
    """The lines of a YAML file with these options, nested by section, in the order given."""
    open_sections: list[str] = []
    for option in options:
        *sections, key = option.path.split(".")
        shared = 0
        while shared < min(len(sections), len(open_sections)) and sections[shared] == open_sections[shared]:
            shared += 1
        for depth in range(shared, len(sections)):
            yield "  " * depth + f"{sections[depth]}:"
        open_sections = sections
        line = "  " * len(sections) + f"{key}: {yaml_text(value_of(option))}"
        yield line if comment_of is None else f"{line:<{COMMENT_COLUMN}}  # {comment_of(option)}"
