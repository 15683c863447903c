import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from tests.workers.hosting import Hosting
from tests.workers.networks import attention, bound, checkpoint
from workers.channel.messages import (
    BackendError,
    Benchmark,
    Benchmarked,
    Build,
    Built,
    EngineFile,
    Message,
    Progress,
    Report,
    Spent,
)
from workers.engine_host.backends.base import Arrays, LoadedEngine, Offered
from workers.engine_host.latency import benchmark, latency_of, turns_of
from workers.engine_host.run_inputs import digest_of, fixed_inputs

ENGINE = EngineFile(
    backend="scripted",
    plan="plan",
    root_plan="sha256:" + "0" * 64,
    definition="definition",
    parameters=(),
    inputs=(InputSpec("x", "F32", ("batch", 4)), InputSpec("mask", "I64", ("batch",))),
    profiles=({"x": Range((1, 4), (3, 4), (8, 4)), "mask": Range((1,), (3,), (8,))},),
    options={"tf32": False, "strip_weights": True},
)


@dataclass
class ScriptedEngine:
    """An engine whose every run takes `seconds`; `turns` remembers who was measured, and how often."""

    name: str
    seconds: float
    turns: list[tuple[str, int, int]]
    nbytes: int = 1000
    shapes: list[dict[str, tuple[int, ...]]] = field(default_factory=list)

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> list[float]:
        self.turns.append((self.name, iterations, warmup))
        self.shapes.append({name: array.shape for name, array in inputs.items()})
        return [self.seconds] * iterations

    def layers(self, _inputs: Arrays) -> tuple[tuple[str, float], ...]:
        return (("first", self.seconds / 2), ("second", self.seconds / 4))

    def inspect(self) -> dict[str, str]:
        return {"name": self.name}

    def run(self, inputs: Arrays) -> dict[str, "np.ndarray[Any, Any]"]:
        raise NotImplementedError


@dataclass
class ScriptedBackend:
    """A backend that compiles to `rival`, whatever it is asked for, and remembers what that was."""

    rival: LoadedEngine | None
    builds: list[Build] = field(default_factory=list)
    offered = Offered("1.0", ("here",), ("here",), {})
    refits_in_place = False

    def build(self, request: Build, _report: Report) -> tuple[Built, LoadedEngine | None]:
        self.builds.append(request)
        Path(request.plan).write_bytes(b"plan")
        return Built(request.plan, "sha256:", 4, "here", {"tactics": 1}, {"compile": Spent(2.0)}, "1.0"), self.rival

    def load(self, engine: EngineFile, report: Report) -> LoadedEngine:
        raise NotImplementedError

    def refit(self, request: Any, resident: Any, report: Report) -> Any:  # noqa: ANN401 - never called
        raise NotImplementedError

    def materialising(self, plan: Any, engine: Any, report: Report) -> Any:  # noqa: ANN401 - never called
        raise NotImplementedError


@dataclass
class Bench:
    """An engine and a rival that take 3 ms and 2 ms a run, measured together."""

    report: Path
    turns: list[tuple[str, int, int]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = ScriptedEngine("engine", 0.003, self.turns)
        self.rival = ScriptedEngine("rival", 0.002, self.turns)
        self.backend = ScriptedBackend(self.rival)

    def measure(self, **changes: Any) -> Benchmarked:  # noqa: ANN401 - fields of Benchmark
        request = replace(Benchmark(ENGINE, iterations=20, warmup=5, report=str(self.report)), **changes)
        return benchmark(request, self.engine, self.backend, self.report.parent, self.messages.append)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.report.read_text())
        return document


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "report.json")


def test_the_figures_are_those_of_the_samples() -> None:
    latency = latency_of([0.001] * 98 + [0.002, 0.1])
    assert latency.median == pytest.approx(0.001)
    assert 0.002 < latency.p99 < 0.1
    assert latency.mean == pytest.approx(0.002)
    assert latency.throughput == pytest.approx(500)


@pytest.mark.parametrize(
    ("iterations", "turns"), [(1, [1]), (9, [1] * 9), (10, [1] * 10), (23, [3, 3, 3, 2, 2, 2, 2, 2, 2, 2])]
)
def test_all_iterations_are_spread_over_the_turns(iterations: int, turns: Sequence[int]) -> None:
    assert turns_of(iterations) == turns


def test_an_engine_alone_is_warmed_up_once_and_runs_as_often_as_asked(bench: Bench) -> None:
    found = bench.measure(warmup=50)
    assert sum(iterations for _, iterations, _ in bench.turns) == 20
    assert [warmup for *_, warmup in bench.turns] == [50] + [3] * 9
    assert found.engine.median == pytest.approx(0.003)
    assert found.not_refittable is None
    assert bench.backend.builds == []


def test_nothing_runs_unmeasured_without_a_warmup(bench: Bench) -> None:
    bench.measure(warmup=0)
    assert {warmup for *_, warmup in bench.turns} == {0}


