"""A rank whose memory ends within a round of boxes that others take part in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from complete_verifier.input_bab.search import _Search, _State


@pytest.mark.parametrize("sharing", [1, 2])
def test_a_round_is_undone_only_where_nobody_waits_within_it(monkeypatch: pytest.MonkeyPatch, sharing: int) -> None:
    """Ranks that share weights wait in a pass for the one that left it: it has to end, and say so."""

    def short(self: _Search, *given: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(_Search, "_round", short)
    search: Any = object.__new__(_Search)
    search.state = _State(0.0)
    weights = SimpleNamespace(size=sharing)
    search.bounder = SimpleNamespace(problem=SimpleNamespace(context=SimpleNamespace(weights=weights)))
    if sharing > 1:
        with pytest.raises(MemoryError):
            search._attempt([0], [0], False)
    else:
        assert search._attempt([0], [0], False).full
