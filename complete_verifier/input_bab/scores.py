"""Which dimension of a box to cut: widest (naive), or by the rows' coefficients (sb). Interface 7.8."""

from __future__ import annotations

import torch
from torch import Tensor

from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.settings import ScoreSettings
from complete_verifier.input_bab.split import cuttable


def widths(domains: Domains) -> Tensor:
    """Scores ``[D, m]`` of the naive rule."""
    return domains.upper - domains.lower


def sensitivity(domains: Domains, coef: Tensor, gap: Tensor, real: Tensor, settings: ScoreSettings) -> Tensor:
    """Scores ``[D, m]`` of sb.

    Args:
        coef: ``[D, G, R, m]`` coefficients of the rows' linear bounds, gap: ``[D, G, R]`` the rows' margins.
        real: ``[D, G, R]`` rows of clauses that are open.
    """
    half_width = (domains.upper - domains.lower) / 2
    swing = coef.abs().clamp_min(settings.coeff_thresh) * half_width[:, None, None]
    swing, gap = swing.nan_to_num(nan=0.0), gap.nan_to_num(nan=0.0, neginf=0.0, posinf=0.0)
    row = settings.primary_row
    if row is not None and row < real.shape[-1]:
        only = torch.zeros_like(real)
        only[..., row] = real[..., row]
        real = torch.where(only.flatten(1).any(1)[:, None, None], only, real)
    real = real[..., None]
    if settings.sum_rows:
        scores = torch.where(real, swing, 0.0).sum((1, 2))
    else:
        scores = torch.where(real, swing + gap[..., None] * settings.margin_weight, -torch.inf).amax((1, 2))
    if settings.touch_zero:
        touches = (domains.lower == 0) | (domains.upper == 0)
        scores = scores + settings.touch_zero * touches * 2 * half_width
    return scores


def best_dimensions(domains: Domains, scores: Tensor, most: int) -> Tensor:
    """``[D, L]`` int16: dimensions in the order of their scores, those that can be cut first; -1 for the others."""
    possible = cuttable(domains.lower, domains.upper)
    count = min(most, scores.shape[1])
    # a NaN score (a network that overflows) is no reason not to cut
    keyed = torch.where(possible, scores.nan_to_num(nan=0.0, neginf=torch.finfo(scores.dtype).min), -torch.inf)
    found = keyed.topk(count, dim=1)
    return torch.where(found.values > -torch.inf, found.indices, -1).to(torch.int16)
