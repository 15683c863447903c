"""Every figure that needs a GPU with TensorRT: measured through the service's HTTP API, against the same calls by hand.

python -m benchmarks.gpu [--data DIR] [--device cuda:N] [--tiny] [PART ...]

Runs all parts, or some of: build build_large refit delta packed staging cost.

If --data names a folder, a later run with the same folder uses the engines that an earlier run built. Only a build that
is measured is done again. Results are merged into benchmarks/results/gpu.json. The table of the aims is printed last.
"""

import json
import statistics
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import by_hand
from benchmarks.gpu_aims import aims_table
from benchmarks.gpu_models import (
    MEDIUM,
    MIB,
    SHALLOW,
    SMALL,
    TINY,
    UNVERIFIED,
    Bench,
    Model,
    build_request,
    build_seconds,
    download_plan,
    engine_of,
    finished,
    latency,
    model_of,
    new_weights,
    refit,
    running_bench,
    write_external,
)
from benchmarks.gpu_staging import measure_staging
from benchmarks.machine import machine
from benchmarks.service import memory_bytes

RESULTS = Path(__file__).parent / "results" / "gpu.json"
ROUNDS = 6
COLD_ROUNDS = 4
DELTAS = 30
EAGER: dict[str, Any] = {"verify": UNVERIFIED}
FINITE: dict[str, Any] = {"verify": {"against": "finite"}}
LAZY: dict[str, Any] = FINITE | {"materialise": "lazy"}
Action = Callable[[], dict[str, Any]]
Start = Callable[[], AbstractContextManager[Bench]]  # starts a service on the data that earlier ones left
console = Console(highlight=False, width=120)


def main() -> None:
    """Run the parts named, all by default."""
    parser = ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="try the script on tiny models; nothing is kept")
    parser.add_argument("parts", nargs="*")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    with _folder(arguments.data) as folder:
        for name in arguments.parts or PARTS:
            console.print(f"[bold]{name}[/]")
            figures = PARTS[name](partial(running_bench, folder, arguments.device, is_tiny=arguments.tiny))
            console.print_json(data=figures)
            results = _merged(name, figures)
            if not arguments.tiny:
                RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    console.print(aims_table(results["figures"]))


def measure_build(start: Start) -> dict[str, Any]:
    """Compile the 12-layer model by hand and as a job."""
    return _build_of(start, "small", SMALL)


def measure_large_build(start: Start) -> dict[str, Any]:
    """Compile the 24-layer model by hand and as a job."""
    return _build_of(start, "medium", MEDIUM)


