"""Which configuration each VNN-COMP benchmark category is run with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType


class UnknownCategoryError(Exception):
    """A category that the table does not know; the message names it and those that come near."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Another configuration for the networks of a category whose file name contains ``part`` (case counts)."""

    part: str
    config: str


@dataclass(frozen=True, slots=True)
class Category:
    """A benchmark under all its names; ``config`` is taken where no variant fits. Paths start from ``exp_configs``."""

    names: tuple[str, ...]
    config: str
    variants: tuple[Variant, ...] = ()

    def config_for(self, network: str) -> str:
        """The configuration for a network's file name: that of the first variant that fits."""
        return next((variant.config for variant in self.variants if variant.part in network), self.config)


# The names of 2025 first, then those of earlier years; a name without its year means the same benchmark, unless an
# older category had that very name.
CATEGORIES: tuple[Category, ...] = (
    Category(("acasxu_2023", "acasxu"), "vnncomp21/acasxu.yaml"),
    Category(("cctsdb_yolo_2023", "cctsdb_yolo"), "vnncomp23/cctsdb_yolo.yaml"),
    Category(("cersyve", "cersyve_2025"), "vnncomp25/cersyve.yaml"),
    Category(("cgan_2023", "cgan"), "vnncomp23/cgan.yaml"),
    Category(("cifar100_2024",), "vnncomp25/cifar100.yaml"),
    Category(("collins_aerospace_benchmark",), "vnncomp23/collins_yolo_robustness.yaml"),
    Category(("collins_rul_cnn_2022", "collins_rul_cnn", "collins-rul-cnn"), "vnncomp23/collins-rul-cnn.yaml"),
    Category(("cora_2024",), "vnncomp25/cora.yaml"),
    Category(("dist_shift_2023", "dist_shift", "dist-shift"), "vnncomp23/dist-shift.yaml"),
    Category(("linearizenn_2024", "linearizenn"), "vnncomp24/linearizenn.yaml"),
    Category(("lsnc_relu",), "vnncomp25/lsnc_relu.yaml"),
    Category(("malbeware", "malbeware_2025"), "vnncomp25/malbeware.yaml"),
    Category(("metaroom_2023", "metaroom"), "vnncomp23/metaroom.yaml"),
    Category(("ml4acopf_2024", "ml4acopf_2023", "ml4acopf"), "vnncomp24/ml4acopf.yaml"),
    Category(("nn4sys", "nn4sys_2023"), "vnncomp23/nn4sys.yaml"),
    Category(("relusplitter", "relusplitter_2025"), "vnncomp25/relusplitter.yaml"),
    Category(("safenlp_2024", "safenlp"), "vnncomp24/safenlp.yaml"),
    Category(("sat_relu", "sat_relu_2025"), "vnncomp25/sat_relu.yaml"),
    Category(("soundnessbench", "soundnessbench_2025"), "vnncomp25/soundnessbench.yaml"),
    Category(("tinyimagenet_2024",), "vnncomp25/tinyimagenet.yaml"),
    Category(("tllverifybench_2023", "tllverifybench"), "vnncomp23/tllVerifyBench.yaml"),
    Category(("traffic_signs_recognition_2023", "traffic_signs_recognition"), "vnncomp23/gtrsb.yaml"),
    Category(("vggnet16_2022", "vggnet16_2023", "vggnet16"), "vnncomp23/vggnet16.yaml"),
    Category(("vit_2023", "vit"), "vnncomp23/vit.yaml"),
    Category(("yolo_2023", "yolo"), "vnncomp24/yolo-xiangruzh.yaml"),
    # -- 2024 and before -----------------------------------------------------------------------------------------
    Category(("cifar100",), "vnncomp24/cifar100.yaml"),
    Category(("tinyimagenet",), "vnncomp24/tinyimagenet.yaml"),
    Category(("cora",), "vnncomp24/cora.yaml"),
    Category(("lsnc", "lsnc_2024"), "vnncomp24/lsnc.yaml"),
    Category(("cifar10_resnet",), "vnncomp21/cifar10-resnet.yaml"),
    Category(("eran",), "vnncomp21/eran_mlp.yaml", (Variant("SIGMOID", "vnncomp21/eran_sigmoid.yaml"),)),
    Category(("marabou-cifar10",), "vnncomp21/marabou-cifar10.yaml"),
    Category(("verivital",), "vnncomp21/verivital.yaml"),
    Category(("mnist_fc", "mnistfc"), "vnncomp22/mnistfc.yaml", (Variant("256x2", "vnncomp22/mnistfc_small.yaml"),)),
    Category(("cifar2020",), "vnncomp22/cifar2020_2_255.yaml"),
    Category(("oval21",), "vnncomp22/oval22.yaml"),
    Category(
        ("cifar100_tinyimagenet_resnet",),
        "vnncomp22/tinyimagenet_2022.yaml",
        (
            Variant("small", "vnncomp22/cifar100_small_2022.yaml"),
            Variant("medium", "vnncomp22/cifar100_med_2022.yaml"),
            Variant("large", "vnncomp22/cifar100_large_2022.yaml"),
            Variant("super", "vnncomp22/cifar100_super_2022.yaml"),
        ),
    ),
    # Three controllers and two kinds of dynamics have configurations of their own upstream; here one serves each.
    Category(("rl_benchmarks",), "vnncomp22/rl_benchmarks.yaml"),
    Category(("reach_prob_density",), "vnncomp22/reach_prob_density.yaml"),
    Category(("sri_resnet_a",), "vnncomp22/resnet_A.yaml"),
    Category(("sri_resnet_b",), "vnncomp22/resnet_B.yaml"),
    Category(("cifar_biasfield",), "vnncomp22/cifar_biasfield.yaml"),
    Category(("carvana_unet_2022", "carvana_unet"), "vnncomp22/carvana_unet_2022.yaml"),
)

# Properties of the organisers' trial runs have a configuration whatever the category is called.
_SMALL_TRIAL = re.compile(r"test_(nano|tiny|small)\.vnnlib")
TRIAL_CONFIG = "vnncomp21/test.yaml"
TRIAL_ACASXU = "test_prop"
TRIAL_ACASXU_CONFIG = "vnncomp21/acasxu.yaml"


@cache
def by_name() -> Mapping[str, Category]:
    """All categories by each of their names."""
    return MappingProxyType({name: category for category in CATEGORIES for name in category.names})


def config_for(category: str, network: str | Path, specification: str | Path) -> str:
    """The configuration of an instance, as a path below ``exp_configs``.

    Raises:
        UnknownCategoryError: no rule fits.
    """
    prop = Path(specification).name
    if _SMALL_TRIAL.fullmatch(prop):
        return TRIAL_CONFIG
    if TRIAL_ACASXU in prop:
        return TRIAL_ACASXU_CONFIG
    known = by_name().get(category)
    if known is None:
        raise UnknownCategoryError(f"{category}: unknown category; known are {', '.join(sorted(by_name()))}")
    return known.config_for(Path(network).name)


def all_configs() -> Iterator[str]:
    """Every configuration that some instance can get, each once."""
    found = dict.fromkeys((TRIAL_CONFIG, TRIAL_ACASXU_CONFIG))
    for category in CATEGORIES:
        found |= dict.fromkeys((category.config, *(variant.config for variant in category.variants)))
    return iter(found)
