"""Refits beside what the bus allows: a refit by hand from page-locked memory, with all that the service itself uses."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

from benchmarks import by_hand
from benchmarks.checkpoints import parameters, write_checkpoint
from benchmarks.gpu_models import (
    MEDIUM,
    TINY,
    UNVERIFIED,
    Bench,
    Model,
    build_seconds,
    download_plan,
    engine_of,
    finished,
    latency,
    model_of,
    refit,
)
from workers.channel.device_environment import device_environment

ROUNDS = 5
PAGE_LOCKED = {"ENGINESMITH_PAGE_LOCKED_BYTES": str(4 << 30)}
FINITE: dict[str, Any] = {"verify": {"against": "finite"}}
LAZY = FINITE | {"materialise": "lazy"}
EAGER: dict[str, Any] = {"verify": UNVERIFIED}


def measure_staging(start: Callable[..., AbstractContextManager[Bench]]) -> dict[str, Any]:
    """Refit all weights of the 24-layer model: to new ones, back and forth, to one tensor, and with no engine loaded.

    "locked_s" is the refit by hand from page-locked memory, "mapped_s" that from the mapped file.
    """
    with start() as bench:
        for name, config in (("medium", MEDIUM), ("tiny", TINY)):
            engine_of(model_of(bench, name, config))
    with start(environment=PAGE_LOCKED) as bench:
        model, tiny = model_of(bench, "medium", MEDIUM), model_of(bench, "tiny", TINY)
        engine, other = engine_of(model), engine_of(tiny)
        plan = download_plan(model, engine, bench.folder / "medium.plan")
        first, second, delta = model.versions
        run_before = latency(model.client, engine)
        with by_hand.refitting(plan, *model.files, environment=device_environment("cuda:0")) as ask:
            for what in ("mapped", "locked", "load"):
                ask(what)
            for weights in (second, first, second, first):  # so that memory is locked for two versions
                refit(model, engine, weights, **LAZY)
                time.sleep(1)
            back = cycle((second, first))
            changed = cycle((delta, first))
            rows: dict[str, list[dict[str, Any]]] = {}

            def note(name: str, figures: dict[str, Any]) -> None:
                rows.setdefault(name, []).append(figures)

            for number in range(ROUNDS):
                note("locked", ask("locked"))
                note("switch_back", refit(model, engine, next(back), **LAZY))
                note("mapped", ask("mapped"))
                note("new", refit(model, engine, _new_version(model, number), **LAZY))
                time.sleep(1)
                refit(model, engine, first, **LAZY)
                for _ in range(4):
                    note("delta", refit(model, engine, next(changed), **LAZY))
                if number < 3:
                    finished(tiny.client, f"engines/{other}/verify", {"against": "finite"})
                    note("load", ask("load"))
                    note("cold", refit(model, engine, second, **LAZY))
                    note("eager", refit(model, engine, _new_version(model, number + 100), **EAGER))
                refit(model, engine, first, **LAZY)
        run_after = latency(model.client, refit(model, engine, second, **LAZY)["engine"])
        build_s = build_seconds(model.client, engine)
    return _figures(rows, run_before=run_before, run_after=run_after, build_s=build_s)


def _figures(
    rows: dict[str, list[dict[str, Any]]], *, run_before: float, run_after: float, build_s: float
) -> dict[str, Any]:
    jobs = ("switch_back", "new", "delta", "cold", "eager")
    median = {name: statistics.median(one["s"] for one in rows[name]) for name in jobs}
    stages = {
        name: {
            stage: statistics.median(one["stages"][stage] for one in rows[name]) for stage in rows[name][0]["stages"]
        }
        for name in jobs
    }
    locked, mapped = (statistics.median(one["refit_s"] for one in rows[name]) for name in ("locked", "mapped"))
    load = statistics.median(one["deserialize_s"] for one in rows["load"])
    return {
        "locked_s": locked,
        "mapped_s": mapped,
        "deserialize_s": load,
        "seconds": {name: [one["s"] for one in rows[name]] for name in jobs},
        "warm": {name: [one["warm"] for one in rows[name]] for name in jobs},
        "median_s": median,
        "stages": stages,
        "new_over_locked": median["new"] / locked,
        "new_over_mapped": median["new"] / mapped,
        "switch_back_over_locked": median["switch_back"] / locked,
        "cold_over_raw": median["cold"] / (load + mapped),
        "cold_over_raw_locked": median["cold"] / (load + locked),
        "plan_written_over_build": median["eager"] / build_s,
        "run_after_over_before": run_after / run_before,
    }


def _new_version(model: Model, number: int) -> int:
    """Return a weight version of which nobody has seen a single tensor."""
    path = model.files[0].with_name("never-seen.safetensors")
    write_checkpoint(path, parameters(model.client, model.definition), seed=time.time_ns() + number, dtype="F16")
    return int(model.client.post("weights", {"files": [model.client.upload(path)]})["version"])