def _build_of(start: Start, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Compile a model by hand and as a job, twice each and in turn.

    Each time the process has compiled nothing before. The faster of the two times counts: builds of one model differ by
    several percent, and the first build finds no file in memory. The second job gains nothing from the first one,
    because TensorRT 8.6 reads no timing cache back.
    """
    builds = [_one_build(start, name, config, by_hand_first=first) for first in (True, False)]
    raw_s, job_s = (min(one[side] for one in builds) for side in ("raw_s", "job_s"))
    memory = {key: statistics.mean(one["memory"][key] for one in builds) for key in builds[0]["memory"]}
    return {"builds": builds, "raw_s": raw_s, "job_s": job_s, "over_raw": job_s / raw_s} | memory


def _one_build(start: Start, name: str, config: dict[str, Any], *, by_hand_first: bool) -> dict[str, Any]:
    """Compile a model by hand and as a job; `by_hand_first` says in which order."""
    raw: dict[str, Any] = {}
    with start() as bench:
        model = model_of(bench, name, config)
        onnx_file = write_external(model, bench.folder / f"{name}.onnx")
        if by_hand_first:
            raw = by_hand.build(onnx_file)
        idle, peak_bytes = memory_bytes(bench.host()[0], "VmRSS"), bench.memory()
        seconds, job = finished(model.client, "builds", build_request(model) | {"verify": UNVERIFIED, "reuse": False})
        peak = peak_bytes()
    raw = raw or by_hand.build(onnx_file)
    grown = (peak - idle) - (raw["peak_bytes"] - raw["idle_bytes"])
    memory = _memory(model, peak, raw["peak_bytes"])
    return {
        "raw": raw,
        "raw_s": sum(raw[step] for step in ("builder_s", "parse_s", "build_s", "write_s")),
        "job_s": seconds,
        "stages": job["result"]["stages"],
        "memory": memory | {"idle_mib": idle / MIB, "grown_beyond_raw_of_weights": grown / model.nbytes},
    }


def measure_refit(start: Start) -> dict[str, Any]:
    """Refit all weights of the 24-layer model: warm and cold, with and without a plan, verified and not."""
    _built(start, ("medium", MEDIUM), ("tiny", TINY))
    with start() as bench, _plain_by_hand(bench) as (model, engine, ask):
        tiny = model_of(bench, "tiny", TINY)
        client, other = model.client, engine_of(tiny)
        first, second, _ = model.versions
        warm = partial(_refitting, model, engine, new_weights(model, first, second))
        loaded = _refitting(model, engine, new_weights(model, second), EAGER)  # the plan that is loaded holds `first`

        def cold() -> dict[str, Any]:
            finished(tiny.client, f"engines/{other}/verify", {"against": "finite"})  # the only engine that stays loaded
            return loaded()

        warm({})()
        peak_bytes = bench.memory()
        warm({})()  # as it is by default: verified while its plan is written
        peak = peak_bytes()
        bodies = {"warm": EAGER, "warm_verified": {}, "warm_finite": FINITE, "warm_lazy": LAZY}
        raw, *taken = _in_turn(ROUNDS, partial(ask, "all"), *map(warm, bodies.values()))
        raw_cold, cold_runs = _in_turn(COLD_ROUNDS, lambda: ask("load") | ask("all"), cold)
        build_s, run_s = build_seconds(client, engine), latency(client, engine)
    runs = dict(zip(bodies, taken, strict=True)) | {"cold": cold_runs}
    if any(run["warm"] != (name != "cold") for name, taken in runs.items() for run in taken):
        raise SystemExit("an engine was resident that should not have been, or the other way round")
    raw_s, raw_cold_s = [one["all_s"] for one in raw], [one["deserialize_s"] + one["all_s"] for one in raw_cold]
    taken_s = {name: [run["s"] for run in taken] for name, taken in runs.items()}
    verification_s = [b - a for a, b in zip(taken_s["warm"], taken_s["warm_verified"], strict=True)]
    median = {name: statistics.median(taken) for name, taken in taken_s.items()}
    return {
        "raw": _medians(raw),
        "raw_cold": _medians(raw_cold),
        "build_job_s": build_s,
        "median_s": median,
        "stages": {name: _medians([run["stages"] for run in taken]) for name, taken in runs.items()},
        "seconds": {"raw": raw_s, "raw_cold": raw_cold_s} | taken_s,
        "verification": runs["warm_verified"][-1]["verification"],
        "warm_over_raw": _ratio(taken_s["warm"], raw_s),
        "cold_over_raw": _ratio(taken_s["cold"], raw_cold_s),
        "refit_over_build": median["warm"] / build_s,
        "lazy_refit_over_build": median["warm_lazy"] / build_s,
        "run_s": run_s,
        "verification_s": statistics.median(verification_s),
        "verification_over_refit": _ratio(verification_s, [_set_and_refit(run) for run in runs["warm"]]),
    } | _memory(model, peak, raw[0]["peak_bytes"])


def measure_delta(start: Start) -> dict[str, Any]:
    """Refit one tensor of the 24-layer model and leave its plan for later; time it from POST to the end of the job."""
    _built(start, ("medium", MEDIUM))
    with start() as bench, _plain_by_hand(bench) as (model, engine, ask):
        changed = cycle((model.versions[0], model.versions[2]))
        jobs = [_refitting(model, engine, changed, body) for body in (LAZY, LAZY | EAGER)]
        for job in jobs:
            job()
        raw, *taken = _in_turn(DELTAS, partial(ask, "one"), *jobs)
    figures: dict[str, Any] = {"raw": _medians(raw)}
    for name, runs in zip(("verified", "unverified"), taken, strict=True):
        if not all(run["warm"] for run in runs):
            raise SystemExit("the engine was not resident")
        figures[name] = {
            "median_s": statistics.median(run["s"] for run in runs),
            "worst_s": max(run["s"] for run in runs),
            "stages": _medians([run["stages"] for run in runs]),
        }
    return figures


def measure_packed(start: Start) -> dict[str, Any]:
    """Refit and run the 24-layer model in the packed layout; compare with the plain layout, refitted by hand."""
    _built(start, ("medium", MEDIUM))
    _built(start, ("medium", MEDIUM), refit_layout="packed")
    with start() as bench, _plain_by_hand(bench) as (model, plain, ask):
        client = model.client
        engine = engine_of(model, refit_layout="packed")
        weights = new_weights(model, *model.versions[:2])
        jobs = [_refitting(model, engine, weights, body) for body in (LAZY, EAGER)]
        jobs[0]()
        raw, lazy, eager = _in_turn(ROUNDS, partial(ask, "all"), *jobs)
        found = client.call("GET", f"/v1/models/{client.model}/engines/{engine}")
        build_s, run_s, plain_run_s = build_seconds(client, engine), latency(client, engine), latency(client, plain)
    eager_s = statistics.median(one["s"] for one in eager)
    refit_s = [_set_and_refit(one) for one in lazy]
    return {
        "raw_plain": _medians(raw),
        "build_job_s": build_s,
        "eager_job_s": eager_s,
        "eager_over_build": eager_s / build_s,
        "refit_s": statistics.median(refit_s),
        "refit_over_raw_plain": _ratio(refit_s, [one["refit_s"] for one in raw]),
        "lazy_job_s": statistics.median(one["s"] for one in lazy),
        "run_s": run_s,
        "run_over_plain": run_s / plain_run_s,
        "weights": found["facts"]["weights"],
        "plan_mib": found["plan_bytes"] / MIB,
    }


def measure_cost(start: Start) -> dict[str, Any]:
    """Run a 6-layer model compiled with and without refit support: what refit support costs a run."""
    with start() as bench:
        model = model_of(bench, "shallow", SHALLOW)
        body = {"engine": engine_of(model), "iterations": 500, "against": "not_refittable"}
        result = finished(model.client, "benchmarks", body)[1]["result"]
    slowest = sorted(result["layers"], key=lambda layer: -float(layer["seconds"]))
    return {name: result[name] for name in ("latency", "not_refittable", "ratio", "shapes")} | {"slowest": slowest[:5]}


PARTS: dict[str, Callable[[Start], dict[str, Any]]] = {
    "build": measure_build,
    "build_large": measure_large_build,
    "refit": measure_refit,
    "delta": measure_delta,
    "packed": measure_packed,
    "staging": measure_staging,
    "cost": measure_cost,
}


def _built(start: Start, *models: tuple[str, dict[str, Any]], **options: Any) -> None:  # noqa: ANN401 - JSON
    """Build the engines that are refitted later, with a service of its own.

    So neither the service that is measured nor this script has compiled anything before.
    """
    with start() as bench:
        for name, config in models:
            engine_of(model_of(bench, name, config), **options)


def _refitting(model: Model, engine: int, weights: Iterator[int], body: dict[str, Any]) -> Action:
    """Return a function that refits an engine to the next of the weights."""
    return lambda: refit(model, engine, next(weights), **body)


def _set_and_refit(run: dict[str, Any]) -> float:
    """Return the seconds in which a refit makes, sets and refits its values; the plan does not count."""
    return float(sum(run["stages"][name] for name in ("transform", "read", "refit")))


def _in_turn(rounds: int, *actions: Action) -> list[list[dict[str, Any]]]:
    """Do all actions in turn, `rounds` times, and return the list of what each action returned.

    A machine may be slower by a fifth for a minute, so actions that are compared are done side by side.
    """
    taken: list[list[dict[str, Any]]] = [[] for _ in actions]
    for _ in range(rounds):
        for results, action in zip(taken, actions, strict=True):
            results.append(action())
    return taken


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios between neighbours."""
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _memory(model: Model, peak: int, raw_peak: int) -> dict[str, float]:
    """Return two peaks of memory, given in bytes, and their difference as a multiple of the weights' bytes."""
    return {
        "weights_mib": model.nbytes / MIB,
        "peak_mib": peak / MIB,
        "raw_peak_mib": raw_peak / MIB,
        "peak_beyond_raw_of_weights": (peak - raw_peak) / model.nbytes,
    }


@contextmanager
def _plain_by_hand(bench: Bench) -> Iterator[tuple[Model, int, Callable[[str], dict[str, Any]]]]:
    """Give the 24-layer model, its engine in the plain layout, and a function that refits the same plan by hand."""
    model = model_of(bench, "medium", MEDIUM)
    engine = engine_of(model)
    plan = download_plan(model, engine, bench.folder / "medium.plan")
    with by_hand.refitting(plan, *model.files) as ask:
        ask("all")
        yield model, engine, ask


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="enginesmith-gpu-") as folder:
            yield Path(folder)


def _merged(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the results on file with this part's figures put in, and the machine that they were measured on."""
    results: dict[str, Any]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": {}, "figures": {}}
    results["machine"][name] = machine() | {"gpu": _gpu()}
    results["figures"][name] = figures
    return results


def _gpu() -> dict[str, str]:
    import tensorrt  # noqa: PLC0415 - if it is missing, nothing here could have been measured

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    name, driver, memory = gpus[0].split(", ")
    return {"name": name, "driver": driver, "memory": memory, "tensorrt": tensorrt.__version__}


if __name__ == "__main__":
    main()
