"""Every figure that needs a GPU with TensorRT: measured through the service's HTTP API, against the same calls by hand.

python -m benchmarks.gpu [--data DIR] [--device cuda:N] [--tiny] [PART ...]

Runs all parts, or some of: build refit delta packed cost.

A data directory that is kept lets a later run go on with the engines of an earlier one: what is built is not built
again, unless the build is what is measured. Results are merged into benchmarks/results/gpu.json, and the table of the
aims is printed last.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import gpt2_config, parameters, write_checkpoint
from benchmarks.machine import machine
from benchmarks.service import forget_peak, memory_bytes
from examples.client import Client
from examples.service import running

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PROFILE = {"min": [1, 1], "opt": [1, 64], "max": [4, 128]}
PROFILES = [{"input_ids": PROFILE, "attention_mask": PROFILE}]
MEDIUM = gpt2_config(24, 1024) | {"tie_word_embeddings": False}  # 406 million parameters
SMALL = gpt2_config(12, 768)
SHALLOW = gpt2_config(6, 768)
TINY = gpt2_config(1, 64, vocab=256, positions=128)
UNVERIFIED = {"against": "none"}
ROUNDS = 5
DELTAS = 30
MIB = 2**20
ENVIRONMENT = {
    "ENGINESMITH_LOG_LEVEL": "WARNING",
    "ENGINESMITH_RESIDENT_BYTES": str(MIB),  # only the engine used last stays loaded, so that a cold refit can be had
}
console = Console(highlight=False, width=120)


@dataclass
class Bench:
    """One service with a GPU, and the folder of everything the benchmark writes."""

    url: str
    pid: int
    folder: Path
    is_tiny: bool

    def client(self, model: str) -> Client:
        """Return a client for a model, which is made if there is none."""
        client = Client(self.url, model)
        if client.http.get(f"/v1/models/{model}").is_error:
            client.call("POST", "/v1/models", {"name": model})
        return client

    def host(self) -> tuple[int, int]:
        """Return the process ids of the GPU's engine host and of its worker."""
        children = _descendants(self.pid)
        worker = next(pid for pid, line in children.items() if "-m workers " in line and "cuda" in line)
        host = next(pid for pid, line in _descendants(worker).items() if "engine_host" in line)
        return host, worker


@dataclass(frozen=True)
class Model:
    """A definition with two weight versions, and a third that differs from the first in one tensor."""

    client: Client
    definition: int
    versions: tuple[int, int, int]
    files: tuple[Path, Path]
    nbytes: int


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
            if name in BEFORE:
                with _bench(folder, arguments) as bench:
                    BEFORE[name](bench)
            with _bench(folder, arguments) as bench:
                figures = PARTS[name](bench)
            console.print_json(data=figures)
            results = _merged(name, figures)
            if not arguments.tiny:
                RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    console.print(_table(results["figures"]))


@contextmanager
def _bench(folder: Path, arguments: Namespace) -> Iterator[Bench]:
    with running(folder / "data", ENVIRONMENT, devices=(arguments.device,)) as (url, pid):
        yield Bench(url, pid, folder, is_tiny=arguments.tiny)


def measure_build(bench: Bench) -> dict[str, Any]:
    """Compile the 12-layer model by hand and as a job, each in a process that has compiled nothing yet."""
    model = _model(bench, "small", SMALL)
    onnx_file = _external(model, bench.folder / "small.onnx")
    by_hand = _raw("build", onnx_file, bench.folder / "small.plan")
    host, worker = bench.host()
    idle, before = memory_bytes(host, "VmRSS"), memory_bytes(worker, "VmRSS")
    forget_peak(host)
    forget_peak(worker)
    seconds, job = _job(model.client, "builds", _build(model) | {"verify": UNVERIFIED, "reuse": False})
    peak = memory_bytes(host, "VmHWM") + memory_bytes(worker, "VmHWM") - before
    raw_s = sum(by_hand[step] for step in ("builder_s", "parse_s", "build_s", "write_s"))
    return {
        "raw": by_hand,
        "job_s": seconds,
        "phases": job["result"]["seconds"],
        "raw_s": raw_s,
        "over_raw": seconds / raw_s,
        "idle_mib": idle / MIB,
        "grown_beyond_raw_of_weights": (peak - idle - by_hand["peak_bytes"] + by_hand["idle_bytes"]) / model.nbytes,
    } | _memory(model, peak, by_hand["peak_bytes"])


def build_plain(bench: Bench) -> None:
    """Build what is refitted, with a service of its own: neither the one measured nor the script has compiled."""
    _engine(_model(bench, "medium", MEDIUM))
    _engine(_model(bench, "tiny", TINY))


