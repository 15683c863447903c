"""Which of several engines is the fastest on this device.

They are measured in turns of a few runs each, and every other round goes backwards. So clocks, heat and whatever else
uses the device affect all alike, also if they change meanwhile. An engine is loaded for its turn if it is not resident:
so there may be more of them than fit into memory.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from workers.channel.messages import (
    DEVICE_FAILED,
    BackendError,
    Compare,
    Compared,
    EngineFile,
    Progress,
    Report,
    TurnLatency,
)
from workers.engine_host.backends.base import Arrays, LoadedEngine
from workers.engine_host.backends.stopwatch import Stopwatch, seconds_of, under_deadline
from workers.engine_host.latency import split_runs
from workers.engine_host.run_inputs import digest_of, fixed_inputs
from workers.engine_host.tensors import read_tensors

Loaded = Callable[[EngineFile], LoadedEngine]


@dataclass(slots=True)
class _Contestant:
    """An engine that is measured. `turns` are the seconds of its runs; `fault` says why it cannot be measured."""

    engine: EngineFile
    turns: list[list[float]] = field(default_factory=list)
    fault: str | None = None

    @property
    def latency(self) -> TurnLatency | None:
        return None if self.fault is not None else turn_latency(self.turns)


def inputs_of(request: Compare, engine: EngineFile) -> Arrays:
    """Return what all engines are measured on: what the request gives, or made up for the inputs of this engine."""
    if request.inputs is not None:
        return read_tensors(request.inputs)
    return fixed_inputs(engine.inputs, engine.profiles, request.shapes)


def compare(request: Compare, inputs: Arrays, loaded: Loaded, report: Report) -> Compared:
    """Measure the engines of a request in turns, and write the report to `request.report`.

    `loaded` returns an engine ready to run. One that cannot be loaded or run is left out from then on. Raises
    BackendError if the device failed.
    """
    watch = Stopwatch(lambda _phase: None)  # to load and to measure alternate too often to be told of
    contestants = [_Contestant(engine) for engine in request.engines]
    turns = split_runs(request.iterations, request.repeats)
    for turn, runs in enumerate(turns):
        report(Progress("measure", turn, len(turns)))
        for contestant in contestants if turn % 2 == 0 else reversed(contestants):
            if contestant.fault is None:
                _take_turn(contestant, inputs, loaded, runs, request.warmup, report, watch)
    found = Compared(
        latencies=tuple(contestant.latency for contestant in contestants),
        faults=tuple(contestant.fault for contestant in contestants),
        shapes={name: array.shape for name, array in inputs.items()},
        report=request.report,
        stages=watch.stages,
    )
    _write(request, contestants, found, digest_of(inputs))
    return found


def turn_latency(turns: Sequence[Sequence[float]]) -> TurnLatency:
    """Return the figures of turns of runs that took these seconds."""
    seconds = np.concatenate([np.asarray(turn) for turn in turns])
    medians = [float(np.median(turn)) for turn in turns]
    return TurnLatency(
        median=float(np.median(seconds)),
        p95=float(np.quantile(seconds, 0.95)),
        mean=float(seconds.mean()),
        spread=max(medians) - min(medians),
    )


def _take_turn(
    contestant: _Contestant,
    inputs: Arrays,
    loaded: Loaded,
    runs: int,
    warmup: int,
    report: Report,
    watch: Stopwatch,
) -> None:
    try:
        with watch.phase("load"):
            engine = loaded(contestant.engine)
        with watch.phase("measure"), under_deadline(report, "run"):
            contestant.turns.append(list(engine.measure(inputs, iterations=runs, warmup=warmup)))
    except BackendError as error:
        if error.code == DEVICE_FAILED:
            raise
        contestant.fault = str(error)


def _write(request: Compare, contestants: Sequence[_Contestant], found: Compared, inputs: str) -> None:
    engines = [
        {
            "options": dict(one.engine.options),
            "latency": None if one.latency is None else asdict(one.latency),
            "turns": one.turns,
            "fault": one.fault,
        }
        for one in contestants
    ]
    document = {
        "shapes": found.shapes,
        "inputs": inputs,
        "iterations": request.iterations,
        "warmup": request.warmup,
        "repeats": request.repeats,
        "engines": engines,
        "seconds": seconds_of(found.stages),
    }
    Path(request.report).write_text(json.dumps(document))
