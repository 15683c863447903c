"""How long a run of an engine takes, and how much longer for being refittable.

An engine and the same one compiled without refit support are measured in turns of a few runs each. The one that begins
changes from turn to turn. So clocks, heat and whatever else uses the device affect both alike.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workers.channel.messages import (
    BackendError,
    Benchmark,
    Benchmarked,
    Build,
    Built,
    EngineFile,
    Latency,
    Progress,
    Report,
)
from workers.engine_host.backends.base import Arrays, Backend, LoadedEngine
from workers.engine_host.backends.stopwatch import Stopwatch, seconds_of, under_deadline
from workers.engine_host.run_inputs import digest_of, fixed_inputs

TURNS = 10
TURN_WARMUP = 3  # runs that bring an engine's weights back into caches that the other one has filled
NEEDS_REFIT = frozenset({"refit_layout", "strip_weights"})  # options that an engine without refit support cannot have


@dataclass(slots=True)
class _Contestant:
    """An engine that is measured. `samples` are the seconds of its runs; `facts` go into the report as they are."""

    engine: LoadedEngine
    facts: Mapping[str, Any]
    samples: list[float] = field(default_factory=list)
    layers: tuple[tuple[str, float], ...] = ()
    inspector: Any = None

    @property
    def latency(self) -> Latency:
        return latency_of(self.samples)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "resident_bytes": self.engine.nbytes,
            "latency": asdict(self.latency),
            "samples": self.samples,
            "layers": [{"name": name, "seconds": seconds} for name, seconds in self.layers],
            "inspector": self.inspector,
        }


def benchmark(request: Benchmark, engine: LoadedEngine, backend: Backend, scratch: Path, report: Report) -> Benchmarked:
    """Measure as `request` says, write the report to `request.report`, and return the figures.

    The plan of an engine to compare with lies in `scratch` while it is compiled and loaded. Raises BackendError, with
    the code "cannot_compare" if this device compiles the engine to compare with but cannot run it.
    """
    watch = Stopwatch(report)
    inputs = fixed_inputs(request.engine.inputs, request.engine.profiles, request.shapes)
    contestants = [_Contestant(engine, {"options": dict(request.engine.options)})]
    if request.against_not_refittable:
        with watch.phase("build"):
            contestants.append(_without_refit(request.engine, backend, scratch, report))
    with watch.phase("measure"):
        _measure(contestants, inputs, request.iterations, request.warmup, report)
    with watch.phase("inspect"):
        for contestant in contestants:
            contestant.inspector = contestant.engine.inspect()
            with under_deadline(report, "run"):
                contestant.layers = contestant.engine.layers(inputs) if request.layers else ()
    measured, *others = contestants
    found = Benchmarked(
        engine=measured.latency,
        not_refittable=others[0].latency if others else None,
        layers=measured.layers,
        shapes={name: array.shape for name, array in inputs.items()},
        report=request.report,
        stages=watch.stages,
    )
    _write(request, found, contestants, digest_of(inputs), backend)
    return found


def latency_of(samples: Sequence[float]) -> Latency:
    """Return the figures of runs that took these seconds; the runs followed one another."""
    seconds = np.asarray(samples)
    mean = float(seconds.mean())
    return Latency(float(np.median(seconds)), float(np.quantile(seconds, 0.99)), mean, 1 / mean)


def turns_of(iterations: int) -> list[int]:
    """Return the number of runs in each of at most `TURNS` turns."""
    return split_runs(iterations, TURNS)


def split_runs(iterations: int, turns: int) -> list[int]:
    """Return the runs of each turn: at most `turns` of them, as equal as possible, `iterations` runs in all."""
    count = min(turns, iterations)
    return [iterations // count + (turn < iterations % count) for turn in range(count)]


def _measure(contestants: Sequence[_Contestant], inputs: Arrays, iterations: int, warmup: int, report: Report) -> None:
    turns = turns_of(iterations)
    for turn, runs in enumerate(turns):
        report(Progress("measure", turn, len(turns)))
        unmeasured = warmup if turn == 0 else min(warmup, TURN_WARMUP)
        for contestant in contestants if turn % 2 == 0 else reversed(contestants):
            with under_deadline(report, "run"):
                contestant.samples += contestant.engine.measure(inputs, iterations=runs, warmup=unmeasured)


def _without_refit(engine: EngineFile, backend: Backend, scratch: Path, report: Report) -> _Contestant:
    """Compile an engine's definition and weights again, with its options but without refit support."""
    options = {name: value for name, value in engine.options.items() if name not in NEEDS_REFIT} | {"refit": "none"}
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=scratch) as folder:
        plan = str(Path(folder) / "plan")
        request = Build(
            engine.backend, engine.definition, engine.parameters, engine.inputs, plan, engine.profiles, options
        )
        built, loaded = backend.build(request, report)
    if loaded is None:
        raise BackendError(
            "cannot_compare",
            "The engine to compare with was compiled for another device than this one, which cannot run it. Leave out "
            "against, or compare on a worker with that device.",
        )
    return _Contestant(loaded, {"options": options, **_facts_of(built)})


def _facts_of(built: Built) -> dict[str, Any]:
    return {"plan_bytes": built.nbytes, "facts": dict(built.facts), "build_seconds": seconds_of(built.stages)}


def _write(
    request: Benchmark, found: Benchmarked, contestants: Sequence[_Contestant], inputs: str, backend: Backend
) -> None:
    measured, *others = contestants
    document = {
        "backend": request.engine.backend,
        "backend_version": backend.offered.version,
        "shapes": found.shapes,
        "inputs": inputs,
        "iterations": request.iterations,
        "warmup": request.warmup,
        "turns": turns_of(request.iterations),
        "turn_warmup": min(request.warmup, TURN_WARMUP),
        "engine": measured.to_json(),
        "not_refittable": others[0].to_json() if others else None,
        "seconds": seconds_of(found.stages),
    }
    Path(request.report).write_text(json.dumps(document))