def build_packed(bench: Bench) -> None:
    """Build the packed engine likewise."""
    _engine(_model(bench, "medium", MEDIUM), refit_layout="packed")


def measure_refit(bench: Bench) -> dict[str, Any]:
    """Refit all weights of the 24-layer model: warm and cold, with and without a plan, verified and not."""
    model = _model(bench, "medium", MEDIUM)
    tiny = _model(bench, "tiny", TINY)
    client = model.client
    engine, other = _engine(model), _engine(tiny)
    plan = _plan(model, engine, bench.folder / "medium.plan")
    by_hand = _raw("refit", plan, *model.files)
    heard = _raw("refit-heard", plan, *model.files)  # with a logger in Python, as the service has one

    def warm(**body: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
        return _back_and_forth(model, engine, model.versions[:2], ROUNDS, **body)

    def cold() -> dict[str, Any]:
        _job(tiny.client, f"engines/{other}/verify", {"against": "finite"})  # the only engine that stays loaded
        return _refit(model, engine, model.versions[1], verify=UNVERIFIED)

    host, worker = bench.host()
    before = memory_bytes(worker, "VmRSS")
    forget_peak(host)
    forget_peak(worker)
    eager = warm(verify=UNVERIFIED)
    peak = memory_bytes(host, "VmHWM") + memory_bytes(worker, "VmHWM") - before
    runs = {
        "warm": eager,
        "warm_verified": warm(),
        "warm_finite": warm(verify={"against": "finite"}),
        "warm_lazy": warm(verify={"against": "finite"}, materialise="lazy"),
        "cold": [cold() for _ in range(3)],
    }
    if any(run["warm"] != (name != "cold") for name, taken in runs.items() for run in taken):
        raise SystemExit("an engine was resident that should not have been, or the other way round")
    median = {name: statistics.median(run["s"] for run in taken) for name, taken in runs.items()}
    return {
        "raw": by_hand,
        "raw_heard": heard,
        "build_job_s": _build_seconds(client, engine),
        "median_s": median,
        "phases": {name: _medians([run["phases"] for run in taken]) for name, taken in runs.items()},
        "verification": runs["warm_verified"][-1]["verification"],
        "warm_over_raw": median["warm"] / by_hand["all_s"],
        "cold_over_raw": median["cold"] / (by_hand["all_s"] + by_hand["deserialize_s"]),
        "refit_over_build": median["warm"] / _build_seconds(client, engine),
        "lazy_refit_over_build": median["warm_lazy"] / _build_seconds(client, engine),
        "run_s": _latency(client, engine),
        "verification_s": median["warm_verified"] - median["warm"],
        "verification_over_refit": (median["warm_verified"] - median["warm"]) / by_hand["refit_s"],
    } | _memory(model, peak, by_hand["peak_bytes"])


def measure_delta(bench: Bench) -> dict[str, Any]:
    """Refit one tensor of the 24-layer model, its plan left for later: from POST to the end of the job."""
    model = _model(bench, "medium", MEDIUM)
    engine = _engine(model)
    changed = model.versions[2], model.versions[0]
    figures: dict[str, Any] = {}
    for name, against in (("verified", "finite"), ("unverified", "none")):
        body = {"verify": {"against": against}, "materialise": "lazy"}
        runs = _back_and_forth(model, engine, changed, DELTAS, **body)
        if not all(run["warm"] for run in runs):
            raise SystemExit("the engine was not resident")
        figures[name] = {
            "median_s": statistics.median(run["s"] for run in runs),
            "worst_s": max(run["s"] for run in runs),
            "phases": _medians([run["phases"] for run in runs]),
        }
    return figures


def measure_packed(bench: Bench) -> dict[str, Any]:
    """Refit and run the 24-layer model in the packed layout; the plain one is in `measure_refit`."""
    model = _model(bench, "medium", MEDIUM)
    engine = _engine(model, refit_layout="packed")
    body = {"verify": {"against": "finite"}, "materialise": "lazy"}
    rounds = _back_and_forth(model, engine, model.versions[:2], ROUNDS, **body)
    eager = _back_and_forth(model, engine, model.versions[:2], ROUNDS, verify=UNVERIFIED)
    found = model.client.call("GET", f"/v1/models/{model.client.model}/engines/{engine}")
    build_s, eager_s = _build_seconds(model.client, engine), statistics.median(one["s"] for one in eager)
    return {
        "build_job_s": build_s,
        "eager_job_s": eager_s,
        "eager_over_build": eager_s / build_s,
        "refit_s": statistics.median(one["phases"]["values"] + one["phases"]["refit"] for one in rounds),
        "lazy_job_s": statistics.median(one["s"] for one in rounds),
        "run_s": _latency(model.client, engine),
        "weights": found["facts"]["weights"],
        "plan_mib": found["plan_bytes"] / MIB,
    }


def measure_cost(bench: Bench) -> dict[str, Any]:
    """Run a 6-layer model refittable and not: what the possibility of a refit costs."""
    model = _model(bench, "shallow", SHALLOW)
    engine = _engine(model)
    body = {"engine": engine, "iterations": 500, "against": "not_refittable"}
    result = _job(model.client, "benchmarks", body)[1]["result"]
    slowest = sorted(result["layers"], key=lambda layer: -float(layer["seconds"]))
    return {name: result[name] for name in ("latency", "not_refittable", "ratio", "shapes")} | {"slowest": slowest[:5]}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "build": measure_build,
    "refit": measure_refit,
    "delta": measure_delta,
    "packed": measure_packed,
    "cost": measure_cost,
}

