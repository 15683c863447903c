"""Builds on a machine without a GPU, and what the builder of TensorRT-RTX was set up with for each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.definitions.profiles import Profile, Range
from tests.workers.networks import Network, bound, checkpoint
from workers.channel.messages import Build, Built, LogLine, Message, Progress, TensorFile
from workers.engine_host.backends.tensorrt.backend import TensorrtBackend
from workers.engine_host.backends.tensorrt.library import NAME, extents, trt
from workers.engine_host.resident import ResidentEngines
from workers.engine_host.tensors import ParameterFiles

needs_rtx = pytest.mark.skipif(NAME != "tensorrt_rtx", reason="only TensorRT-RTX compiles without a GPU")


@dataclass
class Workshop:
    """A backend without a GPU, what it said, and what the last build's builder held. Files go below `folder`."""

    folder: Path
    messages: list[Message] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    resident: ResidentEngines = field(default_factory=lambda: ResidentEngines(1 << 30))

    def __post_init__(self) -> None:
        self.files = ParameterFiles(self.folder / "made")
        self.backend = TensorrtBackend(None, self.folder, self.files, self.resident.with_room)

    def log(self, *levels: str) -> list[str]:
        return [one.text for one in self.messages if isinstance(one, LogLine) and one.level in levels]

    @property
    def progress(self) -> list[Progress]:
        return [one for one in self.messages if isinstance(one, Progress)]

    def request(
        self,
        network: Network,
        profiles: Sequence[Profile] = (),
        tensors: dict[str, TensorFile] | None = None,
        **options: Any,  # noqa: ANN401 - JSON
    ) -> Build:
        tensors = tensors or checkpoint(self.folder / "weights.safetensors", network.weights(1))
        plan = str(self.folder / "engine.plan")
        path, sources = str(network.path), bound(network, tensors)
        return Build(NAME, path, sources, network.inputs, plan, tuple(profiles), options)

    def build(self, *given: Any, **options: Any) -> Built:  # noqa: ANN401 - as `request`
        return self.carry_out(self.request(*given, **options))

    def carry_out(self, request: Build) -> Built:
        self.messages.clear()
        built, engine = self.backend.build(request, self.messages.append)
        assert engine is None
        return built


def watch_builders(monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any]) -> None:
    """Note in `seen` what each builder is about to compile; the compilation is real."""

    class Builder(trt.Builder):
        def __init__(self, log: trt.ILogger) -> None:
            super().__init__(log)
            self.profiles: list[trt.IOptimizationProfile] = []

        def create_network(self, flags: int = 0) -> trt.INetworkDefinition:
            seen["flags"] = flags
            return super().create_network(flags)

        def create_optimization_profile(self) -> trt.IOptimizationProfile:
            self.profiles.append(super().create_optimization_profile())
            return self.profiles[-1]

        def build_serialized_network(
            self, network: trt.INetworkDefinition, config: trt.IBuilderConfig
        ) -> trt.IHostMemory:
            seen.update(interface(network), **configuration(config))
            names = list(seen["inputs"])
            seen["profiles"] = [{name: shapes(one, name) for name in names} for one in self.profiles]
            return super().build_serialized_network(network, config)

    monkeypatch.setattr(trt, "Builder", Builder)


def interface(network: trt.INetworkDefinition) -> dict[str, Any]:
    def tensor(one: trt.ITensor) -> tuple[str, tuple[int, ...]]:
        return one.dtype.name, extents(one.shape)

    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "inputs": {one.name: tensor(one) for one in inputs},
        "outputs": {one.name: tensor(one) for one in outputs},
    }


def configuration(config: Any) -> dict[str, Any]:  # noqa: ANN401 - trt.IBuilderConfig as TensorRT-RTX has it
    return {
        "set": {name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)},
        "optimization_level": config.builder_optimization_level,
        "profiling_verbosity": config.profiling_verbosity.name,
        "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "targets": [config.get_compute_capability(index).name for index in range(config.num_compute_capabilities)],
        "tactics": {
            name for name, one in trt.TacticSource.__members__.items() if config.get_tactic_sources() >> int(one) & 1
        },
    }


def shapes(profile: trt.IOptimizationProfile, name: str) -> Range:
    low, best, high = map(extents, profile.get_shape(name))
    return Range(low, best, high)


def rows(network: Network, low: int = 1, best: int = 2, high: int = 4) -> Profile:
    """Each dynamic dimension of each input between `low` and `high`."""
    return {
        one.name: Range(
            *(tuple(dim if isinstance(dim, int) else size for dim in one.shape) for size in (low, best, high))
        )
        for one in network.inputs
    }
