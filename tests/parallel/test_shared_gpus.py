"""More ranks than GPUs: NCCL refuses that somewhere inside, so it is refused before, with a line that says what to do.

What ranks compute that do share a GPU is tested by tests/parallel/test_matrix.py on a GPU.
"""

from __future__ import annotations

from typing import Literal
from unittest.mock import patch

import pytest

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from benchmarks.parallel import measuring
from benchmarks.parallel.run import _possible
from benchmarks.parallel.starting import Job


@pytest.mark.parametrize("backend", ["auto", "nccl"])
def test_it_is_refused(backend: Literal["auto", "nccl"], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with patch("torch.cuda.device_count", return_value=1), pytest.raises(ConfigError) as caught:
        DistributedContext.from_env(ParallelSettings(rows="shard", backend=backend), "cuda")
    assert "2 ranks on a machine with 1 GPU:" in str(caught.value)
    assert "parallel.backend = gloo" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experiments_share_a_gpu_only_if_asked_to() -> None:
    alone, two = Job("a.py", 1, ()), Job("a.py", 2, ())
    by_command = Job("by_command.py", 1, ("--mode", "fsdp", "--ranks", "2"))
    held, refused = _possible([alone, two, by_command], 1)
    assert held == [alone] and len(refused) == 2 and all("needs 2 GPUs" in line for line in refused)
    assert _possible([alone, two, by_command], 0)[0] == [alone, two, by_command]
    with patch("torch.cuda.device_count", return_value=1):
        assert [measuring.backend(ranks) for ranks in (1, 2)] == ["auto", "gloo"]
    with patch("torch.cuda.device_count", return_value=0):
        assert measuring.backend(2) == "auto"
