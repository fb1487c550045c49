"""Checks of the settings together: keys that speak of another kind of run, and the file of minimal settings."""

from __future__ import annotations

from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig
from complete_verifier.config.options import option_table
from complete_verifier.config.render import yaml_lines
from complete_verifier.driver.instances import is_dataset, is_list, listed_instances
from complete_verifier.driver.outputs import refuse_losses
from complete_verifier.reporting.results import prepare_output, write_atomically

# What is asked about an example of a data set; a VNN-LIB file says it itself.
_OF_EXAMPLES = (
    "specification.type", "specification.robustness_type", "specification.norm", "specification.epsilon",
    "bab.decision_thresh",
)  # fmt: skip
# Settings that are user code or stay as they are.
_USER_CODE = (
    "model.onnx_loader", "general.adhoc_tuning", "attack.attack_func", "attack.adv_saver", "attack.adv_verifier"
)  # fmt: skip


def check_asked(loaded: LoadedConfig) -> None:
    """Refuse what would silently ask something else than it says.

    Raises:
        ConfigError: a setting about examples of a data set beside a VNN-LIB file, or an unknown name of user code.
    """
    table = option_table()
    for path in _USER_CODE:
        value = table[path].of(loaded.config)
        if value != table[path].default and not value.lstrip().startswith("Customized"):
            raise ConfigError(f'{loaded.origins[path]}: {path} = {value}: unknown; give Customized("file.py", "name")')
    if is_dataset(loaded.config):
        return
    for path in _OF_EXAMPLES:
        if table[path].of(loaded.config) != table[path].default:
            raise ConfigError(
                f"{loaded.origins[path]}: {path} speaks of examples of a data set (data.dataset), but a VNN-LIB file is"
                " asked about, which says it itself; leave it out"
            )


def refuse_several(loaded: LoadedConfig, sweep: bool, machines: int | None) -> None:
    """What several ranks have no part in, and runs of many instances where nobody could start ranks for each.

    Args:
        sweep: it is a list, whatever the settings name.
        machines: on so many this command is to start ranks; None: this process is a rank that `torchrun` has started.

    Raises:
        ConfigError: it was asked of several ranks.
    """
    config = loaded.config
    if config.general.prepare_only:
        raise ConfigError(
            "general.prepare_only: reads and checks the input, which one process does; leave out --nproc or torchrun"
        )
    listed, examples = sweep or is_list(config), is_dataset(config)
    if not (listed or examples):
        return
    many, each = ("a list", "its instances") if listed else ("a data set", "its examples")
    if machines is None:
        raise ConfigError(f"{many} starts ranks for each of {each}: use abcrown --nproc N instead of torchrun")
    if machines > 1:
        mend = "name one instance" if listed else "leave it out"
        raise ConfigError(f"--nnodes {machines}: {many} runs on one machine so far; {mend}")


def save_minimal_config(loaded: LoadedConfig) -> None:
    """Write the settings that differ from the defaults to `debug.save_minimal_config`, if that is set.

    Keys of `debug.save_minimal_config_omit_keys` are left out, by path or by their last part, and the two themselves.

    Raises:
        ConfigError: the file cannot be written, or the run reads it.
    """
    target = loaded.config.debug.save_minimal_config
    if target is None:
        return
    refuse_losses(loaded, listed_instances(loaded.config) if is_list(loaded.config) else ())
    omitted = set(loaded.config.debug.save_minimal_config_omit_keys)
    own = {"debug.save_minimal_config", "debug.save_minimal_config_omit_keys"}
    options = [
        option
        for path, option in option_table().items()
        if option.of(loaded.config) != option.default
        and path not in own
        and not {path, path.rpartition(".")[2]} & omitted
    ]
    prepare_output(Path(target), "debug.save_minimal_config")
    text = "".join(f"{line}\n" for line in yaml_lines(options, lambda option: option.of(loaded.config)))
    write_atomically(Path(target), text.encode())
