"""What experiments 2 to 5 share: jobs of `of_config.py`, and how far bounds of one mode are from those of one GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.parallel.experiments.kinds import Figures, Job, Options

SCRIPT = "of_config.py"
KEYS = ("net", "method", "tile", "mode", "world")
SLACK = 1e-5


def jobs(
    number: int,
    options: Options,
    alone: Sequence[str],
    several: Sequence[str],
    words: Sequence[str] = (),
    names: Sequence[str] | None = None,
    timeout_s: float = 300.0,
) -> Iterator[Job]:
    """A job for each mode and number of ranks; reduced (no GPU is measured), one for each number of ranks.

    Args:
        alone, several: modes on one rank, and on more.
        words: more arguments. names: of the configurations, if not all of the experiment.
    """
    found = names or sorted(path.stem for path in options.configs.glob(f"exp{number}_*.yaml"))
    common = ["--exp", str(number), "--data", str(options.data), *words]
    common += ["--repeats", "1", "--warmup", "0"] if options.reduced else ["--repeats", str(options.repeats)]
    configs = ["--configs", *(str(options.configs / f"{name}.yaml") for name in found)]
    for world in options.worlds:
        modes = several if world > 1 else alone
        for chosen in [modes] if options.reduced else [[mode] for mode in modes]:
            if chosen:
                yield Job(SCRIPT, world, (*common, "--modes", *chosen, *configs), timeout_s)


def single_of(figures: Iterable[Figures]) -> dict[tuple[object, ...], Figures]:
    """What one GPU gave, by network, method and tile."""
    return {_question(one): one for one in figures if one["mode"] == "single"}


def against_single(figures: list[Figures]) -> Iterator[tuple[Figures, Figures]]:
    """Each figure of another mode, with that of one GPU; of equal ones the last."""
    alone = single_of(figures)
    last = {tuple(one[key] for key in KEYS): one for one in figures if one["mode"] != "single"}
    for one in last.values():
        if _question(one) in alone:
            yield one, alone[_question(one)]


def _question(one: Figures) -> tuple[object, ...]:
    return one["net"], one["method"], one["tile"]


def difference(one: Figures, single: Figures, side: str) -> float:
    """The largest, of all outputs."""
    return max(abs(a - b) for a, b in zip(one[side], single[side], strict=True))


def relative(one: Figures, single: Figures) -> float:
    """The largest of both sides, relative to 1 + |bound|."""
    pairs = [pair for side in ("lower", "upper") for pair in zip(one[side], single[side], strict=True)]
    return max(abs(a - b) / (1 + abs(b)) for a, b in pairs)


def width_ratio(one: Figures, single: Figures) -> float:
    """How much wider the bounds are, all outputs together."""
    return _width(one) / _width(single)


def _width(one: Figures) -> float:
    return float(sum(one["upper"]) - sum(one["lower"]))


def outside(one: Figures, single: Figures) -> int:
    """Outputs that some sampled input has outside of the bounds (by more than what two right computations part by)."""
    low = zip(one["lower"], single["sampled_min"], strict=True)
    high = zip(one["upper"], single["sampled_max"], strict=True)
    return sum(y < b - SLACK * (1 + abs(y)) for b, y in low) + sum(y > b + SLACK * (1 + abs(y)) for b, y in high)


def ranks_agree(one: Figures) -> bool:
    """Whether all ranks have equal bits."""
    return len(one["digests"]) == 1


def same_bits(one: Figures, single: Figures) -> bool:
    """Whether all ranks have the bits of one GPU."""
    return bool(one["digests"] == single["digests"])


def name_of(one: Figures) -> str:
    """For a check."""
    return f"{one['net']} {one['method']} tile {one['tile']} {one['mode']} P={one['world']}"
