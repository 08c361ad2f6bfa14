"""The description of a run: frozen models of every key, loading with all mistakes at once, digest, reference page.

A run description is a YAML file of sections and keys; every key has a default, a unit and a source where it is declared
(``data.py``, ``training.py``, ``method.py``, ``system.py``, ``wire.py``); docs/configuration.md is generated from them.
"""

from fedmpi.config.baselines import (
    FEDKLPR,
    SWITCHES,
    FedcaprConfig,
    FedpavConfig,
    FedproxConfig,
    LotteryflConfig,
    SubfedavgConfig,
    method_names,
)
from fedmpi.config.compare import differences
from fedmpi.config.data import DataConfig, SyntheticConfig
from fedmpi.config.load import builtin_config_dir, builtin_names, load_config
from fedmpi.config.method import CrrConfig, KlawConfig, KllConfig, KlpwaConfig, PrawConfig, PruningConfig, SasConfig
from fedmpi.config.model import RunConfig, to_yaml
from fedmpi.config.system import (
    CheckpointConfig,
    CommConfig,
    ComputeConfig,
    EvaluationConfig,
    RecordConfig,
    RunSection,
)
from fedmpi.config.training import (
    AugmentConfig,
    ClusteringConfig,
    FederationConfig,
    LocalConfig,
    LossConfig,
    ModelConfig,
)
from fedmpi.config.wire import WireConfig

__all__ = [
    "FEDKLPR",
    "SWITCHES",
    "AugmentConfig",
    "CheckpointConfig",
    "ClusteringConfig",
    "CommConfig",
    "ComputeConfig",
    "CrrConfig",
    "DataConfig",
    "EvaluationConfig",
    "FedcaprConfig",
    "FederationConfig",
    "FedpavConfig",
    "FedproxConfig",
    "KlawConfig",
    "KllConfig",
    "KlpwaConfig",
    "LocalConfig",
    "LossConfig",
    "LotteryflConfig",
    "ModelConfig",
    "PrawConfig",
    "PruningConfig",
    "RecordConfig",
    "RunConfig",
    "RunSection",
    "SasConfig",
    "SubfedavgConfig",
    "SyntheticConfig",
    "WireConfig",
    "builtin_config_dir",
    "builtin_names",
    "differences",
    "load_config",
    "method_names",
    "to_yaml",
]
