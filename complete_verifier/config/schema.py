"""The whole configuration: nine sections, frozen."""

from __future__ import annotations

from complete_verifier.config.schema_attack import Attack
from complete_verifier.config.schema_bab import Bab
from complete_verifier.config.schema_base import Section, section
from complete_verifier.config.schema_debug import Debug
from complete_verifier.config.schema_general import General
from complete_verifier.config.schema_model import Data, Model
from complete_verifier.config.schema_parallel import Parallel
from complete_verifier.config.schema_solver import Solver
from complete_verifier.config.schema_specification import Specification


class Config(Section):
    """All settings of a run. Only the driver sees the whole; everything else receives its section or plain values."""

    general: General = section(General)
    model: Model = section(Model)
    data: Data = section(Data)
    specification: Specification = section(Specification)
    solver: Solver = section(Solver)
    bab: Bab = section(Bab)
    attack: Attack = section(Attack)
    debug: Debug = section(Debug)
    parallel: Parallel = section(Parallel)
