"""Settings: what can be set, by YAML file and flags, and how far each option is supported."""

from complete_verifier.config.customized import CustomizedRef, NamedCall, parse_customized, parse_reference, resolve
from complete_verifier.config.load import LoadedConfig, load_config, load_mapping
from complete_verifier.config.readers import literal_dict
from complete_verifier.config.render import render_config, to_yaml
from complete_verifier.config.run_options import RunOptions
from complete_verifier.config.schema import Config
from complete_verifier.config.support import check_supported

__all__ = [
    "Config",
    "CustomizedRef",
    "LoadedConfig",
    "NamedCall",
    "RunOptions",
    "check_supported",
    "literal_dict",
    "load_config",
    "load_mapping",
    "parse_customized",
    "parse_reference",
    "render_config",
    "resolve",
    "to_yaml",
]
