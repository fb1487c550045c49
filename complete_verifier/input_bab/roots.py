"""Where a search starts: one domain per group of open clauses, its region's whole box."""

from __future__ import annotations

import torch
from torch import Tensor

from complete_verifier.incomplete.result import IncompleteResult, known_gap
from complete_verifier.input_bab.bounding import Bounder
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.tile_work import MOST_LEVELS


def root_domains(bounder: Bounder, start: IncompleteResult, box: tuple[Tensor, Tensor]) -> Domains:
    """The roots of the bounder's groups. ``box``: lower and upper ends ``[n_regions, m]``."""
    groups, clauses = bounder.groups, bounder.problem.clauses
    count, (g, _), device = len(groups), groups.shape, groups.region.device
    known = known_gap(clauses.margin(start.lower)[groups.clause.clamp_min(0)])
    low, high = (side[groups.region] for side in box)
    inputs = low.shape[1]
    half = low.new_zeros(count, bounder.half_spaces, inputs + 1)
    half[..., -1] = -1  # 0 . x - 1 <= 0: everything
    return Domains(
        id=torch.arange(count, device=device),
        group=torch.arange(count, device=device),
        depth=torch.zeros(count, dtype=torch.int64, device=device),
        lower=low,
        upper=high,
        open=groups.clause >= 0,
        margin=torch.where(groups.clause >= 0, known, torch.inf).reshape(count, g),
        order=torch.full((count, min(MOST_LEVELS, inputs)), -1, dtype=torch.int16, device=device),
        phase=torch.zeros(count, bounder.phases, dtype=torch.int8, device=device),
        half=half,
    )