def test_the_two_engines_take_turns_and_the_one_that_begins_changes(bench: Bench) -> None:
    bench.measure(iterations=4, against_not_refittable=True)
    order = [name for name, *_ in bench.turns]
    assert order == ["engine", "rival", "rival", "engine"] * 2


def test_the_engine_compared_with_gets_the_same_runs_and_inputs(bench: Bench) -> None:
    found = bench.measure(against_not_refittable=True)
    counted = {name: sorted(turn[1:] for turn in bench.turns if turn[0] == name) for name in ("engine", "rival")}
    assert counted["engine"] == counted["rival"]
    assert bench.engine.shapes == bench.rival.shapes
    assert found.not_refittable is not None
    assert found.not_refittable.median == pytest.approx(0.002)


def test_the_engine_compared_with_is_compiled_without_refit_support_and_what_needs_it(bench: Bench) -> None:
    bench.measure(against_not_refittable=True)
    (build,) = bench.backend.builds
    assert build.options == {"tf32": False, "refit": "none"}
    assert (build.definition, build.profiles, build.parameters) == ("definition", ENGINE.profiles, ())
    assert Path(build.plan).is_relative_to(bench.report.parent)
    assert not Path(build.plan).parent.exists()


def test_an_engine_that_this_device_cannot_run_is_no_comparison(bench: Bench) -> None:
    bench.backend.rival = None
    with pytest.raises(BackendError, match="cannot_compare"):
        bench.measure(against_not_refittable=True)
    assert not bench.report.exists()


def test_inputs_left_out_have_the_shape_of_the_first_profile(bench: Bench) -> None:
    assert bench.measure().shapes == {"x": (3, 4), "mask": (3,)}
    assert bench.measure(shapes={"x": (8, 4), "mask": (8,)}).shapes == {"x": (8, 4), "mask": (8,)}
    assert bench.engine.shapes[-1] == {"x": (8, 4), "mask": (8,)}


def test_the_report_holds_every_sample_and_what_the_inspector_says(bench: Bench) -> None:
    found = bench.measure(against_not_refittable=True)
    document = bench.document()
    assert found.report == str(bench.report)
    assert document["engine"]["samples"] == [0.003] * 20
    assert document["engine"]["inspector"] == {"name": "engine"}
    assert document["engine"]["layers"] == [{"name": name, "seconds": seconds} for name, seconds in found.layers]
    assert document["not_refittable"]["samples"] == [0.002] * 20
    assert document["not_refittable"]["inspector"] == {"name": "rival"}
    assert document["not_refittable"]["options"] == {"tf32": False, "refit": "none"}
    assert document["not_refittable"]["build_seconds"] == {"compile": 2.0}
    assert document["inputs"] == digest_of(fixed_inputs(ENGINE.inputs, ENGINE.profiles))
    assert sum(document["turns"]) == document["iterations"] == 20


def test_layers_are_left_out_where_nobody_asks(bench: Bench) -> None:
    assert bench.measure(layers=False).layers == ()
    assert bench.document()["engine"]["layers"] == []


def test_progress_is_told_turn_by_turn(bench: Bench) -> None:
    bench.measure(against_not_refittable=True)
    steps = [one.step for one in bench.messages if isinstance(one, Progress) and one.total]
    assert steps == list(range(10))
    assert {one.phase for one in bench.messages if isinstance(one, Progress)} == {"build", "measure", "inspect"}


@pytest.fixture
def engine(hosting: Hosting, tmp_path: Path) -> EngineFile:
    network = attention(tmp_path / "definition.onnx")
    return hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))[1]


@pytest.fixture
def request_of(engine: EngineFile, tmp_path: Path) -> Benchmark:
    return Benchmark(engine, iterations=12, warmup=1, report=str(tmp_path / "report.json"))


def test_an_onnxruntime_engine_is_measured_node_by_node(hosting: Hosting, request_of: Benchmark) -> None:
    found = hosting.call(replace(request_of, shapes={"ids": (3, 5)}), Benchmarked)
    document = json.loads(Path(found.report).read_text())
    assert found.shapes == {"ids": (3, 5)}
    assert 0 < found.engine.median <= found.engine.p99
    assert len(document["engine"]["samples"]) == 12
    assert len(found.layers) == len(document["engine"]["inspector"])
    assert all(seconds >= 0 for _, seconds in found.layers)
    assert sum(seconds for _, seconds in found.layers) > 0


def test_a_benchmark_leaves_the_engine_as_it_was(hosting: Hosting, request_of: Benchmark) -> None:
    engine, inputs = request_of.engine, fixed_inputs(request_of.engine.inputs, ())
    before = hosting.run(engine, inputs)
    hosting.call(request_of, Benchmarked)
    after = hosting.run(engine, inputs)
    np.testing.assert_array_equal(before["y"], after["y"])


def test_a_backend_without_the_option_refuses_to_compare(hosting: Hosting, request_of: Benchmark) -> None:
    with pytest.raises(BackendError, match="bad_option"):
        hosting.call(replace(request_of, against_not_refittable=True), Benchmarked)