BEFORE: dict[str, Callable[[Bench], None]] = {"refit": build_plain, "delta": build_plain, "packed": build_packed}

# What is measured, where its figure lies, and what it is to be at most; None where it is to be known.
AIMS: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
    ("warm refit job, all weights, eager plan, over raw", ("refit", "warm_over_raw"), 1.15),
    ("cold refit job over raw with deserialize", ("refit", "cold_over_raw"), 1.15),
    ("delta refit job, one tensor, lazy plan, finite, s", ("delta", "verified", "median_s"), 0.060),
    ("refit job, plan written, over build job", ("refit", "refit_over_build"), 0.01),
    ("lazy refit job, finite, over build job", ("refit", "lazy_refit_over_build"), 0.01),
    ("build job over raw, 12 layers", ("build", "over_raw"), 1.03),
    ("packed refit over raw plain refit, 24 layers", ("packed", "refit_over_raw_plain"), 0.6),
    ("packed refit job, plan written, over its build", ("packed", "eager_over_build"), 0.01),
    ("run of the packed layout over plain", ("packed", "run_over_plain"), 1.0),
    ("run of a refittable engine over one that is not", ("cost", "ratio"), None),
    ("peak memory of a build beyond raw, of the weights", ("build", "peak_beyond_raw_of_weights"), 0.10),
    ("the same, beyond what both held before", ("build", "grown_beyond_raw_of_weights"), 0.10),
    ("peak memory of a refit beyond raw, of the weights", ("refit", "peak_beyond_raw_of_weights"), 0.10),
    ("default verification over the refit itself", ("refit", "verification_over_refit"), 1.0),
)


def _model(bench: Bench, name: str, config: dict[str, Any]) -> Model:
    """Return the model, registered with its weights if it is not yet; random weights, the same in every run."""
    config = TINY if bench.is_tiny else config
    client = bench.client(name)
    files = bench.folder / f"{name}-1.safetensors", bench.folder / f"{name}-2.safetensors"
    delta = bench.folder / f"{name}-delta.safetensors"
    body = {"family": "gpt2", "config": config, "precision": "fp16"}
    definition = client.post("definitions", body)["version"]
    rows = parameters(client, definition)
    changed = max((row for row in rows if _nbytes(row) < 10e6), key=_nbytes)
    for seed, (path, tensors) in enumerate(((files[0], rows), (files[1], rows), (delta, [changed])), start=1):
        if not path.exists():
            write_checkpoint(path, tensors, seed=seed, dtype="F16")
    first, second = (client.post("weights", {"files": [client.upload(path)]})["version"] for path in files)
    third = client.post("weights", {"files": [client.upload(delta)], "base": first})["version"]
    return Model(client, definition, (first, second, third), files, sum(map(_nbytes, rows)))


def _nbytes(row: dict[str, Any]) -> int:
    size = 2
    for dim in row["shape"]:
        size *= dim
    return size


def _build(model: Model, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "definition": model.definition,
        "weights": model.versions[0],
        "backend": "tensorrt",
        "profiles": PROFILES,
        "options": options,
    }


def _engine(model: Model, **options: Any) -> int:  # noqa: ANN401 - JSON
    """Return the number of the model's engine with these options, which is built if there is none."""
    job = _job(model.client, "builds", _build(model, **options) | {"verify": UNVERIFIED})[1]
    return int(job["result"]["engine"])


