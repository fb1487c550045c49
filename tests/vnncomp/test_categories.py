"""The table of categories against the competition's lists, and every configuration in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from complete_verifier.config import check_supported, load_config
from complete_verifier.vnncomp.categories import (
    CATEGORIES,
    UnknownCategoryError,
    all_configs,
    by_name,
    config_for,
)
from tests.support import ROOT

CONFIGS = ROOT / "exp_configs"

# Written down apart from the table: category, network, configuration.
REGULAR_2025 = """
acasxu_2023 21/acasxu; cctsdb_yolo_2023 23/cctsdb_yolo; cersyve 25/cersyve; cgan_2023 23/cgan
cifar100_2024 25/cifar100; collins_aerospace_benchmark 23/collins_yolo_robustness
collins_rul_cnn_2022 23/collins-rul-cnn; cora_2024 25/cora; dist_shift_2023 23/dist-shift
linearizenn_2024 24/linearizenn; lsnc_relu 25/lsnc_relu; malbeware 25/malbeware; metaroom_2023 23/metaroom
ml4acopf_2024 24/ml4acopf; nn4sys 23/nn4sys; relusplitter 25/relusplitter; safenlp_2024 24/safenlp
sat_relu 25/sat_relu; soundnessbench 25/soundnessbench; tinyimagenet_2024 25/tinyimagenet
tllverifybench_2023 23/tllVerifyBench; traffic_signs_recognition_2023 23/gtrsb; vggnet16_2022 23/vggnet16
vit_2023 23/vit; yolo_2023 24/yolo-xiangruzh
"""
OLDER = """
cifar10_resnet 21/cifar10-resnet; marabou-cifar10 21/marabou-cifar10; verivital 21/verivital
cifar2020 22/cifar2020_2_255; oval21 22/oval22; sri_resnet_a 22/resnet_A; sri_resnet_b 22/resnet_B
cifar_biasfield 22/cifar_biasfield; carvana_unet_2022 22/carvana_unet_2022; cifar100 24/cifar100
tinyimagenet 24/tinyimagenet; cora 24/cora; lsnc 24/lsnc; safenlp 24/safenlp
rl_benchmarks 22/rl_benchmarks; reach_prob_density 22/reach_prob_density
"""


def _pairs(text: str) -> list[tuple[str, str]]:
    entries = [entry.split() for entry in text.replace("\n", ";").split(";") if entry]
    return [(category, f"vnncomp{config}.yaml") for category, config in entries]


@pytest.mark.parametrize(("category", "config"), _pairs(REGULAR_2025 + OLDER))
def test_a_category_has_its_configuration(category: str, config: str) -> None:
    assert config_for(category, "onnx/net.onnx", "vnnlib/prop.vnnlib") == config


@pytest.mark.parametrize(
    ("category", "network", "config"),
    [
        ("eran", "mnist_relu_9_200.onnx", "vnncomp21/eran_mlp.yaml"),
        ("eran", "ffnnSIGMOID__6x200.onnx", "vnncomp21/eran_sigmoid.yaml"),
        ("mnist_fc", "mnist-net_256x2.onnx", "vnncomp22/mnistfc_small.yaml"),
        ("mnistfc", "mnist-net_256x2.onnx", "vnncomp22/mnistfc_small.yaml"),
        ("mnist_fc", "mnist-net_256x6.onnx", "vnncomp22/mnistfc.yaml"),
        ("cifar100_tinyimagenet_resnet", "CIFAR100_resnet_small.onnx", "vnncomp22/cifar100_small_2022.yaml"),
        ("cifar100_tinyimagenet_resnet", "CIFAR100_resnet_medium.onnx", "vnncomp22/cifar100_med_2022.yaml"),
        ("cifar100_tinyimagenet_resnet", "CIFAR100_resnet_large.onnx", "vnncomp22/cifar100_large_2022.yaml"),
        ("cifar100_tinyimagenet_resnet", "CIFAR100_resnet_super.onnx", "vnncomp22/cifar100_super_2022.yaml"),
        ("cifar100_tinyimagenet_resnet", "TinyImageNet_resnet_medium.onnx", "vnncomp22/cifar100_med_2022.yaml"),
        ("cifar100_tinyimagenet_resnet", "TinyImageNet_resnet.onnx", "vnncomp22/tinyimagenet_2022.yaml"),
    ],
)
def test_the_networks_name_decides_where_a_category_has_several(category: str, network: str, config: str) -> None:
    assert config_for(category, Path("256x2 SIGMOID small", network), "p.vnnlib") == config  # folders do not count


@pytest.mark.parametrize("category", ["eran", "no_such_category", ""])
@pytest.mark.parametrize(
    ("prop", "config"),
    [
        ("test_nano.vnnlib", "vnncomp21/test.yaml"),
        ("test_tiny.vnnlib", "vnncomp21/test.yaml"),
        ("test_small.vnnlib", "vnncomp21/test.yaml"),
        ("test_prop.vnnlib", "vnncomp21/acasxu.yaml"),
        ("a_test_prop_2.vnnlib", "vnncomp21/acasxu.yaml"),
    ],
)
def test_trial_properties_come_before_the_category(category: str, prop: str, config: str) -> None:
    assert config_for(category, "net.onnx", Path("some", "folder", prop)) == config


@pytest.mark.parametrize("prop", ["test_large.vnnlib", "test_nano.vnnlib.txt", "my_test_tiny.vnnlib"])
def test_other_properties_are_no_trial(prop: str) -> None:
    assert config_for("vit", "net.onnx", prop) == "vnncomp23/vit.yaml"


def test_an_unknown_category_is_named() -> None:
    with pytest.raises(UnknownCategoryError, match="acasxu_2099: unknown category; known are .*acasxu_2023"):
        config_for("acasxu_2099", "net.onnx", "prop.vnnlib")


def test_no_name_stands_for_two_categories() -> None:
    assert len(by_name()) == sum(len(category.names) for category in CATEGORIES)


def _all_files() -> list[Path]:
    return sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("path", _all_files(), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_loads(path: Path) -> None:
    """No unknown key, no unfit value; and its first line says what it is for."""
    loaded = load_config(["--config", str(path)])
    assert loaded.config_file == path
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("config", sorted(all_configs()))
def test_configurations_of_the_competition_are_accepted(config: str) -> None:
    """What the harness adds to them as well: nothing in them may end a run before it begins."""
    loaded = load_config(["--config", str(CONFIGS / config), "--precompile_jit", "--save_adv_example"])
    check_supported(loaded)
    assert loaded.config.general.csv_name is None and loaded.config.bab.override_timeout is None


def test_no_configuration_is_orphaned() -> None:
    here = {str(path.relative_to(CONFIGS)) for path in _all_files() if path.parent.name.startswith("vnncomp")}
    assert here == set(all_configs())
