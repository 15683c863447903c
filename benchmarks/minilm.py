"""A refit compared with a build, and with bare onnxruntime calls, on the real MiniLM weights."""

import json
import mmap
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from safetensors.numpy import load_file, save_file

from benchmarks.service import Service
from examples.client import Client
from examples.demo import minilm_folder

CHANGED = "encoder.layer.5.output.dense.weight"
ROUNDS = 15
BUILDS = 5


def measure(service: Service, scratch: Path) -> dict[str, Any]:
    """Time builds as jobs, then refits as jobs and the same refits by hand, in turn, so that noise hits both alike."""
    client = Client(service.url, "minilm")
    engine, versions, files = _prepare(client, scratch)
    body = {"definition": 1, "weights": versions[0], "reuse": False}
    builds = [_job_seconds(client, "builds", body) for _ in range(BUILDS)]
    plan = client.http.get(f"/v1/models/minilm/engines/{engine}/plan").content
    bare = Bare(plan, *files)
    default, unverified, by_hand, by_file = [], [], [], []
    for number in range(ROUNDS):
        weights = versions[(number + 1) % 2]
        refit = {"engine": engine, "weights": weights, "reuse": False}
        default.append(_job_seconds(client, "refits", refit))
        unverified.append(_job_seconds(client, "refits", refit | {"verify": {"against": "none"}}))
        by_hand.append(_seconds(partial(bare.refit, number)))
        by_file.append(_seconds(partial(bare.refit_by_file, number)))
    medians = {
        "build_s": statistics.median(builds),
        "refit_s": statistics.median(default),
        "refit_unverified_s": statistics.median(unverified),
        "bare_refit_s": statistics.median(by_hand),
        "bare_refit_by_file_s": statistics.median(by_file),
    }
    return {name: round(value, 4) for name, value in medians.items()} | {
        "refit_over_bare": round(medians["refit_s"] / medians["bare_refit_s"], 2),
        "refit_unverified_over_bare": round(medians["refit_unverified_s"] / medians["bare_refit_s"], 2),
        "refit_over_bare_by_file": round(medians["refit_s"] / medians["bare_refit_by_file_s"], 2),
        "refit_over_build": round(medians["refit_s"] / medians["build_s"], 3),
    }


class Bare:
    """The same refit by hand: one process, files mapped, sessions made by onnxruntime's own calls."""

    def __init__(self, plan: bytes, first: Path, changed: Path) -> None:
        self._plan = plan
        self._first = _map(first)
        self._changed = _map(changed)
        self._ranges = (_ranges(first), _ranges(changed))
        self._sessions: list[ort.InferenceSession] = []

    def refit(self, number: int) -> ort.InferenceSession:
        """Make a session of the plan with the base weights, or with one tensor changed, in turn."""
        weights = self._first | (self._changed if number % 2 == 0 else {})
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
        session = ort.InferenceSession(self._plan, options, providers=["CPUExecutionProvider"])
        self._sessions = [*self._sessions[-1:], session]
        return session

    def refit_by_file(self, number: int) -> ort.InferenceSession:
        """Do the same, but name each weight as a byte range of its file; onnxruntime then maps the file itself."""
        model = onnx.load_from_string(self._plan)
        ranges = self._ranges[0] | (self._ranges[1] if number % 2 == 0 else {})
        for initializer in model.graph.initializer:
            if initializer.name in ranges:
                path, offset, length = ranges[initializer.name]
                external = {"location": str(path).lstrip("/"), "offset": str(offset), "length": str(length)}
                del initializer.external_data[:]
                for key, value in external.items():
                    initializer.external_data.add(key=key, value=value)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._sessions = [*self._sessions[-1:], session]
        return session


def _prepare(client: Client, scratch: Path) -> tuple[int, list[int], tuple[Path, Path]]:
    source = minilm_folder()
    client.call("POST", "/v1/models", {"name": "minilm"})
    config = json.loads((source / "config.json").read_text())
    definition = client.post("definitions", {"family": "bert", "config": config})["version"]
    first = source / "model.safetensors"
    changed = scratch / "changed.safetensors"
    save_file({CHANGED: load_file(first)[CHANGED] * np.float32(1.01)}, changed)
    base = client.post("weights", {"files": [client.upload(first)]})["version"]
    second = client.post("weights", {"files": [client.upload(changed)], "base": base})["version"]
    job = client.post("builds", {"definition": definition, "weights": base})
    return client.finish(job, lambda _job: None)["engine"], [base, second], (first, changed)


def _job_seconds(client: Client, what: str, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    job = client.call("POST", f"/v1/models/minilm/{what}", body, Prefer="wait=60")
    seconds = time.perf_counter() - started
    if job["state"] != "succeeded":
        raise RuntimeError(f"{what}: {job['error']}")
    return seconds


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the offset at which a safetensors file's data begin, and the float32 entries of its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, {name: entry for name, entry in header.items() if entry["dtype"] == "F32"}


def _ranges(path: Path) -> dict[str, tuple[Path, int, int]]:
    """Return file, offset and length in bytes of each float32 tensor."""
    start, header = _header(path)
    return {
        name: (path.resolve(), start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _map(path: Path) -> dict[str, Any]:
    """Return the float32 tensors of a safetensors file as views of the mapped file."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    shapes = {name: entry["shape"] for name, entry in _header(path)[1].items()}
    return {
        name: np.frombuffer(mapped, np.float32, length // 4, offset).reshape(shapes[name])
        for name, (_path, offset, length) in _ranges(path).items()
    }
