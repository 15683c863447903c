"""A backend whose TensorRT is no more than a release's names, and objects that show what they were given.

Their public members are those of TensorRT's own objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.workers.networks import Network, bound, checkpoint
from workers.channel.messages import Build, Built
from workers.engine_host.backends.tensorrt import backend, compiler, engine
from workers.engine_host.backends.tensorrt import timing_cache as timings
from workers.engine_host.backends.tensorrt.backend import TensorrtBackend
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine
from workers.engine_host.backends.tensorrt.library import NAME
from workers.engine_host.backends.tensorrt.offer import Gpu
from workers.engine_host.resident import ResidentEngines
from workers.engine_host.tensors import ParameterFiles

PLAN = b"a plan"


def names(bits: int, enum: type[IntEnum]) -> set[str]:
    """The members of an enum whose bits are set."""
    return {one.name for one in enum if bits >> one & 1}


@dataclass(slots=True)
class TimingCache:
    def serialize(self) -> bytes:
        return b"timings"


@dataclass(slots=True)
class BuilderConfig:
    flags: int
    builder_optimization_level: int | None = None
    profiling_verbosity: IntEnum | None = None
    hardware_compatibility_level: IntEnum | None = None
    progress_monitor: object = None
    _limits: dict[IntEnum, int] = field(default_factory=dict)
    _tactics: int = 0
    _timings: TimingCache | None = None

    def set_flag(self, flag: IntEnum) -> None:
        self.flags |= 1 << flag

    def clear_flag(self, flag: IntEnum) -> None:
        self.flags &= ~(1 << flag)

    def set_memory_pool_limit(self, pool: IntEnum, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def get_memory_pool_limit(self, pool: IntEnum) -> int | None:
        return self._limits.get(pool)

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        self._tactics = tactic_sources
        return True

    def get_tactic_sources(self) -> int:
        return self._tactics

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        assert serialized_timing_cache == b""
        return TimingCache()

    def set_timing_cache(self, cache: TimingCache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._timings = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._timings


@dataclass(slots=True)
class Tensor:
    name: str
    dtype: IntEnum
    shape: tuple[int, ...] = (2, 8)


@dataclass(slots=True)
class NetworkDefinition:
    """`_fixed` are weights that it cannot keep refittable."""

    flags: int
    _input: Tensor
    _output: Tensor
    _fixed: Sequence[str]
    _marked: set[str] = field(default_factory=set)
    num_inputs: int = 1
    num_outputs: int = 1

    def get_input(self, _index: int) -> Tensor:
        return self._input

    def get_output(self, _index: int) -> Tensor:
        return self._output

    def mark_weights_refittable(self, name: str) -> bool:
        if name in self._fixed:
            return False
        self._marked.add(name)
        return True


@dataclass(slots=True)
class OnnxParser:
    """It refuses a graph in which it finds faults."""

    _faults: Sequence[object]

    def parse_from_file(self, model: str) -> bool:
        assert Path(model).is_file()
        return not self._faults

    @property
    def num_errors(self) -> int:
        return len(self._faults)

    def get_error(self, index: int) -> object:
        return self._faults[index]


@dataclass(slots=True)
class Builder:
    _bench: "Bench"
    max_threads: int = 1

    def create_network(self, flags: int = 0) -> NetworkDefinition:
        return self._bench.create_network(flags)

    def create_builder_config(self) -> BuilderConfig:
        self._bench.config = BuilderConfig(1 << self._bench.release.BuilderFlag.TF32)  # which is on unless cleared
        return self._bench.config

    def build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig) -> bytes:
        assert network is self._bench.network
        assert config is self._bench.config
        return PLAN


@dataclass(slots=True)
class SerializationConfig:
    flags: int

    def set_flag(self, flag: IntEnum) -> bool:
        self.flags |= 1 << flag
        return True

    def clear_flag(self, flag: IntEnum) -> bool:
        self.flags &= ~(1 << flag)
        return True


class CudaEngine:
    """An engine with every member of any release; what it serializes says how."""

    refittable = False
    num_layers = 1
    device_memory_size = 100
    device_memory_size_v2 = 200
    streamable_weights_size = 0
    weight_streaming_budget_v2 = 0

    def __init__(self, release: SimpleNamespace) -> None:
        self._release = release

    def serialize(self) -> str:
        return "without a configuration"

    def create_serialization_config(self) -> SerializationConfig:
        return SerializationConfig(1 << self._release.SerializationFlag.EXCLUDE_WEIGHTS)  # as of a stripped plan

    def serialize_with_config(self, config: SerializationConfig) -> str:
        return f"with {sorted(names(config.flags, self._release.SerializationFlag))}"


@dataclass
class Bench:
    """A backend on a GPU with this release, and the objects of the last build.

    `fixed` are weights that cannot be kept refittable, `faults` what the parser finds in a graph, `dtypes` those of the
    network's input and output.
    """

    release: SimpleNamespace
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    fixed: Sequence[str] = ()
    faults: Sequence[object] = ()
    dtypes: tuple[str, str] = ("FLOAT", "FLOAT")
    builder: Builder = field(init=False)
    network: NetworkDefinition = field(init=False)
    config: BuilderConfig = field(init=False)

    def __post_init__(self) -> None:
        library = SimpleNamespace(**vars(self.release))
        library.Builder, library.OnnxParser = self._create_builder, self._create_parser
        library.Runtime = lambda _log: SimpleNamespace(deserialize_cuda_engine=self._deserialize)
        for module in (backend, compiler, engine, timings):
            self.monkeypatch.setattr(module, "trt", library)
        self.monkeypatch.setattr(backend, "capabilities", lambda: capabilities(self.release))
        files, room = ParameterFiles(self.folder / "made"), ResidentEngines(1 << 30).with_room
        self.backend = TensorrtBackend(Gpu("NVIDIA H100 80GB HBM3", "9.0"), self.folder, files, room)

    def build(self, network: Network, **options: Any) -> tuple[Built, TensorrtEngine]:  # noqa: ANN401 - JSON
        sources = bound(network, checkpoint(self.folder / "weights.safetensors", network.weights(1)))
        plan = str(self.folder / "engine.plan")
        request = Build(NAME, str(network.path), sources, network.inputs, plan, (), options)
        built, loaded = self.backend.build(request, lambda _message: None)
        assert isinstance(loaded, TensorrtEngine)
        return built, loaded

    def create_network(self, flags: int) -> NetworkDefinition:
        x, y = (self.release.DataType[dtype] for dtype in self.dtypes)
        self.network = NetworkDefinition(flags, Tensor("x", x), Tensor("y", y), self.fixed)
        return self.network

    def _create_builder(self, _log: object) -> Builder:
        self.builder = Builder(self)
        return self.builder

    def _create_parser(self, network: NetworkDefinition, _log: object) -> OnnxParser:
        assert network is self.network
        return OnnxParser(self.faults)

    def _deserialize(self, plan: bytes) -> SimpleNamespace:
        """Return an engine with as many members as the release's has."""
        assert bytes(plan) == PLAN
        whole, theirs = CudaEngine(self.release), vars(self.release.ICudaEngine)
        both = [name for name in dir(whole) if name in theirs and not name.startswith("_")]
        return SimpleNamespace(**{name: getattr(whole, name) for name in both})
