"""What a build sets the builder of each release up with.

The builder is a stand-in: that of TensorRT-RTX, which works without a GPU, has few of these settings and no refits.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.workers.engine_host.backends.tensorrt import stand_ins
from tests.workers.engine_host.backends.tensorrt.releases import RELEASES
from tests.workers.engine_host.backends.tensorrt.stand_ins import PLAN, Bench, BuilderConfig, names
from tests.workers.networks import Network, bound, checkpoint, convolution, perceptron
from workers.channel.messages import BackendError, EngineFile
from workers.engine_host.backends.tensorrt.library import NAME

EVERY = tuple(RELEASES)
BEFORE_10, FROM_10 = EVERY[:2], EVERY[2:]
BEFORE_11 = EVERY[:4]
FP16 = {"precision": "fp16"}
AMPERE_PLUS = {"hardware_compatibility": "ampere_plus"}
SAME_CAPABILITY = {"hardware_compatibility": "same_compute_capability"}
STRIPPED = {"strip_weights": True}
STREAMED = {"weight_streaming_budget": 0}
LISTED = {"refit": [r"\d\.weight"]}
OWN_TACTICS = {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}

Options = Mapping[str, Any]
BenchOf = Callable[[str], Bench]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


@pytest.fixture
def bench_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchOf:
    return lambda release: Bench(RELEASES[release](), tmp_path, monkeypatch)


def in_releases(*cases: tuple[Options, Any, Sequence[str]]) -> list[Any]:
    """Each case in each of its releases: (release, options, what is expected)."""
    return [
        pytest.param(release, options, expected, id=f"{release}-{options}")
        for options, expected, releases in cases
        for release in releases
    ]


@pytest.mark.parametrize(
    ("release", "options", "flags"),
    in_releases(
        ({}, {"REFIT"}, EVERY),
        ({"refit": "none"}, set(), EVERY),
        (LISTED, {"REFIT_INDIVIDUAL"}, FROM_10),
        (STRIPPED, {"REFIT", "STRIP_PLAN"}, FROM_10),
        (STREAMED, {"REFIT", "WEIGHT_STREAMING"}, FROM_10),
        (FP16, {"REFIT", "FP16"}, BEFORE_11),
        ({"version_compatible": True}, {"REFIT", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}, EVERY),
        ({"timing_cache": False}, {"REFIT", "DISABLE_TIMING_CACHE"}, EVERY),
        ({"tf32": True}, {"REFIT", "TF32"}, EVERY),
    ),
)
def test_an_option_sets_the_builders_flags(
    bench_of: BenchOf, network: Network, release: str, options: Options, flags: set[str]
) -> None:
    bench = bench_of(release)
    bench.build(network, **options)
    assert names(bench.config.flags, bench.release.BuilderFlag) == flags


@pytest.mark.parametrize(
    ("release", "options", "option"),
    in_releases(
        (LISTED, "refit", BEFORE_10),
        (STRIPPED, "strip_weights", BEFORE_10),
        (STREAMED, "weight_streaming_budget", BEFORE_10),
        (SAME_CAPABILITY, "hardware_compatibility", BEFORE_10),
        (FP16, "precision", ["11.2"]),
    ),
)
def test_an_option_that_the_release_lacks_is_refused(
    bench_of: BenchOf, network: Network, release: str, options: Options, option: str
) -> None:
    with pytest.raises(BackendError, match=f"bad_option: {option}: ") as error:
        bench_of(release).build(network, **options)
    assert error.value.code == "bad_option"


@pytest.mark.parametrize(
    ("release", "options", "flags"),
    in_releases(
        ({}, {"EXPLICIT_BATCH"}, ["8.6"]),
        ({}, {"EXPLICIT_BATCH", "STRONGLY_TYPED"}, ["9.3", "10.13", "10.14"]),
        ({}, {"STRONGLY_TYPED"}, ["11.2"]),
        (FP16, {"EXPLICIT_BATCH"}, BEFORE_11),
    ),
)
def test_a_network_is_strongly_typed_where_that_is_possible_and_wanted(
    bench_of: BenchOf, network: Network, release: str, options: Options, flags: set[str]
) -> None:
    bench = bench_of(release)
    bench.build(network, **options)
    assert names(bench.network.flags, bench.release.NetworkDefinitionCreationFlag) == flags


@pytest.mark.parametrize(
    ("release", "options", "flags"),
    in_releases(({}, {"REFIT", "FP16"}, ["8.6"]), ({}, {"REFIT"}, EVERY[1:]), (FP16, {"REFIT", "FP16"}, BEFORE_11)),
)
def test_f16_needs_a_flag_where_types_are_hints(
    bench_of: BenchOf, tmp_path: Path, release: str, options: Options, flags: set[str]
) -> None:
    bench = bench_of(release)
    bench.build(perceptron(tmp_path / "half.onnx", "F16"), **options)
    assert names(bench.config.flags, bench.release.BuilderFlag) == flags


@pytest.mark.parametrize("dtypes", [("INT8", "FLOAT"), ("FLOAT", "INT8")], ids=["input", "output"])
@pytest.mark.parametrize(("release", "options"), [("8.6", {}), ("10.13", FP16)])
def test_i8_inputs_and_outputs_are_refused_where_types_are_hints(
    bench_of: BenchOf, network: Network, release: str, options: Options, dtypes: tuple[str, str]
) -> None:
    bench = bench_of(release)
    bench.dtypes = dtypes
    with pytest.raises(BackendError, match=f"so {'xy'[dtypes.index('INT8')]} would need ranges") as error:
        bench.build(network, **options)
    assert error.value.code == "graph_refused"


@pytest.mark.parametrize("release", ["9.3", "10.13", "11.2"])
def test_i8_inputs_and_outputs_are_taken_where_networks_are_strongly_typed(
    bench_of: BenchOf, network: Network, release: str
) -> None:
    bench = bench_of(release)
    bench.dtypes = ("INT8", "INT8")
    assert bench.build(network)


# Weights that can be replaced


@pytest.mark.parametrize("release", FROM_10)
def test_each_listed_weight_is_marked_refittable(bench_of: BenchOf, network: Network, release: str) -> None:
    bench = bench_of(release)
    bench.build(network, **LISTED)
    assert bench.network._marked == {"0.weight", "1.weight"}


def test_a_listed_parameter_marks_the_weights_it_is_compiled_into(bench_of: BenchOf, tmp_path: Path) -> None:
    bench = bench_of("10.13")
    bench.build(convolution(tmp_path / "net.onnx"), refit=["bn.var", "out.gain"])
    assert bench.network._marked == {"n.weight", "n.bias", "out.gain"}


@pytest.mark.parametrize("refit", ["all", "none"])
def test_nothing_is_marked_where_all_weights_or_none_are_refittable(
    bench_of: BenchOf, network: Network, refit: str
) -> None:
    bench = bench_of("10.13")
    bench.build(network, refit=refit)
    assert bench.network._marked == set()


def test_a_weight_that_cannot_be_marked_is_told(bench_of: BenchOf, network: Network) -> None:
    bench = bench_of("10.13")
    bench.fixed = ["1.weight"]
    with pytest.raises(BackendError, match=r"cannot keep 1\.weight refittable\. Leave them out") as error:
        bench.build(network, **LISTED)
    assert error.value.code == "not_refittable"


# The builder and its configuration


def test_without_options_the_configuration_has_the_defaults(bench_of: BenchOf, network: Network) -> None:
    bench = bench_of("10.13")
    bench.build(network)
    assert settings(bench) == {
        "optimization_level": 3,
        "profiling_verbosity": "LAYER_NAMES_ONLY",
        "hardware_compatibility": None,
        "workspace": None,
        "tactics": OWN_TACTICS,
    }


@pytest.mark.parametrize(
    ("release", "options", "setting"),
    in_releases(
        ({"optimization_level": 5.0}, {"optimization_level": 5}, ["10.13"]),
        ({"profiling_verbosity": "detailed"}, {"profiling_verbosity": "DETAILED"}, ["10.13"]),
        ({"workspace_bytes": 1 << 28}, {"workspace": 1 << 28}, ["10.13"]),
        ({"tactic_sources": ["cublas", "cudnn"]}, {"tactics": {"CUBLAS", "CUDNN"}}, ["10.13"]),
        ({}, {"tactics": OWN_TACTICS}, ["8.6", "11.2"]),
        (AMPERE_PLUS, {"hardware_compatibility": "AMPERE_PLUS"}, EVERY),
        (SAME_CAPABILITY, {"hardware_compatibility": "SAME_COMPUTE_CAPABILITY"}, FROM_10),
    ),
)
def test_an_option_reaches_the_configuration(
    bench_of: BenchOf, network: Network, release: str, options: Options, setting: Mapping[str, Any]
) -> None:
    bench = bench_of(release)
    bench.build(network, **options)
    assert settings(bench).items() >= setting.items()


def settings(bench: Bench) -> dict[str, Any]:
    config = bench.config
    return {
        "optimization_level": config.builder_optimization_level,
        "profiling_verbosity": getattr(config.profiling_verbosity, "name", None),
        "hardware_compatibility": getattr(config.hardware_compatibility_level, "name", None),
        "workspace": config.get_memory_pool_limit(bench.release.MemoryPoolType.WORKSPACE),
        "tactics": names(config.get_tactic_sources(), bench.release.TacticSource),
    }


def test_tactic_sources_that_are_refused_are_told(
    bench_of: BenchOf, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of("10.13")
    monkeypatch.setattr(BuilderConfig, "set_tactic_sources", lambda _config, _sources: False)
    with pytest.raises(BackendError, match="Leave out tactic_sources") as error:
        bench.build(network)
    assert error.value.code == "bad_option"


@pytest.mark.parametrize("release", EVERY)
def test_progress_is_watched_where_the_release_tells_it(bench_of: BenchOf, network: Network, release: str) -> None:
    bench = bench_of(release)
    bench.build(network)
    monitor = getattr(bench.release, "IProgressMonitor", type(None))
    assert isinstance(bench.config.progress_monitor, monitor)


@pytest.mark.parametrize("release", EVERY)
def test_a_kernel_timed_in_one_build_is_known_in_the_next(bench_of: BenchOf, network: Network, release: str) -> None:
    bench = bench_of(release)
    caches = []
    for options in ({}, {}, {"timing_cache": False}):
        bench.build(network, **options)
        caches.append(bench.config.get_timing_cache())
    assert caches[0] is caches[1] is not None
    assert caches[2] is None


def test_a_build_takes_every_processor(bench_of: BenchOf, network: Network) -> None:
    bench = bench_of("10.13")
    bench.build(network)
    assert bench.builder.max_threads == os.cpu_count()


# The parser


@pytest.mark.parametrize(
    ("release", "told"),
    [("8.6", r'definition: false \(node 7\)\. .*"opset"'), ("10.13", "definition: Det 'd': false. ")],
)
def test_a_fault_in_a_graph_is_told_with_its_node(bench_of: BenchOf, network: Network, release: str, told: str) -> None:
    bench = bench_of(release)
    known = {"desc": "false", "node": 7, "node_name": "d", "node_operator": "Det"}
    theirs = vars(bench.release.ParserError)
    bench.faults = [SimpleNamespace(**{what: lambda said=said: said for what, said in known.items() if what in theirs})]
    with pytest.raises(BackendError, match=told) as error:
        bench.build(network)
    assert error.value.code == "graph_refused"


@dataclass(slots=True)
class ConfigOfRtx(BuilderConfig):
    """What TensorRT-RTX alone has."""

    num_compute_capabilities: int = 0
    target: str = ""

    def set_compute_capability(self, capability: IntEnum, index: int) -> bool:
        assert index < self.num_compute_capabilities == 1
        self.target = capability.name
        return True


def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: type[BuilderConfig] = ConfigOfRtx) -> Bench:
    monkeypatch.setattr(stand_ins, "BuilderConfig", config)
    release = RELEASES["11.2"]()
    capabilities: Any = IntEnum
    release.ComputeCapability = capabilities("ComputeCapability", ["NONE", "CURRENT", "SM80", "SM90"], start=0)
    return Bench(release, tmp_path, monkeypatch)


def test_tensorrt_rtx_compiles_for_the_gpu_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    bench = rtx(tmp_path, monkeypatch)
    bench.build(network)
    assert isinstance(bench.config, ConfigOfRtx)
    assert bench.config.target == "CURRENT"


def test_a_compute_capability_that_is_refused_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    class Refusing(ConfigOfRtx):
        def set_compute_capability(self, capability: IntEnum, index: int) -> bool:
            ConfigOfRtx.set_compute_capability(self, capability, index)
            return False

    with pytest.raises(BackendError, match="does not compile for CURRENT") as error:
        rtx(tmp_path, monkeypatch, Refusing).build(network)
    assert error.value.code == "bad_option"


def test_an_engine_that_another_worker_compiled_for_this_gpu_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    bench = rtx(tmp_path, monkeypatch)
    plan = tmp_path / "other.plan"
    plan.write_bytes(PLAN)
    sources = bound(network, checkpoint(tmp_path / "w.safetensors", network.weights(1)))
    engine = EngineFile(
        NAME,
        str(plan),
        "sha256:",
        str(network.path),
        sources,
        network.inputs,
        options={"compute_capability": "SM90"},  # which a worker with a GPU takes for no build of its own
    )
    assert bench.backend.load(engine, lambda _message: None)
