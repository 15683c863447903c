"""The models that are measured on a GPU, and a service of the benchmark's own that builds and refits them."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import onnx

from benchmarks.checkpoints import gpt2_config, parameters, write_checkpoint
from benchmarks.service import descendants, forget_peak, memory_bytes
from examples.client import Client
from examples.service import running

PROFILE = {"min": [1, 1], "opt": [1, 64], "max": [4, 128]}
PROFILES = [{"input_ids": PROFILE, "attention_mask": PROFILE}]
MEDIUM = gpt2_config(24, 1024) | {"tie_word_embeddings": False}  # 406 million parameters
SMALL = gpt2_config(12, 768)
SHALLOW = gpt2_config(6, 768)
TINY = gpt2_config(1, 64, vocab=256, positions=128)
UNVERIFIED = {"against": "none"}
MIB = 2**20
ENVIRONMENT = {
    "ENGINESMITH_LOG_LEVEL": "WARNING",
    "ENGINESMITH_RESIDENT_BYTES": str(MIB),  # only the engine used last stays loaded, so a cold refit can be measured
}


@dataclass
class Bench:
    """One service with a GPU, and the folder of everything the benchmark writes."""

    url: str
    pid: int
    folder: Path
    is_tiny: bool

    def client(self, model: str) -> Client:
        """Return a client for a model; register the model if it does not exist."""
        client = Client(self.url, model)
        if client.http.get(f"/v1/models/{model}").is_error:
            client.call("POST", "/v1/models", {"name": model})
        return client

    def host(self) -> tuple[int, int]:
        """Return the process ids of the GPU's engine host and of its worker."""
        children = descendants(self.pid)
        worker = next(pid for pid, line in children.items() if "-m workers " in line and "cuda" in line)
        host = next(pid for pid, line in descendants(worker).items() if "engine_host" in line)
        return host, worker

    def memory(self) -> Callable[[], int]:
        """Return a function that tells the peak of memory from now on, in bytes.

        The peak is all that the engine host has, and what the worker has more than now.
        """
        host, worker = self.host()
        before = memory_bytes(worker, "VmRSS")
        forget_peak(host)
        forget_peak(worker)
        return lambda: memory_bytes(host, "VmHWM") + memory_bytes(worker, "VmHWM") - before


@dataclass(frozen=True)
class Model:
    """A definition with two weight versions, and a third that differs from the first in one tensor."""

    client: Client
    definition: int
    versions: tuple[int, int, int]
    files: tuple[Path, Path]
    nbytes: int


@contextmanager
def running_bench(
    folder: Path, device: str, *, is_tiny: bool, environment: Mapping[str, str] | None = None
) -> Iterator[Bench]:
    """Run a service on a device for as long as a block lasts, on the data that the folder holds."""
    with running(folder / "data", ENVIRONMENT | dict(environment or {}), devices=(device,)) as (url, pid):
        yield Bench(url, pid, folder, is_tiny=is_tiny)


def model_of(bench: Bench, name: str, config: dict[str, Any]) -> Model:
    """Return the model; register it and its weights if it does not exist.

    The weights are random, and the same in every run.
    """
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


def build_request(model: Model, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return the request for a build of the model's first version."""
    return {
        "definition": model.definition,
        "weights": model.versions[0],
        "backend": "tensorrt",
        "profiles": PROFILES,
        "options": options,
    }


def engine_of(model: Model, **options: Any) -> int:  # noqa: ANN401 - JSON
    """Return the number of the model's engine with these options; build it if there is none."""
    job = finished(model.client, "builds", build_request(model, **options) | {"verify": UNVERIFIED})[1]
    return int(job["result"]["engine"])


def refit(model: Model, engine: int, weights: int, **body: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Refit an engine; return the seconds in all and of each stage, the verification, and whether it was warm."""
    request = {"engine": engine, "weights": weights, "reuse": False} | body
    seconds, job = finished(model.client, "refits", request)
    stages = {name: one["seconds"] for name, one in job["result"]["stages"].items()}
    found = model.client.call("GET", f"/v1/models/{model.client.model}/engines/{job['result']['engine']}")
    return {
        "s": seconds,
        "engine": job["result"]["engine"],
        "stages": stages | {"total": job["result"]["seconds"]},
        "verification": found["verification"],
        "warm": job["result"]["warm"],
    }


def new_weights(model: Model, *bases: int) -> Iterator[int]:
    """Yield weight versions that no engine has had, so that their plans are new.

    Each one is the next of `bases`, in turn, with one small tensor changed.
    """
    rows = parameters(model.client, model.definition)
    smallest = min(rows, key=_nbytes)
    path = model.files[0].with_name("new.safetensors")
    for base in cycle(bases):
        write_checkpoint(path, [smallest], seed=time.time_ns(), dtype="F16")
        body = {"files": [model.client.upload(path)], "base": base}
        yield int(model.client.post("weights", body)["version"])


def finished(client: Client, what: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
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


def build_seconds(client: Client, engine: int) -> float:
    """Return the seconds that the build job of an engine took."""
    timings = client.call("GET", f"/v1/models/{client.model}/engines/{engine}")["timings"]
    return float(timings["total"])


def latency(client: Client, engine: int) -> float:
    """Return the median of the seconds that a run of an engine takes on the device."""
    body = {"engine": engine, "iterations": 500, "layers": False}
    return float(finished(client, "benchmarks", body)[1]["result"]["latency"]["median"])


def download_plan(model: Model, engine: int, path: Path) -> Path:
    """Write an engine's plan to a file and return the file's path."""
    client = model.client
    with (
        client.http.stream("GET", f"/v1/models/{client.model}/engines/{engine}/plan") as answer,
        path.open("wb") as file,
    ):
        for chunk in answer.iter_bytes():
            file.write(chunk)
    return path


def write_external(model: Model, path: Path) -> Path:
    """Write the definition as an ONNX file whose parameters point into the first checkpoint, which lies beside it."""
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


def _nbytes(row: dict[str, Any]) -> int:
    size = 2
    for dim in row["shape"]:
        size *= dim
    return size
