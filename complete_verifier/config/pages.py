"""Pages generated from the schema: `configs/defaults.yaml` and `docs/options.md`.

`python -m complete_verifier.config.pages` in a checkout writes both; a test compares them with what is committed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from complete_verifier.config.options import Option, option_table
from complete_verifier.config.render import yaml_lines
from complete_verifier.config.run_options import RunOptions
from complete_verifier.config.support import support_of
from complete_verifier.config.support_table import Status, Support
from complete_verifier.config.yaml_file import yaml_text

_HEADER = """\
# Every option with its default and its command-line flag. This page is generated from the schema:
# python -m complete_verifier.config.pages
"""

_INTRODUCTION = """\
# Options

This page is generated from the schema (`python -m complete_verifier.config.pages`).

An option is given in the YAML file of `--config`, by its flag, or by its path with `--set path=value`. Flags win over
the file, the file over the defaults; `--print_config` shows every value with its origin. The flag of a true-or-false
option takes no value: it stores the opposite of the default (`--set` stores either). `--root_path DIR` without
`--config` reads `DIR/config.yaml`. Flags may be abbreviated as long as they stay unambiguous.

Values are read as in upstream's shipped files: one word or words with commas where a list is meant, `1e9` for an
integer, `"1e-10"` for a number. Anything else that does not fit is an error; so is NaN.

Status: **acts**; **steers** = does not act yet, a value other than the default is passed over with a warning since it
only steers the search; **refused** = does not act yet, and a value other than the default is an error since it would
change what is asked. Values named in brackets act.
"""


def defaults_page() -> str:
    """The text of configs/defaults.yaml."""
    lines = yaml_lines(option_table().values(), lambda option: option.default, lambda option: option.flag)
    return _HEADER + "".join(f"{line}\n" for line in lines)


def options_page() -> str:
    """The text of docs/options.md."""
    lines = [_INTRODUCTION, *_table("Of one run (no YAML key)", option_table(RunOptions).values(), flags_only=True)]
    sections: dict[str, list[Option]] = {}
    for option in option_table().values():
        sections.setdefault(option.path.rpartition(".")[0], []).append(option)
    for name, options in sections.items():
        lines.extend(_table(f"`{name}`", options))
    return "\n".join(lines) + "\n"


PAGES: Mapping[str, Callable[[], str]] = MappingProxyType(
    {"configs/defaults.yaml": defaults_page, "docs/options.md": options_page}
)


def write_pages(root: Path) -> None:
    """Write all generated pages below the root of a checkout."""
    for name, text in PAGES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(), encoding="utf-8")


def _table(title: str, options: Iterable[Option], *, flags_only: bool = False) -> Iterator[str]:
    yield f"## {title}\n"
    yield (
        "| Option | Default | Values | Status | Meaning |"
        if flags_only
        else ("| Option | Flag | Default | Values | Status | Meaning |")
    )
    yield "| --- " * (5 if flags_only else 6) + "|"
    for option in options:
        support = support_of(option.flag if flags_only else option.path)
        acting = f" ({', '.join(yaml_text(value) for value in support.acting)})" if support.acting else ""
        status = support.status.value + acting
        flags = f"`{option.flag}`" + (f", `{option.off_flag}`" if option.off_flag else "")
        names = [flags] if flags_only else [f"`{option.path.rpartition('.')[2]}`", flags]
        cells = [*names, f"`{yaml_text(option.default)}`", option.kind.expected, status, _meaning(option, support)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _meaning(option: Option, support: Support) -> str:
    reason = "" if support.status is Status.ACTS else f" *({support.reason})*"
    return option.meaning + reason


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
