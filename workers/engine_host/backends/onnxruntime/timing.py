"""How long sessions of onnxruntime take: run by run, and node by node."""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workers.engine_host.backends.base import Arrays
from workers.engine_host.onnxruntime_session import (
    ORT_ERRORS,
    explained,
    open_session,
    ort_value,
    output_names,
    session_options,
)

PROFILED_RUNS = 10  # the profiler counts whole microseconds; a mean over some runs is finer
KERNEL = "_kernel_time"  # what the profiler appends to the name of a node


def run_seconds(
    session: Any,  # noqa: ANN401 - onnxruntime is untyped
    inputs: Arrays,
    *,
    iterations: int,
    warmup: int,
    without: Collection[str] = (),
) -> list[float]:
    """Return the seconds of each of `iterations` runs, after `warmup` others; raises BackendError if one fails.

    Outputs that `without` names are not asked for.
    """
    names = output_names(session, without)
    values = {name: ort_value(array) for name, array in inputs.items()}
    seconds = []
    try:
        for _ in range(warmup):
            session.run_with_ort_values(names, values)
        for _ in range(iterations):
            started = time.perf_counter()
            session.run_with_ort_values(names, values)
            seconds.append(time.perf_counter() - started)
    except ORT_ERRORS as error:
        raise explained(error, "run_failed") from error
    return seconds


def node_seconds(model: bytes, inputs: Arrays) -> tuple[tuple[str, float], ...]:
    """Return (name, seconds) of each node in order of execution, the mean over some runs.

    Only a session that is made for profiling can be profiled, so this makes one from `model` and drops it afterwards.
    """
    with TemporaryDirectory(prefix="profile-") as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "runs")
        try:
            session = open_session(model, options)
            run_seconds(session, inputs, iterations=PROFILED_RUNS, warmup=1)
            events = json.loads(Path(session.end_profiling()).read_text())
        except ORT_ERRORS as error:
            raise explained(error, "profiling_failed") from error
    return _means(events)


def _means(events: list[Mapping[str, Any]]) -> tuple[tuple[str, float], ...]:
    first = next(event for event in events if event["name"] == "model_run")
    seconds: dict[str, float] = {}
    for event in sorted(events, key=lambda event: event["ts"]):
        if event.get("cat") != "Node" or not event["name"].endswith(KERNEL) or event["ts"] < first["ts"] + first["dur"]:
            continue
        name = event["name"].removesuffix(KERNEL)
        seconds[name] = seconds.get(name, 0.0) + event["dur"] / 1e6 / PROFILED_RUNS
    return tuple(seconds.items())
