"""Several engines measured in turns. They are scripted, so that the order and the figures can be told."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.definitions.parameter import InputSpec
from workers.channel.messages import DEVICE_FAILED, BackendError, Compare, EngineFile
from workers.engine_host.backends.base import Arrays, LoadedEngine
from workers.engine_host.comparing import compare, inputs_of, turn_latency

FILES = [
    EngineFile("scripted", name, f"sha256:{name}", "definition", (), (InputSpec("x", "F32", ("batch", 4)),))
    for name in "abc"
]
INPUTS: Arrays = {"x": np.zeros((2, 4), np.float32)}


@dataclass
class ScriptedEngine:
    """An engine whose runs take `seconds`; `turns` remembers who was measured."""

    name: str
    seconds: float
    turns: list[str]
    nbytes: int = 1000

    def measure(self, _inputs: Arrays, *, iterations: int, warmup: int) -> list[float]:
        self.turns.append(f"{self.name}:{iterations}:{warmup}")
        return [self.seconds] * iterations

    def run(self, inputs: Arrays) -> dict[str, Any]:
        raise NotImplementedError

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        raise NotImplementedError

    def inspect(self) -> Any:  # noqa: ANN401 - never called
        raise NotImplementedError


@dataclass
class Bench:
    """Engines a, b and c that take 3, 1 and 2 ms a run; `faults` are raised when one of that name is loaded."""

    report: Path
    turns: list[str] = field(default_factory=list)
    faults: dict[str, BackendError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.request = Compare(tuple(FILES), iterations=5, warmup=2, repeats=3, report=str(self.report))

    def loaded(self, engine: EngineFile) -> LoadedEngine:
        if engine.plan in self.faults:
            raise self.faults[engine.plan]
        return ScriptedEngine(engine.plan, {"a": 0.003, "b": 0.001, "c": 0.002}[engine.plan], self.turns)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "report.json")


def test_engines_take_turns_and_every_other_round_goes_backwards(bench: Bench) -> None:
    found = compare(bench.request, INPUTS, bench.loaded, lambda _message: None)
    forth, back, again = ["a:2:2", "b:2:2", "c:2:2"], ["c:2:2", "b:2:2", "a:2:2"], ["a:1:2", "b:1:2", "c:1:2"]
    assert bench.turns == forth + back + again
    assert [latency and latency.median for latency in found.latencies] == [0.003, 0.001, 0.002]
    assert found.faults == (None, None, None)
    turns = [one["turns"] for one in json.loads(bench.report.read_text())["engines"]]
    assert turns[1] == [[0.001, 0.001], [0.001, 0.001], [0.001]]


def test_an_engine_that_cannot_be_loaded_is_left_out_and_the_others_are_measured(bench: Bench) -> None:
    bench.faults["b"] = BackendError("device_out_of_memory", "no room")
    found = compare(bench.request, INPUTS, bench.loaded, lambda _message: None)
    assert [latency is None for latency in found.latencies] == [False, True, False]
    assert found.faults == (None, "device_out_of_memory: no room", None)


def test_a_device_that_failed_ends_the_comparison(bench: Bench) -> None:
    bench.faults["b"] = BackendError(DEVICE_FAILED, "an illegal memory access")
    with pytest.raises(BackendError, match="illegal memory access"):
        compare(bench.request, INPUTS, bench.loaded, lambda _message: None)


def test_the_spread_lies_between_the_medians_of_the_turns() -> None:
    latency = turn_latency([[1.0, 1.0, 9.0], [3.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert (latency.spread, latency.median) == (2.0, 2.0)
    assert latency.p95 > 3.0


def test_inputs_are_made_up_of_the_shapes_that_are_asked_for(bench: Bench) -> None:
    made = inputs_of(replace(bench.request, shapes={"x": (7, 4)}), FILES[0])
    assert made["x"].shape == (7, 4)
