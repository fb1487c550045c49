"""The ReLU steps of a pass over domains as one Triton kernel each: every number is read once and written once.

One program works on one domain (a row). Triton is optional: nobody imports this file where it is missing. The same
formulas in plain torch operations, with their meaning, are in `eager.py`.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _lines(value, sign, lower, upper):
    """Lower slope, chord slope and chord offset of the columns, with their splits in the boxes."""
    lower = tl.where(sign > 0, tl.maximum(lower, 0.0), lower)
    upper = tl.where(sign < 0, tl.minimum(upper, 0.0), upper)
    on = lower >= 0
    off = upper <= 0
    free = (on == 0) & (off == 0)  # a NaN bound proves no stability
    width = tl.where(free, upper - lower, 1.0)
    share = upper / width
    share = tl.where(share < 0.0, 0.0, tl.where(share > 1.0, 1.0, share))
    chord = tl.where(free, share, tl.where(on, 1.0, 0.0))
    offset = tl.where(free, -share * lower, 0.0)
    slope = tl.where(free, tl.where(value < 0.0, 0.0, tl.where(value > 1.0, 1.0, value)), chord)
    return free, slope, chord, offset


@triton.jit
def down_kernel(
    coef,
    out,
    value,
    sign,
    lower,
    upper,
    place,
    below,
    bias,
    size,
    width,
    start,
    columns,
    box_stride,
    coef_stride,
    PREFIX: tl.constexpr,
    BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Coefficients on a ReLU's output -> on its input; adds what the step gives to the bound to ``bias``."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, size, BLOCK):
        j = first + tl.arange(0, BLOCK)
        inside = j < size
        a = tl.load(coef + row * coef_stride + j, mask=inside, other=0.0)
        if PREFIX:
            column = tl.where(j < width, j, -1)
        else:
            column = tl.load(place + j, mask=inside, other=-2)
        mine = inside & (column >= 0)
        k = start + column
        v = tl.load(value + row * columns + k, mask=mine, other=0.0)
        s = tl.load(sign + row * columns + k, mask=mine, other=0)
        low = tl.load(lower + row * box_stride + k, mask=mine, other=0.0)
        high = tl.load(upper + row * box_stride + k, mask=mine, other=0.0)
        free, slope, chord, offset = _lines(v, s, low, high)
        new = a * tl.where(a >= 0, slope, chord) - tl.where(s != 0, tl.maximum(v, 0.0) * s.to(tl.float32), 0.0)
        new = tl.where(mine, new, tl.where(column == -1, a, 0.0))
        total += tl.where(mine & (a < 0), a * offset, 0.0)
        if BELOW:
            total += new * tl.load(below + j, mask=inside, other=0.0)
        tl.store(out + row * size + j, new, mask=inside)
    tl.store(bias + row, tl.load(bias + row) + tl.sum(total, 0))


@triton.jit
def up_kernel(
    coef,
    z,
    out,
    value,
    first_moment,
    second_moment,
    best,
    sign,
    lower,
    upper,
    place,
    active,
    take,
    rates,
    step,
    size,
    width,
    start,
    columns,
    box_stride,
    coef_stride,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    PREFIX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Values before a ReLU -> after it, and an Adam step of its columns' variables along their derivatives.

    ``rates`` ``[iterations, 4]``: factor of alphas, of betas, epsilon of this step, and whether bests are kept.
    """
    row = tl.program_id(0).to(tl.int64)
    at = rates + tl.load(step) * 4
    lr_alpha, lr_beta, epsilon = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    weight, taken = tl.load(active + row), tl.load(take + row) != 0
    for first in range(0, size, BLOCK):
        j = first + tl.arange(0, BLOCK)
        inside = j < size
        a = tl.load(coef + row * coef_stride + j, mask=inside, other=0.0)
        x = tl.load(z + row * size + j, mask=inside, other=0.0)
        if PREFIX:
            column = tl.where(j < width, j, -1)
        else:
            column = tl.load(place + j, mask=inside, other=-2)
        mine = inside & (column >= 0)
        k = start + column
        here = row * columns + k
        v = tl.load(value + here, mask=mine, other=0.0)
        s = tl.load(sign + here, mask=mine, other=0)
        low = tl.load(lower + row * box_stride + k, mask=mine, other=0.0)
        high = tl.load(upper + row * box_stride + k, mask=mine, other=0.0)
        m = tl.load(first_moment + here, mask=mine, other=0.0)
        q = tl.load(second_moment + here, mask=mine, other=0.0)
        free, slope, chord, offset = _lines(v, s, low, high)
        split = s != 0
        y = tl.where(a >= 0, slope * x, chord * x + offset)
        tl.store(out + row * size + j, tl.where(mine, y, tl.where(column == -1, x, 0.0)), mask=inside)
        g = tl.where(split, -s.to(tl.float32), tl.where(free, tl.maximum(a, 0.0), 0.0)) * x * weight
        m = m * BETA1 + g * (1 - BETA1)
        q = q * BETA2 + g * g * (1 - BETA2)
        moved = v + tl.where(split, lr_beta, lr_alpha) * m / (tl.sqrt(q) + epsilon)
        moved = tl.maximum(moved, 0.0)
        moved = tl.where(free, tl.minimum(moved, 1.0), moved)
        tl.store(best + here, v, mask=mine & taken)
        tl.store(value + here, moved, mask=mine)
        tl.store(first_moment + here, m, mask=mine)
        tl.store(second_moment + here, q, mask=mine)


@triton.jit
def land_kernel(
    coef,
    low,
    high,
    x,
    bias,
    strict,
    lower,
    saved,
    take,
    active,
    improved,
    rates,
    step,
    size,
    region_stride,
    TRACK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Least value over the input box and where it is reached; the bookkeeping of bests where ``TRACK``."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, size, BLOCK):
        j = first + tl.arange(0, BLOCK)
        inside = j < size
        a = tl.load(coef + row * size + j, mask=inside, other=0.0)
        corner = tl.where(
            a >= 0,
            tl.load(low + row * region_stride + j, mask=inside, other=0.0),
            tl.load(high + row * region_stride + j, mask=inside, other=0.0),
        )
        total += a * corner
        tl.store(x + row * size + j, corner, mask=inside)
    found = tl.load(bias + row) + tl.sum(total, 0)
    if TRACK:
        best, before, now = tl.load(lower + row), tl.load(saved + row), tl.load(step)
        if found > best:
            tl.store(improved + row, now)
            best = found
        taken = (tl.load(rates + now * 4 + 3) != 0) & (found > before)
        tl.store(take + row, taken.to(tl.int8))
        tl.store(saved + row, tl.where(taken, found, before))
        tl.store(lower + row, best)
        closed = (best > 0) | ((tl.load(strict + row) != 0) & (best >= 0))
        closed = closed & (best < float("inf"))
        tl.store(active + row, tl.where(closed, 0.0, 1.0))
    else:
        tl.store(lower + row, found)
