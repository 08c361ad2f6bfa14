"""A run, completely described."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import model_validator

from fedmpi.config.advice import cautions
from fedmpi.config.base import Problem, Section, is_output_only, key
from fedmpi.config.baselines import (
    FEDKLPR,
    SWITCHES,
    FedcaprConfig,
    FedpavConfig,
    FedproxConfig,
    LotteryflConfig,
    MethodName,
    SubfedavgConfig,
    method_names,
)
from fedmpi.config.data import DataConfig
from fedmpi.config.method import (
    CrrConfig,
    KlawConfig,
    KllConfig,
    KlpwaConfig,
    PrawConfig,
    PruningConfig,
    SasConfig,
)
from fedmpi.config.system import (
    CheckpointConfig,
    CommConfig,
    ComputeConfig,
    EvaluationConfig,
    RecordConfig,
    RunSection,
)
from fedmpi.config.training import ClusteringConfig, FederationConfig, LocalConfig, LossConfig, ModelConfig
from fedmpi.config.wire import WireConfig


class RunConfig(Section):
    """All sections of a run; every key has a default, the sum of which is the paper's run on embedded data."""

    method: MethodName = key(
        FEDKLPR,
        "What runs: fedklpr, one of the methods that it is compared with, or a bound: local (each client alone) and "
        "centralised (one client with all images). The parts of fedklpr have switches (`kll.enabled` and so on), which "
        "any other method turns off; turning one on beside it is a mistake.",
        source="fedmpi",
        type_text=" | ".join(method_names()),
    )
    run: RunSection = RunSection()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    federation: FederationConfig = FederationConfig()
    local: LocalConfig = LocalConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    loss: LossConfig = LossConfig()
    kll: KllConfig = KllConfig()
    klaw: KlawConfig = KlawConfig()
    praw: PrawConfig = PrawConfig()
    klpwa: KlpwaConfig = KlpwaConfig()
    sas: SasConfig = SasConfig()
    pruning: PruningConfig = PruningConfig()
    crr: CrrConfig = CrrConfig()
    fedprox: FedproxConfig = FedproxConfig()
    fedpav: FedpavConfig = FedpavConfig()
    fedcapr: FedcaprConfig = FedcaprConfig()
    lotteryfl: LotteryflConfig = LotteryflConfig()
    subfedavg: SubfedavgConfig = SubfedavgConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    comm: CommConfig = CommConfig()
    wire: WireConfig = WireConfig()
    record: RecordConfig = RecordConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def _switch_off(cls, content: Any) -> Any:  # noqa: ANN401  (whatever was written)
        """Let the method decide the defaults of FedKLPR's switches."""
        if not isinstance(content, dict) or content.get("method", FEDKLPR) == FEDKLPR:
            return content
        return content | {name: _off(content.get(name, {})) for name in SWITCHES}

    def problems(self) -> Iterator[Problem]:
        """Check that no part of FedKLPR is turned on beside another method."""
        for name in SWITCHES:
            if self.method != FEDKLPR and getattr(self, name).enabled:
                yield (
                    f"{name}.enabled",
                    f"is a part of method fedklpr, but method is {self.method}: drop one of them",
                )

    def digest(self) -> str:
        """Return the sha256, as 64 hex digits, of every key that can change results or what the ranks exchange.

        Left out are the keys declared ``output_only`` (``run.name``, ``checkpoint.every``, ...): they only decide where
        and when output is written. The content of the data and weight files does not enter, only their paths.
        """
        content = _without_output_only(self)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def warnings(self) -> tuple[str, ...]:
        """Return one line per setting that is allowed but probably not meant, or that a report must mention."""
        return tuple(cautions(self))


def _off(section: object) -> object:
    """Return a section as given, switched off unless it says otherwise."""
    if isinstance(section, Section):
        section = section.model_dump(exclude_unset=True)
    return {"enabled": False} | section if isinstance(section, dict) else section


def _without_output_only(section: Section) -> dict[str, Any]:
    """Return a section as JSON values without the keys that only concern output."""
    content = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            content[name] = _without_output_only(value)
            if not content[name]:
                del content[name]
        elif is_output_only(field):
            del content[name]
    return content


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists in one line."""


def _flow_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _flow_list)


def to_yaml(config: RunConfig) -> str:
    """Return the whole run description as YAML, sections and keys in order; it loads back to an equal object."""
    content = config.model_dump(mode="json")
    return yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=2**20
    )
