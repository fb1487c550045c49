"""Numbers as people read them."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """Seconds for a column of them: 0.43, 12.3, 1234."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def duration(value: float | None) -> str:
    """A time by itself, with its unit: 0.43 s, 12.3 s, 5 min 20 s, 3 h 12 min."""
    if value is None:
        return "\u2013"
    if value < 60:
        return f"{seconds(value)} s"
    if value < 3600:
        return f"{int(value) // 60} min {int(value) % 60:02d} s"
    return f"{int(value) // 3600} h {int(value) % 3600 // 60:02d} min"


def tick(value: float) -> str:
    """A mark of a logarithmic axis: 0.01, 1, 1000."""
    return f"{value:g}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e")


def count(value: int) -> str:
    """An integer with thin blanks between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def bound(value: float | None) -> str:
    """A bound to four digits."""
    return "" if value is None else f"{value:.4g}".replace("-", "\u2212")


def mib(value: float | None) -> str:
    """Memory in MiB, or in GiB where that is shorter."""
    if value is None:
        return ""
    return f"{value:.0f} MiB" if value < 10240 else f"{value / 1024:.1f} GiB"


def percent(part: int, whole: int) -> str:
    """A share; never rounded up to 100."""
    if not whole:
        return "\u2013"
    share = 100 * part / whole
    return f"{int(share * 10) / 10:.1f}".removesuffix(".0") + "\u2009%"
