"""Full precision for every bounding path, whatever the process-wide flags say (DESIGN 5, Numerics)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

# (backend, operation) pairs of torch's precision interface (torch >= 2.9). An entry "none" takes the value of the
# backend's "all", and that one of ("generic", "all"): parents stand before their children.
_PARENTS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_CHILDREN = tuple((backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn"))
_AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def full_precision() -> Iterator[None]:
    """Within: no TF32, no bf16 matrix products on CPU, no autocast, cuDNN deterministic and never chosen by timing.

    The caller's flags are put back on the way out, those that were inherited as inherited. Torch has an old and a new
    interface for the same flags and raises where they disagree: inside they agree, afterwards they are as they were.
    """
    cudnn = torch.backends.cudnn
    saved_cudnn = (cudnn.benchmark, cudnn.deterministic)
    saved = _Precision.read_and_raise()
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        with ExitStack() as stack:
            for device in _AUTOCAST_DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = saved_cudnn
        saved.restore()


@dataclass(frozen=True, slots=True)
class _Precision:
    """The caller's flags: own values of the new interface (not inherited ones), and those of the old one."""

    pairs: dict[tuple[str, str], str]
    matmul: str
    cudnn_tf32: bool

    @classmethod
    def read_and_raise(cls) -> _Precision:
        """Note all flags and leave full precision behind."""
        if not _has_pairs():
            matmul, tf32 = torch.get_float32_matmul_precision(), bool(torch.backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
            return cls({}, matmul, tf32)
        get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
        pairs: dict[tuple[str, str], str] = {}
        for pair in _PARENTS:
            # the getter answers with what is inherited; a parent that is cleared shows the child's own value
            pairs[pair] = get(*pair)
            put(*pair, "none")
        for pair in _CHILDREN:
            pairs[pair] = get(*pair)
        tf32 = _old_cudnn_flag()
        torch.backends.cudnn.allow_tf32 = False  # or libraries that read it (torch's exporter) fail inside
        for pair in (*_PARENTS, *_CHILDREN):
            put(*pair, "ieee")
        # readable only now: where old and new flags disagree, the old one cannot be asked for
        matmul = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return cls(pairs, matmul, tf32)

    def restore(self) -> None:
        """Put everything back: the old interface first, because it writes to the new one."""
        torch.set_float32_matmul_precision(self.matmul)
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        for pair, value in self.pairs.items():
            torch._C._set_fp32_precision_setter(*pair, value)


def _old_cudnn_flag() -> bool:
    """The old interface's own flag, which can be read only while the new one says the same. Leaves that changed."""
    for op in ("conv", "rnn"):
        torch._C._set_fp32_precision_setter("cuda", op, "tf32")
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return False


def _has_pairs() -> bool:
    return hasattr(torch._C, "_get_fp32_precision_getter")