def _refit(model: Model, engine: int, weights: int, **body: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    request = {"engine": engine, "weights": weights, "reuse": False} | body
    seconds, job = _job(model.client, "refits", request)
    phases = job["result"]["seconds"]
    found = model.client.call("GET", f"/v1/models/{model.client.model}/engines/{job['result']['engine']}")
    return {"s": seconds, "phases": phases, "verification": found["verification"], "warm": job["result"]["warm"]}


def _back_and_forth(
    model: Model,
    engine: int,
    versions: tuple[int, ...],
    rounds: int,
    **body: Any,  # noqa: ANN401 - JSON
) -> list[dict[str, Any]]:
    """Refit an engine to two versions in turn; one refit ahead of those that count leaves it warm, with the second."""
    _refit(model, engine, versions[1], verify=UNVERIFIED)
    return [_refit(model, engine, versions[number % 2], **body) for number in range(rounds)]


def _job(client: Client, what: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the seconds from the POST to the job's end as a client sees it, and the job."""
    started = time.perf_counter()
    job = client.call("POST", f"/v1/models/{client.model}/{what}", body, Prefer="wait=60")
    while job["state"] not in {"succeeded", "failed", "canceled"}:
        time.sleep(0.02)
        job = client.call("GET", f"/v1/jobs/{job['id']}")
    seconds = time.perf_counter() - started
    if job["state"] != "succeeded":
        raise SystemExit(f"{what} {job['state']}: {json.dumps(job['error'], indent=1)}")
    return seconds, job


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _build_seconds(client: Client, engine: int) -> float:
    """Return how long the job took that built an engine."""
    timings = client.call("GET", f"/v1/models/{client.model}/engines/{engine}")["timings"]
    return float(timings["total"])


def _latency(client: Client, engine: int) -> float:
    body = {"engine": engine, "iterations": 500, "layers": False}
    return float(_job(client, "benchmarks", body)[1]["result"]["latency"]["median"])


def _plan(model: Model, engine: int, path: Path) -> Path:
    client = model.client
    with (
        client.http.stream("GET", f"/v1/models/{client.model}/engines/{engine}/plan") as answer,
        path.open("wb") as file,
    ):
        for chunk in answer.iter_bytes():
            file.write(chunk)
    return path


def _memory(model: Model, peak: int, raw_peak: int) -> dict[str, float]:
    """Return what two peaks, in bytes, say of the weights."""
    return {
        "weights_mib": model.nbytes / MIB,
        "peak_mib": peak / MIB,
        "raw_peak_mib": raw_peak / MIB,
        "peak_beyond_raw_of_weights": (peak - raw_peak) / model.nbytes,
    }


def _external(model: Model, path: Path) -> Path:
    """Write the definition with its parameters pointing into the first checkpoint, which lies beside it."""
    client = model.client
    digest = client.call("GET", f"/v1/models/{client.model}/definitions/{model.definition}")["digest"]
    graph = onnx.load_from_string(client.download(digest))
    with model.files[0].open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for one in graph.graph.initializer:
        if one.data_location == onnx.TensorProto.EXTERNAL:
            begin, end = header[one.name]["data_offsets"]
            del one.external_data[:]
            for key, value in (
                ("location", model.files[0].name),
                ("offset", 8 + length + begin),
                ("length", end - begin),
            ):
                one.external_data.add(key=key, value=str(value))
    path.write_bytes(graph.SerializeToString())
    return path


def _raw(what: str, *paths: Path) -> dict[str, Any]:
    """Do it by hand, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tensorrt_raw", what, *map(str, paths)]
    environment = {"CUDA_MODULE_LOADING": "LAZY"} | os.environ  # as an engine host
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def _descendants(pid: int) -> dict[int, str]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= _descendants(child)
    return found


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="enginesmith-gpu-") as folder:
            yield Path(folder)


def _merged(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return a part's figures beside those kept of the others, with the machine each was measured on."""
    results: dict[str, Any]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": {}, "figures": {}}
    results["machine"][name] = machine() | {"gpu": _gpu()}
    results["figures"][name] = figures
    plain, packed = (results["figures"].get(part) for part in ("refit", "packed"))
    if plain and packed:
        packed["refit_over_raw_plain"] = packed["refit_s"] / plain["raw"]["refit_s"]
        packed["run_over_plain"] = packed["run_s"] / plain["run_s"]
    return results


def _gpu() -> dict[str, str]:
    import tensorrt  # noqa: PLC0415 - where it is missing, nothing here could have been measured

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    name, driver, memory = gpus[0].split(", ")
    return {"name": name, "driver": driver, "memory": memory, "tensorrt": tensorrt.__version__}


def _table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "aim", "measured", "", title="Aims", title_justify="left")
    for name, path, aim in AIMS:
        value: Any = figures
        for part in path:
            value = value.get(part) if value is not None else None
        if value is None:
            continue
        wanted, verdict = ("", "") if aim is None else (f"<= {aim:g}", "met" if value <= aim else "missed")
        table.add_row(name, wanted, f"{value:.4g}", verdict)
    return table


if __name__ == "__main__":
    main()
